"""Turn the boxes of a detector into masks, one per box.

Usage: python examples/boxes_from_detections.py [IMAGE]
"""

import sys

from ikomia.dataprocess.workflow import Workflow
from ikomia.utils.displayIO import display

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

# As a detector might return them. With an Ikomia detector, read them from the objects of its output:
# [{"label": found.label, "box": dict(zip(("x", "y", "width", "height"), found.box))} for found in output.get_objects()]
DETECTIONS = [
    {"label": "truck", "box": {"x": 75, "y": 275, "width": 1650, "height": 575}},
    {"label": "wheel", "box": {"x": 425, "y": 600, "width": 275, "height": 275}},
    {"label": "wheel", "box": {"x": 1375, "y": 550, "width": 275, "height": 250}},
]


def to_corners(x, y, width, height):
    """Convert left, top, width, height to left, top, right, bottom."""
    return [x, y, x + width, y + height]


wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters({"input_box": [to_corners(**detection["box"]) for detection in DETECTIONS]})

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

image, *masks = algo.get_outputs()  # one mask per box, in the same order
for detection, mask_output in zip(DETECTIONS, masks, strict=True):
    pixels = (mask_output.get_mask() == 1).sum()
    print(f"{detection['label']}: {pixels} pixels, {mask_output.description}")
    display(image.get_image_with_mask(mask_output), title=detection["label"])
