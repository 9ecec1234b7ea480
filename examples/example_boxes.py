"""Find everything that looks like a boxed example, then what a phrase names except what a box shows.

Usage: python examples/example_boxes.py [IMAGE]
"""

import sys

from ikomia.dataprocess.workflow import Workflow
from ikomia.utils.displayIO import display

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

# left, top, right, bottom, in pixels of the image
REAR_WHEEL = [425, 600, 700, 875]
FRONT_WHEEL = [1375, 550, 1650, 800]

# input_box_label has one label per box: 1 positive, 0 negative
PROMPTS = {
    "like the rear wheel": {"input_text": "", "input_box": [REAR_WHEEL], "input_box_label": [1]},
    "wheels, but not the front one": {"input_text": "wheel", "input_box": [FRONT_WHEEL], "input_box_label": [0]},
}

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)

for title, prompt in PROMPTS.items():
    algo.set_parameters({**prompt, "confidence_threshold": 0.3})
    if len(sys.argv) > 1:
        wf.run_on(path=sys.argv[1])
    else:
        wf.run_on(url=TRUCK)
    print(f"{title}: {algo.get_output(1).description}")
    display(algo.get_image_with_mask(), title=title)
