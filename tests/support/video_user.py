"""Run the plugin on a long clip in a process of its own, and measure its memory, for :mod:`test_videos`.

    python -m tests.support.video_user small_random.pt clip.avi

Prints the memory of the process after each frame, in bytes, as a JSON list.
"""

import json
import sys

from ikomia import core, dataprocess
from ikomia.dataprocess.workflow import Workflow

from benchmarks.timing import resident_memory
from testbed.plugin import PLUGIN, register_checkout


class MemoryWatch(core.CWorkflowTask):
    """A task that measures the memory of the process after each frame."""

    def __init__(self):
        core.CWorkflowTask.__init__(self, "memory watch")
        self.add_input(dataprocess.CImageIO())
        self.measured = []

    def run(self):
        self.begin_task_run()
        self.measured.append(resident_memory())
        self.end_task_run()


if __name__ == "__main__":
    register_checkout()
    workflow = Workflow()
    algorithm = workflow.add_task(name=PLUGIN, auto_connect=True)
    prompt = {"input_point": "[[160, 120]]", "instance_output": "True"}
    algorithm.set_parameters({"model_weight_file": sys.argv[1], "cuda": "False", **prompt})
    watch = MemoryWatch()
    workflow.add_task(task=watch, auto_connect=False)
    workflow.connect_tasks(algorithm, watch, [(0, 0)])
    workflow.run_on(path=sys.argv[2])
    print(json.dumps(watch.measured))
