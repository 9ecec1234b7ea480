"""Look for several things at once and count what was found.

Usage: python examples/several_phrases.py [IMAGE]
"""

import sys
from collections import Counter

from ikomia.dataprocess.workflow import Workflow
from ikomia.utils.displayIO import display

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters(
    {
        "input_text": ["wheel", "window", "person"],
        "confidence_threshold": 0.3,
        "iou_threshold": 0.7,  # if two masks overlap more than this, keep only the better one
        "instance_output": True,
    }
)

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

image, mask_output, objects = algo.get_outputs()
print(mask_output.description)
counts = Counter(found.label for found in objects.get_objects())
for phrase in ("wheel", "window", "person"):
    print(f"{phrase}: {counts[phrase]}")
display(image.get_image_with_mask_and_graphics(objects))
