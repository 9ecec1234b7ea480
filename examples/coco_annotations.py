"""Write what a folder run of Ikomia has saved as COCO annotations, for the images in the same folder.

Usage: python examples/coco_annotations.py FOLDER [PHRASE ...]
"""

import json
import sys
from pathlib import Path

import numpy as np
from ikomia import dataprocess
from PIL import Image
from pycocotools import mask as coco


def export_coco(folder, phrases=()):
    """Write ``annotations.json`` into the folder of a run with ``instance_output``.

    The phrases are the categories, in the order of their ids; other labels follow.
    """
    folder = Path(folder)
    categories = {phrase: number for number, phrase in enumerate(phrases, 1)}
    images, count = [], 0
    with (folder / "annotations.json").open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "Objects found by SAM 3"}, "licenses": [],\n"annotations": [')
        for saved in sorted(folder.rglob("*_objects.json")):
            image = saved.with_name(saved.name.removesuffix("_objects.json") + ".png")
            with Image.open(image) as picture:
                size = {"width": picture.width, "height": picture.height}
            images.append({"id": len(images) + 1, "file_name": image.relative_to(folder).as_posix(), **size})

            objects = dataprocess.CInstanceSegmentationIO()
            objects.load(str(saved))
            for found in objects.get_objects():  # written one by one: all may be too many to keep in memory
                rle = coco.encode(np.asfortranarray(found.mask > 0, dtype=np.uint8))
                annotation = {
                    "id": count + 1,
                    "image_id": len(images),
                    "category_id": categories.setdefault(found.label, len(categories) + 1),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "bbox": found.box,  # left, top, width, height
                    "area": int(coco.area(rle)),
                    "iscrowd": 0,
                    "score": found.confidence,
                }
                file.write(("," if count else "") + "\n" + json.dumps(annotation))
                count += 1
        named = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
        file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps(named)}}}\n')
    print(f"{folder / 'annotations.json'}: {len(images)} images, {count} objects")


export_coco(sys.argv[1], phrases=sys.argv[2:])
