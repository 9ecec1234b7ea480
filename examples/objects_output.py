"""List every object with its label, score, box and area.

Usage: python examples/objects_output.py [IMAGE]
"""

import sys

from ikomia.dataprocess.workflow import Workflow

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters({"input_text": ["wheel", "window"], "confidence_threshold": 0.3, "instance_output": True})

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

objects = algo.get_output(2)
print("  id  label       score  left   top  width  height    area")
for found in objects.get_objects():
    left, top, width, height = found.box
    area = found.mask.astype(bool).sum()
    print(f"{found.id:4}  {found.label:10}  {found.confidence:.3f}", end="")
    print(f" {left:5.0f} {top:5.0f}  {width:5.0f}   {height:5.0f}  {area:6}")
