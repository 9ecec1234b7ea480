"""Finds out which outputs of a task are connected."""

from __future__ import annotations

import gc

from ikomia import core, dataprocess


def connected_outputs(task: core.CWorkflowTask) -> set[int]:
    """Return the indices of the outputs that are connected to other tasks, in all workflows of this Python process.

    Ikomia does not tell a task about its connections, only the workflow. In Ikomia Studio, workflows are not Python
    objects, so none is found there.
    """
    workflows = [found for found in gc.get_objects() if issubclass(type(found), dataprocess.CWorkflow)]
    return {
        workflow.get_edge_info(edge)[0]
        for workflow in workflows
        for task_id in workflow.get_task_ids()
        if workflow.get_task(task_id).uuid == task.uuid
        for edge in workflow.get_out_edges(task_id)
    }
