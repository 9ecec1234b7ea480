"""Losses and matching that several heads share."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, max_pool2d

Losses = dict[str, torch.Tensor]  # weighted: training minimizes their sum


def mask_losses(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare mask logits with masks.

    A pixel's target is its coverage, so the cross entropy also teaches edges. A small region has few of all pixels, so
    half of the cross entropy comes from the region and its neighbourhood alone. The dice loss is relative to the area.

    Args:
        logits: (N, side, side).
        masks: (N, side, side) in 0..1; the side is a multiple of 4.

    Returns:
        Cross entropy (N,) and dice loss (N,).
    """
    per_pixel = binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1)
    with torch.no_grad():
        coarse = max_pool2d(max_pool2d(masks[:, None], 4), 3, stride=1, padding=1)
        near = interpolate(coarse, scale_factor=4, mode="nearest").flatten(1)
    cross_entropy = (per_pixel.mean(1) + (per_pixel * near).sum(1) / near.sum(1).clamp(min=1)) / 2
    found, wanted = logits.sigmoid().flatten(1), masks.flatten(1)
    dice = 1 - (2 * (found * wanted).sum(1) + 1) / (found.sum(1) + wanted.sum(1) + 1)
    return cross_entropy, dice


def cheapest_pairs(cost: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pair rows with columns at the least total cost (Hungarian method).

    Args:
        cost: (rows, columns).

    Returns:
        Row and column indices of the pairs, as many as the shorter side has.
    """
    rows, columns = linear_sum_assignment(torch.nan_to_num(cost.float(), 1e3, 1e3, -1e3).cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def mask_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the intersection over union of boolean masks (..., side, side)."""
    intersection = (one & other).flatten(-2).sum(-1)
    return intersection / (one | other).flatten(-2).sum(-1).clamp(min=1)
