"""Segment every instance of a phrase and show the result.

Usage: python examples/text_prompt.py [IMAGE]
"""

import sys

from ikomia.dataprocess.workflow import Workflow
from ikomia.utils.displayIO import display

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters({"input_text": "wheel", "confidence_threshold": 0.3})

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

mask_output = algo.get_output(1)
mask = mask_output.get_mask()  # (height, width) uint8: 0 background, k the k-th instance
print(mask_output.description)
print(f"{(mask > 0).mean():.1%} of the image is in a mask")
display(algo.get_image_with_mask())
