"""Save the mask of each object as a PNG file, 255 where the object is.

Usage: python examples/save_masks_as_png.py [IMAGE [FOLDER]]
"""

import sys
from pathlib import Path

from ikomia.dataprocess.workflow import Workflow
from PIL import Image

TRUCK = "https://raw.githubusercontent.com/facebookresearch/sam3/main/assets/images/truck.jpg"

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters({"input_text": "wheel", "confidence_threshold": 0.3, "instance_output": True})

if len(sys.argv) > 1:
    wf.run_on(path=sys.argv[1])
else:
    wf.run_on(url=TRUCK)

folder = Path(sys.argv[2] if len(sys.argv) > 2 else "masks")
folder.mkdir(exist_ok=True)

# All objects in one file: pixel value k is the k-th object
Image.fromarray(algo.get_output(1).get_mask()).save(folder / "all.png")

# Each object in its own file, overlaps included
for found in algo.get_output(2).get_objects():
    file = folder / f"{found.id:03}_{found.label.replace(' ', '_')}.png"
    Image.fromarray(found.mask.astype("uint8") * 255).save(file)
    print(f"{file}: score {found.confidence:.3f}")
