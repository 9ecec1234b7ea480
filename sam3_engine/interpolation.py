"""Interpolate mask logits to the source image's size, only where a mask can be.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

_MAX_INTERPOLATED_PIXELS = 2**21  # bounds the memory of floats


def masks_at_source_size(
    mask_logits: Sequence[torch.Tensor], width: int, height: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield for each mask the rows and columns that it may cover, and the mask there, bool.

    Args:
        mask_logits: (h, w) each, covering the whole image.
        width: of the source image, in pixels.
        height: of the source image, in pixels.
    """
    # all bounds at once: to wait for a GPU for each would take longer than the rest
    bounds = torch.stack([_bounds(logits) for logits in mask_logits]).tolist()
    for logits, (top, bottom, left, right) in zip(mask_logits, bounds, strict=True):
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
