"""The dataset as one file in COCO's format: https://cocodataset.org/#format-data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from .dataset import file_names, read_rows
from .folders import Folder

ANNOTATIONS = "annotations.json"

_DESCRIPTION = "Instances found by SAM 3, written by sam3_batch"


def write_annotations(output: Folder, names: Sequence[str]) -> None:
    """Write all images of the dataset and their instances to ``annotations.json``, atomically.

    Images with an error are left out. Ids count from 1 in the order in which the rows were written, so that those of
    earlier rows stay the same when rows are added. Memory grows only with the paths of the images.

    Args:
        output: folder of the dataset.
        names: of the categories, in the order of their ids. Other labels in the dataset follow.

    Raises:
        OSError: a file cannot be read or written.
    """
    categories = {name: number for number, name in enumerate(names, 1)}
    files = file_names(output)
    with output.writing(ANNOTATIONS) as stream:
        stream.write(b'{"info": ' + _to_json({"description": _DESCRIPTION}) + b',\n"licenses": [],\n"images": ')
        _write_list(stream, _images(output, files))
        stream.write(b',\n"annotations": ')
        _write_list(stream, _annotations(output, files, categories))
        stream.write(b',\n"categories": ')
        _write_list(stream, ({"id": number, "name": name, "supercategory": ""} for name, number in categories.items()))
        stream.write(b"}\n")


def _images(output: Folder, files: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, row in _numbered_rows(output, files, ["width", "height"]):
        yield {"id": number, "file_name": row["path"], "width": row["width"], "height": row["height"]}


def _annotations(output: Folder, files: Sequence[str], categories: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the annotations, and add labels that are not in ``categories`` to them."""
    from pycocotools import mask as coco

    numbers = itertools.count(1)
    for image, row in _numbered_rows(output, files, ["instances"]):
        for instance in row["instances"]:
            left, top, right, bottom = instance["box"]
            yield {
                "id": next(numbers),
                "image_id": image,
                "category_id": categories.setdefault(instance["label"], len(categories) + 1),
                "segmentation": instance["mask"],
                "bbox": [left, top, right - left, bottom - top],
                "area": int(coco.area(instance["mask"])),
                "iscrowd": 0,
                "score": instance["score"],
            }


def _numbered_rows(
    output: Folder, files: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows without an error, with numbers from 1; of several rows for one path, only the first."""
    paths: set[str] = set()
    for row in read_rows(output, files, ["path", "status", *columns]):
        if row["status"] == "ok" and row["path"] not in paths:
            paths.add(row["path"])
            yield len(paths), row


def _write_list(stream: pa.NativeFile, items: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list with one item per line."""
    stream.write(b"[")
    for number, item in enumerate(items):
        stream.write((b",\n" if number else b"\n") + _to_json(item))
    stream.write(b"]")


def _to_json(item: dict[str, Any]) -> bytes:
    # ASCII, because pycocotools opens the file in the encoding of the system, which is not UTF-8 on Windows
    return json.dumps(item).encode("ascii")
