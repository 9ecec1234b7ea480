"""What was segmented: masks at the source image's size, one by one or painted into one map; duplicates dropped.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .parsing import Box

MOST_IN_A_MAP = 255  # a label map has 8 bits

_COMPARED_AT_ONCE = 256  # bounds the memory that comparing masks takes


@dataclass(frozen=True, eq=False)
class Segment:
    """One segmented object.

    Attributes:
        mask_logits: (h, w) at the network's mask resolution, covering the whole image, in the dtype it came in.
        width, height: of the source image, in pixels.
        score: 0..1. Instances: how sure SAM 3 is of them. Points and boxes: its estimate of the mask's IoU.
        label: the phrase, or "object".
        detected_box: (x1, y1, x2, y2) in source-image pixels as the network gave it with an instance, cut to the image.
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
        segments: at most :data:`MOST_IN_A_MAP`; where they overlap the one of higher score wins, of equal ones the
            earlier.
        width, height: of the source image, in pixels.

    Returns:
        (height, width) uint8.
    """
    if not segments:
        return np.zeros((height, width), np.uint8)
    painted = torch.zeros((height, width), dtype=torch.uint8, device=segments[0].mask_logits.device)
    # the bounds of all at once: waiting for a GPU in between would cost more than the painting
    bounds = torch.stack([_bounds(segment.mask_logits) for segment in segments]).tolist()
    for index in reversed(_by_falling_score(segments)):
        logits = segments[index].mask_logits
        top, bottom, left, right = bounds[index]
        rows, rows_painted = _part(top, bottom, logits.shape[0], height)
        columns, columns_painted = _part(left, right, logits.shape[1], width)
        region = painted[rows_painted, columns_painted]
        at_source_size = torch.nn.functional.interpolate(
            logits[None, None, rows, columns], region.shape, mode="bilinear", align_corners=False
        )[0, 0]
        # as the package does, in the network's dtype: in bfloat16, logits next to 0 would else change sides
        region.masked_fill_(at_source_size.sigmoid_() > 0.5, index + 1)
    return painted.cpu().numpy()


def best(segments: Sequence[Segment], count: int) -> list[Segment]:
    """The ``count`` segments of highest score, all if they are fewer, in the order in which they come."""
    return [segments[index] for index in sorted(_by_falling_score(segments)[:count])]


def without_duplicates(segments: Sequence[Segment], iou_threshold: float) -> list[Segment]:
    """Drop segments that overlap a better one too much: greedy non-maximum suppression by masks.

    The IoU is that of the masks at the network's resolution, of positive logits. Segments are compared whatever their
    labels are, on the device of their logits.

    Args:
        segments: all of the same image and network.
        iou_threshold: 0..1; a segment whose IoU with a better one that is kept exceeds this is dropped. At 1 none is.

    Returns:
        The others, in the order in which they come.
    """
    if iou_threshold >= 1 or len(segments) < 2:
        return list(segments)
    by_score = _by_falling_score(segments)
    kept: list[int] = []
    for start in range(0, len(by_score), _COMPARED_AT_ONCE):
        block = by_score[start : start + _COMPARED_AT_ONCE]
        masks = _binary_masks(segments, block)
        duplicate = np.zeros(len(block), bool)
        for earlier in range(0, len(kept), _COMPARED_AT_ONCE):
            better = _binary_masks(segments, kept[earlier : earlier + _COMPARED_AT_ONCE])
            duplicate |= (_ious(masks, better) > iou_threshold).any(dim=1).cpu().numpy()
        alike = (_ious(masks, masks) > iou_threshold).cpu().numpy()
        for index in range(len(block)):
            if not duplicate[index]:
                kept.append(block[index])
                duplicate |= alike[index]
    return [segments[index] for index in sorted(kept)]


def _by_falling_score(segments: Sequence[Segment]) -> list[int]:
    """Indices of segments, best first; equal ones in the order in which they come."""
    return sorted(range(len(segments)), key=lambda index: -segments[index].score)


def _binary_masks(segments: Sequence[Segment], indices: Sequence[int]) -> torch.Tensor:
    """(indices, h * w) 0 and 1, in float32: sums of them are exact far beyond the pixels of a mask."""
    return torch.stack([segments[index].mask_logits > 0 for index in indices]).flatten(1).float()


def _ious(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(n, m) IoU of each of n masks with each of m others; 0 if both are empty."""
    with torch.autocast(masks.device.type, enabled=False):  # which would round the sums
        shared = masks @ others.T
    of_both = masks.sum(dim=1)[:, None] + others.sum(dim=1) - shared
    return shared / of_both.clamp(min=1)


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
