"""What was segmented: masks at the source image's size, one by one or painted into one map.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .prompts import Box


@dataclass(frozen=True, eq=False)
class Segment:
    """One segmented object.

    Attributes:
        mask_logits: (h, w) at the network's mask resolution, covering the whole image, in the dtype it came in.
        width, height: of the source image, in pixels.
        score: 0..1. Text: how sure SAM 3 is of the instance. Points and boxes: its estimate of the mask's IoU.
        label: the phrase, or "object".
        detected_box: (x1, y1, x2, y2) in source-image pixels as the network gave it with the instance, cut to the image
            (text only).
    """

    mask_logits: torch.Tensor
    width: int
    height: int
    score: float
    label: str
    detected_box: Box | None = None

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool, at source size. Computed at every call, so that many segments take little memory."""
        return label_map([self], self.width, self.height).view(np.bool_)

    @property
    def box(self) -> Box:
        """(x1, y1, x2, y2) in source-image pixels: the detected one, else the bounds of the mask, all 0 if empty."""
        if self.detected_box is not None:
            return self.detected_box
        mask = self.mask
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not columns.size:
            return (0.0, 0.0, 0.0, 0.0)
        return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def label_map(segments: Sequence[Segment], width: int, height: int) -> np.ndarray:
    """Paint segments into one map: pixel value k for the k-th segment, 0 where there is none.

    They are painted where their logits are, on a GPU if they come from one; only the map is brought over.

    Args:
        segments: at most 255, best first; where they overlap the earlier one wins.
        width, height: of the source image, in pixels.

    Returns:
        (height, width) uint8.
    """
    if not segments:
        return np.zeros((height, width), np.uint8)
    painted = torch.zeros((height, width), dtype=torch.uint8, device=segments[0].mask_logits.device)
    # the bounds of all at once: waiting for a GPU in between would cost more than the painting
    bounds = torch.stack([_bounds(segment.mask_logits) for segment in segments]).tolist()
    for number in range(len(segments), 0, -1):
        logits = segments[number - 1].mask_logits
        top, bottom, left, right = bounds[number - 1]
        rows, rows_painted = _part(top, bottom, logits.shape[0], height)
        columns, columns_painted = _part(left, right, logits.shape[1], width)
        region = painted[rows_painted, columns_painted]
        at_source_size = torch.nn.functional.interpolate(
            logits[None, None, rows, columns], region.shape, mode="bilinear", align_corners=False
        )[0, 0]
        # as the package does, in the network's dtype: in bfloat16, logits next to 0 would else change sides
        region.masked_fill_(at_source_size.sigmoid_() > 0.5, number)
    return painted.cpu().numpy()


def _bounds(logits: torch.Tensor) -> torch.Tensor:
    """(4,) where positive logits begin and end: first row, row behind the last, the same of columns; if none, all."""
    bounds = []
    for axis in (1, 0):
        taken = (logits > 0).any(dim=axis).int()
        bounds += [taken.argmax(), len(taken) - taken.flip(0).argmax()]  # argmax: the first of the largest
    return torch.stack(bounds)


def _part(first: int, behind_last: int, logits_side: int, side: int) -> tuple[slice, slice]:
    """The least part of an axis that can be interpolated by itself with the same result as the whole.

    Args:
        first, behind_last: of the logits that are positive.
        logits_side, side: lengths of the axis, in logits and in pixels of the image.

    Returns:
        The part in logits, and the same in pixels: from the one grid to the other, its ends fall on whole numbers. It
        begins and ends with a logit that is not positive, so beyond it nothing is.
    """
    step = logits_side // math.gcd(logits_side, side)
    start = max(0, first - 1) // step * step
    stop = min(logits_side, -(-(behind_last + 1) // step) * step)
    return slice(start, stop), slice(start * side // logits_side, stop * side // logits_side)
