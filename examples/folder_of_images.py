"""Segment all images of a folder and write a table of what was found in each.

Usage: python examples/folder_of_images.py FOLDER [TABLE]
"""

import csv
import sys
from pathlib import Path

from ikomia.dataprocess.workflow import Workflow

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}

folder = Path(sys.argv[1])
table = Path(sys.argv[2] if len(sys.argv) > 2 else "found.csv")

wf = Workflow()
algo = wf.add_task(name="infer_segment_anything_3", auto_connect=True)
algo.set_parameters({"input_text": ["person", "car"], "confidence_threshold": 0.3, "instance_output": True})

with table.open("w", newline="", encoding="utf-8") as file:
    rows = csv.writer(file)
    rows.writerow(["image", "label", "score", "left", "top", "width", "height"])
    for image in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            wf.run_on(path=str(image))
        except RuntimeError as error:  # an image that cannot be read should not end the run
            print(f"{image.name}: {error}", file=sys.stderr)
            continue
        objects = algo.get_output(2).get_objects()
        rows.writerows([image.name, found.label, f"{found.confidence:.3f}", *map(int, found.box)] for found in objects)
        print(f"{image.name}: {len(objects)} objects")
