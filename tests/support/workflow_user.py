"""Load a workflow from a file in a new process and run it, for :mod:`test_connections`.

    python workflow_user.py WORKFLOW.json IMAGE.png

Prints the results as JSON.
"""

import json
import sys

from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow

from testbed.plugin import register_checkout


def content(output):
    """Return what is in an output, for comparisons."""
    if isinstance(output, dataprocess.CSemanticSegmentationIO):
        return [output.get_class_names(), output.get_mask().tolist()]
    if isinstance(output, dataprocess.CInstanceSegmentationIO):
        return [[found.label, found.confidence, found.mask.tolist()] for found in output.get_objects()]
    return output.get_image().tolist()


def results(workflow):
    """Return the contents of all outputs of all tasks."""
    tasks = [workflow.get_task(number) for number in workflow.get_task_ids()]
    return [[task.name, *map(content, task.get_outputs())] for task in tasks]


if __name__ == "__main__":
    register_checkout()
    workflow = Workflow()
    workflow.load(sys.argv[1])
    workflow.run_on(path=sys.argv[2])
    print(json.dumps(results(workflow)))
