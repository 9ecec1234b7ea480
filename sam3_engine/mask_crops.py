"""Masks at the source image's size, kept only where they are.

Importing this module does not import torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Window = tuple[int, int, int, int]  # (x1, y1, x2, y2) in whole source pixels


@dataclass(frozen=True, eq=False)
class MaskCrop:
    """The part of a mask in its bounding box, one bit per pixel.

    Make one with :meth:`of`.

    Attributes:
        box: (x1, y1, x2, y2) of the mask, in source pixels; all 0 if the mask is empty.
        bits: (h, w / 8 rounded up) uint8, the mask in the box, each row as ``np.packbits`` packs it.
    """

    box: Window
    bits: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, left: int = 0, top: int = 0) -> MaskCrop:
        """Crop a mask to its bounding box.

        Args:
            mask: (h, w), nonzero inside.
            left: x of the mask's first column in the source image.
            top: y of its first row.
        """
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not columns.size:
            return cls((0, 0, 0, 0), np.zeros((0, 0), np.uint8))
        x1, x2, y1, y2 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
        return cls((left + x1, top + y1, left + x2, top + y2), np.packbits(mask[y1:y2, x1:x2] != 0, axis=1))

    @property
    def mask(self) -> np.ndarray:
        """The mask in the box, (h, w) bool."""
        return self.inside(self.box)

    @functools.cached_property
    def area(self) -> int:
        """The number of pixels."""
        return int(np.count_nonzero(self.mask))

    def inside(self, window: Window) -> np.ndarray:
        """Return the mask in a window, cut to the box, (h, w) bool; with a side of 0 if they do not overlap."""
        left, top = self.box[:2]
        x1, y1, x2, y2 = common(self.box, window)
        first = (x1 - left) // 8  # only the bytes that are needed: a crop may be as large as the image
        packed = self.bits[y1 - top : y2 - top, first : -(-(x2 - left) // 8)]
        start = x1 - left - 8 * first
        return np.unpackbits(packed, axis=1)[:, start : start + x2 - x1].view(np.bool_)

    def intersection(self, other: MaskCrop) -> int:
        """Return the number of pixels that two masks have in common."""
        shared = common(self.box, other.box)
        return 0 if is_empty(shared) else int(np.count_nonzero(self.inside(shared) & other.inside(shared)))

    def iou(self, other: MaskCrop) -> float:
        """Return the intersection over union of two masks; 0 if both are empty."""
        intersection = self.intersection(other)
        return intersection / max(1, self.area + other.area - intersection)


class MaskIndex:
    """Masks, numbered from 0, of which those near another mask are found without comparing pixels.

    Args:
        masks: the first ones.
    """

    def __init__(self, masks: Iterable[MaskCrop] = ()) -> None:
        self._masks: list[MaskCrop] = []
        self._boxes = np.zeros((16, 4), np.int64)
        for mask in masks:
            self.add(mask)

    def __getitem__(self, number: int) -> MaskCrop:
        return self._masks[number]

    def add(self, mask: MaskCrop) -> None:
        """Add a mask; it gets the next number."""
        if len(self._masks) == len(self._boxes):
            self._boxes = np.concatenate([self._boxes, np.zeros_like(self._boxes)])
        self._boxes[len(self._masks)] = mask.box
        self._masks.append(mask)

    def near(self, mask: MaskCrop) -> list[int]:
        """Return the numbers of the masks whose boxes overlap that of ``mask``."""
        boxes = self._boxes[: len(self._masks)]
        overlapping = (boxes[:, :2] < mask.box[2:]).all(axis=1) & (boxes[:, 2:] > mask.box[:2]).all(axis=1)
        return np.flatnonzero(overlapping).tolist()

    def has_iou(self, mask: MaskCrop, least: float) -> bool:
        """Return whether the IoU of any mask with ``mask`` is at least ``least``, which is above 0."""
        return any(self[number].iou(mask) >= least for number in self.near(mask))

    def covers(self, mask: MaskCrop, least: float) -> bool:
        """Return whether any mask covers at least the share ``least``, above 0, of the pixels of ``mask``."""
        return any(self[number].intersection(mask) >= least * mask.area for number in self.near(mask))


def common(window: Window, other: Window) -> Window:
    """Return the common part of two windows; empty if they do not overlap."""
    x1, y1 = max(window[0], other[0]), max(window[1], other[1])
    x2, y2 = min(window[2], other[2]), min(window[3], other[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else (window[0], window[1], window[0], window[1])


def is_empty(window: Window) -> bool:
    """Return whether a window has no pixels."""
    return window[0] >= window[2] or window[1] >= window[3]
