"""Looks at the workflow of a task, which Ikomia does not show to the task."""

from __future__ import annotations

import gc
import weakref
from pathlib import PurePath

from ikomia import core, dataprocess

from .sam3_engine.errors import quote

_ADVICE = "For each folder, use a new Workflow, or call clear_inputs() on this one before run_on(folder=...)."


class OwnWorkflow:
    """The workflow that a task belongs to.

    Only workflows of the Python API are found: those of Ikomia Studio are not Python objects.

    Args:
        task: the task.
    """

    def __init__(self, task: dataprocess.C2dImageTask) -> None:
        self._task = weakref.proxy(task)
        self._workflow: weakref.ref[dataprocess.CWorkflow] | None = None

    def check_inputs(self) -> None:
        """Check that the images of a run reach the task.

        Ikomia adds each folder to the inputs that the workflow already has. The task stays connected to the first
        input, which holds the image of an earlier run, or an earlier folder.

        Raises:
            ValueError: the input is a folder; or Ikomia saves the outputs by itself, as in folder runs, but an input of
                the workflow reaches no task, or the input is a video that another task hands on: Ikomia then swaps red
                and blue, and writes all frames to one file.
        """
        given = self._task.get_input(0)
        if isinstance(given, dataprocess.CPathIO):
            raise ValueError(f"The input is {_describe(given)} instead of an image. {_ADVICE}")
        if not self._task.get_output(1).auto_save:
            return
        if isinstance(given, dataprocess.CVideoIO) and _is_within(given.source_file_path, self._task.output_folder):
            raise ValueError(
                "Ikomia cannot save the results of a video that another task hands on: it swaps red and blue, and "
                "writes all frames to one file. Connect the algorithm to the video, or call set_auto_save(False)."
            )
        workflow = self._find()
        if workflow is None:
            return
        edges = workflow.get_out_edges(workflow.get_root_id())
        connected = {workflow.get_edge_info(edge)[0] for edge in edges}
        for index in range(workflow.get_input_count()):
            if index not in connected:
                unused = _describe(workflow.get_input(index))
                raise ValueError(
                    f"No task is connected to input {index} of the workflow, {unused}: this run uses "
                    f"{_describe(given)} instead. {_ADVICE}"
                )

    def connected_outputs(self) -> set[int]:
        """Return the indices of the task's outputs that are connected to other tasks."""
        workflow = self._find()
        if workflow is None:
            return set()
        task = next(number for number in workflow.get_task_ids() if self._is(workflow.get_task(number)))
        return {workflow.get_edge_info(edge)[0] for edge in workflow.get_out_edges(task)}

    def _find(self) -> dataprocess.CWorkflow | None:
        workflow = self._workflow and self._workflow()
        if workflow is None or not self._is_in(workflow):
            workflow = next(filter(self._is_in, _all_workflows()), None)
            self._workflow = weakref.ref(workflow) if workflow is not None else None
        return workflow

    def _is_in(self, workflow: dataprocess.CWorkflow) -> bool:
        return any(self._is(workflow.get_task(number)) for number in workflow.get_task_ids())

    def _is(self, task: core.CWorkflowTask) -> bool:
        return bool(task.uuid == self._task.uuid)


def _all_workflows() -> list[dataprocess.CWorkflow]:
    # not isinstance(): it asks the object, which may be a proxy of anything
    return [found for found in gc.get_objects() if issubclass(type(found), dataprocess.CWorkflow)]


def _is_within(path: str, output_folder: str) -> bool:
    """Return whether a file is a result of the run that writes to an output folder."""
    return PurePath(path).is_relative_to(PurePath(output_folder).parent)


def _describe(given: core.CWorkflowTaskIO) -> str:
    if isinstance(given, dataprocess.CPathIO):
        return f"the folder {quote(given.get_path(), limit=1000)}"
    path = given.source_file_path
    return f"the image {quote(path, limit=1000)}" if path else "an array"
