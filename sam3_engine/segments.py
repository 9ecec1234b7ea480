"""What was segmented: masks at the source image's size, one by one or painted into one map; duplicates dropped.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .parsing import Box

MOST_IN_A_MAP = 255  # a label map has 8 bits

_PIXELS_AT_ONCE = 2**27  # bounds the memory that several masks take
_INTERPOLATED_AT_ONCE = 2**21  # pixels; bounds the memory that floats take
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
        (mask,) = masks_of([self])
        return mask.view(np.bool_)

    @property
    def box(self) -> Box:
        """(x1, y1, x2, y2) in source-image pixels: the detected one, else the bounds of the mask, all 0 if empty."""
        return self.detected_box or bounding_box(self.mask)


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
    order = _by_falling_score(segments)[::-1]
    for index, (rows, columns, covered) in zip(order, _covered([segments[index] for index in order]), strict=True):
        painted[rows, columns].masked_fill_(covered, index + 1)
    return painted.cpu().numpy()


def masks_of(segments: Sequence[Segment]) -> Iterator[np.ndarray]:
    """The mask of each of the segments of an image, (height, width) uint8, 0 and 1.

    Like :func:`label_map` they are painted where their logits are, and come over several at a time.
    """
    if not segments:
        return
    width, height = segments[0].width, segments[0].height
    at_once = max(1, _PIXELS_AT_ONCE // (width * height))
    for start in range(0, len(segments), at_once):
        block = segments[start : start + at_once]
        painted = torch.zeros((len(block), height, width), dtype=torch.uint8, device=block[0].mask_logits.device)
        for mask, (rows, columns, covered) in zip(painted, _covered(block), strict=True):
            mask[rows, columns] = covered
        yield from painted.cpu().numpy()


def bounding_box(mask: np.ndarray) -> Box:
    """(x1, y1, x2, y2) around what is not 0 in a mask (height, width), in its pixels; all 0 if nothing is."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def best(segments: Sequence[Segment], count: int) -> list[int]:
    """Indices of the ``count`` segments of highest score, all if they are fewer, in the order in which they come."""
    return sorted(_by_falling_score(segments)[:count])


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


def _covered(segments: Sequence[Segment]) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """For each segment the rows and columns of the image that its mask may be in, and the mask there, bool."""
    # the bounds of all at once: waiting for a GPU in between would cost more than the painting
    bounds = torch.stack([_bounds(segment.mask_logits) for segment in segments]).tolist()
    for segment, (top, bottom, left, right) in zip(segments, bounds, strict=True):
        logits, width, height = segment.mask_logits, segment.width, segment.height
        rows = _pixels(top, bottom, logits.shape[0], height)
        columns = _pixels(left, right, logits.shape[1], width)
        # as the package does, in the network's dtype: in bfloat16, logits next to 0 would else change sides
        at_source_width = _interpolated(logits.T, columns, width, logits.dtype).T
        strip_height = max(1, _INTERPOLATED_AT_ONCE // at_source_width.shape[1])
        strips = []
        for start in range(rows.start, rows.stop, strip_height):
            strip = slice(start, min(start + strip_height, rows.stop))
            at_source_size = _interpolated(at_source_width, strip, height, logits.dtype).to(logits.dtype)
            strips.append(at_source_size.sigmoid_() > 0.5)
        yield rows, columns, torch.cat(strips)


def _pixels(first: int, behind_last: int, logits_side: int, side: int) -> slice:
    """The pixels of an axis on which positive logits, ``first`` to ``behind_last``, may have an influence."""
    pixels_of_a_logit = side / logits_side
    start = math.floor((first - 0.5) * pixels_of_a_logit - 0.5)
    stop = math.ceil((behind_last + 0.5) * pixels_of_a_logit - 0.5) + 1
    return slice(max(0, start), min(side, stop))


def _interpolated(values: torch.Tensor, pixels: slice, side: int, dtype: torch.dtype) -> torch.Tensor:
    """Some pixels of what ``torch.nn.functional.interpolate`` makes of the first axis, linearly, corners not aligned.

    Args:
        values: (n, m) in any float dtype.
        pixels: which of the ``side`` pixels that the axis would become.
        dtype: that ``interpolate`` would be called in.

    Returns:
        (pixels, m) float32.
    """
    centres = torch.arange(pixels.start, pixels.stop, device=values.device, dtype=torch.float32) + 0.5
    positions = (centres * (len(values) / side) - 0.5).clamp(0, len(values) - 1)
    before = positions.long()
    after = (before + 1).clamp(max=len(values) - 1)
    share = (positions - before)[:, None]
    rounded = dtype if values.device.type == "cpu" else torch.float32  # a GPU's kernel does not round the weights
    share_after = share.to(rounded)
    share_before = 1 - share_after
    return values[before].float().mul_(share_before.float()).addcmul_(values[after].float(), share_after.float())


def _bounds(logits: torch.Tensor) -> torch.Tensor:
    """(4,) where positive logits begin and end: first row, row behind the last, the same of columns; if none, all."""
    bounds = []
    for axis in (1, 0):
        taken = (logits > 0).any(dim=axis).int()
        bounds += [taken.argmax(), len(taken) - taken.flip(0).argmax()]  # argmax: the first of the largest
    return torch.stack(bounds)
