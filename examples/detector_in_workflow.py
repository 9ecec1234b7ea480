"""Segment what another task of the workflow detects; the objects keep its labels.

Usage: python examples/detector_in_workflow.py [IMAGE]
"""

import sys

from ikomia import core, dataprocess
from ikomia.dataprocess.workflow import Workflow
from ikomia.utils.displayIO import display

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"


class Detector(dataprocess.CObjectDetectionTask):
    """Stand in for a detector, such as one from the Ikomia HUB: it finds a truck and two wheels in any image."""

    def __init__(self):
        dataprocess.CObjectDetectionTask.__init__(self, "detector")
        self.set_param_object(core.CWorkflowTaskParam())

    def get_progress_steps(self):
        """Return the number of progress steps."""
        return 1

    def run(self):
        """Output the image and the detections."""
        self.begin_task_run()
        self.set_names(["truck", "wheel"])
        self.add_object(0, 0, 0.9, 75.0, 275.0, 1650.0, 575.0)  # id, class, score, left, top, width, height
        self.add_object(1, 1, 0.8, 425.0, 600.0, 275.0, 275.0)
        self.add_object(2, 1, 0.7, 1375.0, 550.0, 275.0, 250.0)
        self.forward_input_image(0, 0)
        self.end_task_run()


wf = Workflow()
detector = wf.add_task(task=Detector(), auto_connect=True)
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=False)
algo.set_parameters({"instance_output": True})
wf.connect_tasks(detector, algo, [(0, 0), (1, 1)])  # the image to the image, the detections to the graphics

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

objects = algo.get_output(2)
for found in objects.get_objects():
    print(f"{found.label} (class {found.class_index}): score {found.confidence:.3f}, box {found.box}")
display(algo.get_output(0).get_image_with_mask_and_graphics(objects))
