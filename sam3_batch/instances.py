"""Segmented instances without torch: packed masks, and their conversion to COCO, label maps and overlays."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image


@dataclass(frozen=True)
class PackedInstance:
    """An instance whose mask is stored inside its box, one bit per pixel.

    A sixteenth of a boolean mask or less, so that an image with many instances is cheap to pass between processes.

    Attributes:
        label: phrase that found it, or "object".
        score: as in :class:`~sam3_engine.segments.Segment`.
        box: left, top, right, bottom of the mask in pixels; all 0 if the mask is empty.
        bits: the mask inside the box, row by row, as ``numpy.packbits`` packs it.
    """

    label: str
    score: float
    box: Sequence[int]
    bits: bytes

    @classmethod
    def pack(cls, label: str, score: float, box: Sequence[float], mask: np.ndarray) -> PackedInstance:
        """Pack a mask.

        Args:
            label: phrase that found the instance.
            score: as in :class:`~sam3_engine.segments.Segment`.
            box: left, top, right, bottom of the mask in whole pixels.
            mask: (H, W) bool, or uint8 with values 0 and 1.
        """
        left, top, right, bottom = sides = [int(side) for side in box]
        return cls(label, score, sides, np.packbits(mask[top:bottom, left:right]).tobytes())

    @property
    def window(self) -> tuple[slice, slice]:
        """Return the rows and columns of the image that the box covers."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    def mask_in_box(self) -> np.ndarray:
        """Return the mask inside the box, (bottom - top, right - left) bool."""
        left, top, right, bottom = self.box
        height, width = bottom - top, right - left
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=height * width)
        return bits.reshape(height, width).view(np.bool_)


def encode_rle(instance: PackedInstance, height: int, width: int) -> dict[str, Any]:
    """Encode a mask as COCO's compressed run-length encoding.

    Source: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h

    Args:
        instance: the instance.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        ``size`` and ``counts``, as ``pycocotools.mask.decode`` reads them.
    """
    from pycocotools import mask as coco

    mask = np.zeros((height, width), np.uint8, order="F")
    mask[instance.window] = instance.mask_in_box()
    encoded = coco.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def paint_label_map(
    instances: Sequence[PackedInstance],
    height: int,
    width: int,
    classes: Sequence[str] | None = None,
    *,
    smallest_on_top: bool = False,
) -> np.ndarray:
    """Paint instances into one map: k for the k-th instance or class, 0 for the background.

    Where instances overlap, the one with the higher score wins; of equal scores, the first.

    Args:
        instances: all of the same image.
        height: of the image, in pixels.
        width: of the image, in pixels.
        classes: if given, number these labels instead of the instances. Every label must be one of them.
        smallest_on_top: where instances overlap, the smaller one wins instead.

    Returns:
        (height, width) uint8, or uint16 for more than 255 instances or classes.
    """
    numbered: Sequence[object] = instances if classes is None else classes
    values = [
        index + 1 if classes is None else classes.index(instance.label) + 1 for index, instance in enumerate(instances)
    ]
    numbers = np.zeros((height, width), np.uint8 if len(numbered) <= 255 else np.uint16)
    order = sorted(range(len(instances)), key=lambda index: -instances[index].score)[::-1]
    if smallest_on_top:
        order.sort(key=lambda index: -np.count_nonzero(instances[index].mask_in_box()))
    for index in order:
        numbers[instances[index].window][instances[index].mask_in_box()] = values[index]
    return numbers


def paint_overlay(instances: Sequence[PackedInstance], image: np.ndarray) -> np.ndarray:
    """Tint each instance in its own color.

    Args:
        instances: all of the same image.
        image: (H, W, 3) uint8 RGB; not changed.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    overlay = image.copy()
    for index, instance in enumerate(instances):
        hue = (0.55 + 0.618034 * index) % 1  # steps of the golden angle keep neighbors distinct
        color = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, 1.0))
        window, mask = overlay[instance.window], instance.mask_in_box()
        window[mask] = np.rint(0.45 * window[mask] + 0.55 * color).astype(np.uint8)
    return overlay


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an image or a label map as PNG.

    Args:
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB.
    """
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()
