"""Masks at the source image's size, one by one or painted into a label map.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .prompts import Box
from .segments import Segment, by_descending_score

MAX_LABELS = 255  # a label map has 8 bits

_MAX_MASK_PIXELS = 2**27  # bounds the memory of several masks
_MAX_INTERPOLATED_PIXELS = 2**21  # bounds the memory of floats


def label_map(segments: Sequence[Segment], width: int, height: int) -> np.ndarray:
    """Paint segments into one map: pixel value k for the k-th segment, 0 for background.

    Painting happens on the device of the mask logits; only the map is copied to the CPU.

    Args:
        segments: at most :data:`MAX_LABELS`; where they overlap the higher score wins, of equal scores the earlier.
        width: of the source image, in pixels.
        height: of the source image, in pixels.

    Returns:
        (height, width) uint8.
    """
    if not segments:
        return np.zeros((height, width), np.uint8)
    painted = torch.zeros((height, width), dtype=torch.uint8, device=segments[0].mask_logits.device)
    order = by_descending_score(segments)[::-1]
    for index, (rows, columns, covered) in zip(order, _covered([segments[index] for index in order]), strict=True):
        painted[rows, columns].masked_fill_(covered, index + 1)
    return painted.cpu().numpy()


def masks_of(segments: Sequence[Segment]) -> Iterator[np.ndarray]:
    """Yield the mask of each segment of an image, (height, width) uint8 with values 0 and 1.

    As in :func:`label_map`, painting happens on the device of the mask logits; masks are copied several at a time.
    """
    if not segments:
        return
    width, height = segments[0].width, segments[0].height
    block_size = max(1, _MAX_MASK_PIXELS // (width * height))
    for start in range(0, len(segments), block_size):
        block = segments[start : start + block_size]
        painted = torch.zeros((len(block), height, width), dtype=torch.uint8, device=block[0].mask_logits.device)
        for mask, (rows, columns, covered) in zip(painted, _covered(block), strict=True):
            mask[rows, columns] = covered
        yield from painted.cpu().numpy()


def bounding_box(mask: np.ndarray) -> Box:
    """Return the box (x1, y1, x2, y2) of the nonzero pixels of a mask (height, width); all 0 if there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _covered(segments: Sequence[Segment]) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield for each segment the rows and columns that its mask may cover, and the mask there, bool."""
    # all bounds at once: to wait for a GPU for each would take longer than painting
    bounds = torch.stack([_bounds(segment.mask_logits) for segment in segments]).tolist()
    for segment, (top, bottom, left, right) in zip(segments, bounds, strict=True):
        logits, width, height = segment.mask_logits, segment.width, segment.height
        rows = _influenced_pixels(top, bottom, logits.shape[0], height)
        columns = _influenced_pixels(left, right, logits.shape[1], width)
        # in the network's dtype, as the package does: in bfloat16, logits next to 0 would change sign otherwise
        at_source_width = _interpolate(logits.T, columns, width, logits.dtype).T
        strip_height = max(1, _MAX_INTERPOLATED_PIXELS // at_source_width.shape[1])
        strips = []
        for start in range(rows.start, rows.stop, strip_height):
            strip = slice(start, min(start + strip_height, rows.stop))
            at_source_size = _interpolate(at_source_width, strip, height, logits.dtype).to(logits.dtype)
            strips.append(at_source_size.sigmoid_() > 0.5)
        yield rows, columns, torch.cat(strips)


def _influenced_pixels(first: int, stop: int, logits_side: int, side: int) -> slice:
    """Return the pixels of an axis that the logits ``first`` to ``stop`` may influence."""
    pixels_per_logit = side / logits_side
    start = math.floor((first - 0.5) * pixels_per_logit - 0.5)
    stop = math.ceil((stop + 0.5) * pixels_per_logit - 0.5) + 1
    return slice(max(0, start), min(side, stop))


def _interpolate(values: torch.Tensor, pixels: slice, side: int, dtype: torch.dtype) -> torch.Tensor:
    """Interpolate the first axis linearly, as ``torch.nn.functional.interpolate`` does, only at some pixels.

    Args:
        values: (n, m) in any float dtype.
        pixels: which of the ``side`` pixels to compute.
        side: what ``interpolate`` would resize the axis to.
        dtype: the dtype in which ``interpolate`` would be called.

    Returns:
        (pixels, m) float32.
    """
    centres = torch.arange(pixels.start, pixels.stop, device=values.device, dtype=torch.float32) + 0.5
    positions = (centres * (len(values) / side) - 0.5).clamp(0, len(values) - 1)
    before = positions.long()
    after = (before + 1).clamp(max=len(values) - 1)
    weight = (positions - before)[:, None]
    rounded = dtype if values.device.type == "cpu" else torch.float32  # a GPU's kernel does not round the weights
    weight_after = weight.to(rounded)
    weight_before = 1 - weight_after
    return values[before].float().mul_(weight_before.float()).addcmul_(values[after].float(), weight_after.float())


def _bounds(logits: torch.Tensor) -> torch.Tensor:
    """Return (4,) the first row of positive logits, the row after the last, and the same of columns; all if none is."""
    bounds = []
    for axis in (1, 0):
        positive = (logits > 0).any(dim=axis).int()
        bounds += [positive.argmax(), len(positive) - positive.flip(0).argmax()]  # argmax: the first of the largest
    return torch.stack(bounds)
