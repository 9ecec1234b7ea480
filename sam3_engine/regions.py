"""Drop small parts of masks and fill small holes.

Importing this module imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from .mask_crops import MaskCrop
from .segments import Segment, crops_of, logits_of

_BLOCK_SIZE = 256  # bounds the memory of stacked masks
# Two parts that touch at a corner are one, so a diagonal line stays whole. The background between them is then two
# regions: in a grid, only one of mask and background can pass through a corner.
_PART_CONNECTIVITY, _HOLE_CONNECTIVITY = 2, 1  # 8 and 4 neighbors
_FILLED_CONNECTIVITY, _FILLED_LOGIT = 2, 10.0  # of the sam3 package, which fills holes that touch at a corner as one
_LEAST_LOGIT = 0.1  # next to 0, bfloat16 rounds the sigmoid to 0.5


def remove_small_regions(segments: Sequence[Segment], min_percent: float) -> list[Segment]:
    """Drop the small parts of each mask and fill its small holes.

    Parts and holes are those of the mask at the network's resolution (positive logits), or with tiles at source size.
    The largest part always stays, and background that reaches the border of the image is not a hole.

    Args:
        segments: all of the same image and network.
        min_percent: 0..100, share of a mask's area; smaller parts and holes are removed. 0 removes nothing.

    Returns:
        The segments in their order. Those that change have new ``mask_logits``, or a new ``crop``: at the parts and
        holes that were removed, the sign of the logits is flipped.
    """
    cleaned = list(segments)
    if min_percent <= 0:
        return cleaned
    if crops := crops_of(segments):
        return [
            dataclasses.replace(segment, crop=_clean_crop(crop, min_percent))
            for segment, crop in zip(segments, crops, strict=True)
        ]
    for start in range(0, len(segments), _BLOCK_SIZE):
        block = segments[start : start + _BLOCK_SIZE]
        # all masks at once: to wait for a GPU for each would take longer than the rest
        logits_of_block = logits_of(block)
        masks = torch.stack([logits > 0 for logits in logits_of_block]).cpu().numpy()
        flipped = np.stack([mask != _without_small_regions(mask, min_percent) for mask in masks])
        changed = np.flatnonzero(flipped.any(axis=(1, 2)))
        on_device = torch.from_numpy(flipped[changed]).to(logits_of_block[0].device)
        for index, flip in zip(changed.tolist(), on_device, strict=True):
            cleaned[start + index] = _with_logits(block[index], _flip_sign(logits_of_block[index], flip))
    return cleaned


def _clean_crop(crop: MaskCrop, min_percent: float) -> MaskCrop:
    left, top = crop.box[:2]
    if not crop.area:
        return crop
    # with the background around it: a hole does not reach the border of the crop
    cleaned = _without_small_regions(np.pad(crop.mask, 1), min_percent)
    return MaskCrop.of(cleaned[1:-1, 1:-1], left, top)


def fill_small_holes(mask_logits: np.ndarray, max_area: int) -> np.ndarray:
    """Fill the holes of masks by the rule of the sam3 package, which applies it to points and boxes.

    A hole is a connected region, with 8 neighbors, of logits that are not positive. Unlike in
    :func:`remove_small_regions`, a region at the border of the image is a hole too.

    Args:
        mask_logits: (..., h, w).
        max_area: of the largest hole to fill, in logits. 0 fills nothing.

    Returns:
        The logits, in a new array unless ``max_area`` is 0. Those of a hole are 10.
    """
    if max_area <= 0:
        return mask_logits
    filled = mask_logits.copy()
    for logits in filled.reshape(-1, *filled.shape[-2:]):
        regions, areas = _label_regions(logits <= 0, _FILLED_CONNECTIVITY)
        is_hole = (areas > 0) & (areas <= max_area)
        if is_hole.any():
            logits[is_hole[regions]] = _FILLED_LOGIT
    return filled


def fill_holes(segments: Sequence[Segment], max_area: int) -> list[Segment]:
    """Fill the holes of segments, see :func:`fill_small_holes`.

    Args:
        segments: with ``mask_logits``, all of the same image and network.
        max_area: of the largest hole to fill, in logits. 0 fills nothing.
    """
    if max_area <= 0:
        return list(segments)
    filled: list[Segment] = []
    for start in range(0, len(segments), _BLOCK_SIZE):
        block = segments[start : start + _BLOCK_SIZE]
        # all masks at once, as in remove_small_regions
        stacked = torch.stack(logits_of(block))
        without_holes = torch.from_numpy(fill_small_holes(stacked.cpu().numpy(), max_area)).to(stacked.device)
        filled += map(_with_logits, block, without_holes)
    return filled


def _with_logits(segment: Segment, mask_logits: torch.Tensor) -> Segment:
    return dataclasses.replace(segment, mask_logits=mask_logits)


def _flip_sign(logits: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    # the magnitudes stay, so that interpolation is as steep as the network drew it
    magnitude = logits.abs().clamp(min=_LEAST_LOGIT)
    return torch.where(where, torch.where(logits > 0, -magnitude, magnitude), logits)


def _without_small_regions(mask: np.ndarray, min_percent: float) -> np.ndarray:
    """Return a mask (h, w) bool without its small parts and holes."""
    limit = min_percent / 100 * mask.sum()
    parts, sizes = _label_regions(mask, _PART_CONNECTIVITY)
    kept = sizes >= min(limit, sizes.max())
    kept[0] = False
    # only then the holes: a hole includes the parts in it that were dropped
    without_parts: np.ndarray = kept[parts]
    holes, sizes = _label_regions(~without_parts, _HOLE_CONNECTIVITY)
    filled = sizes < limit
    for border in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        filled[border] = False
    filled[0] = True
    return filled[holes]


def _label_regions(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each pixel's region, 0 outside the mask, and the sizes of all regions, 0 for number 0."""
    from skimage.measure import label  # imported before, see network.py

    regions = label(mask.view(np.uint8), connectivity=connectivity)  # for booleans, it would import more
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return regions, sizes
