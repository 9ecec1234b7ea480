"""Get three candidate masks for one point and choose between them.

Usage: python examples/points_with_candidates.py [IMAGE]
"""

import sys

from ikomia.dataprocess.workflow import Workflow
from ikomia.utils.displayIO import display

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

POINT = [520, 375]  # x, y, in pixels of the image

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters({"input_point": [POINT], "input_point_label": [1], "multimask_output": True})

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

image, *candidates = algo.get_outputs()
for candidate in candidates:  # best first
    share = (candidate.get_mask() == 1).mean()
    print(f"{candidate.description}: {share:.1%} of the image")
    display(image.get_image_with_mask(candidate), title=candidate.description)

# If you want the whole object rather than a part of it, take the largest mask
largest = max(candidates, key=lambda candidate: (candidate.get_mask() == 1).sum())
print(f"largest: {largest.description}")
