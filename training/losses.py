"""Losses and matchings that more than one head uses."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, max_pool2d

Losses = dict[str, torch.Tensor]  # weighted, so that their sum is what is minimised


def mask_losses(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far mask logits are from masks.

    Cross entropy says what each pixel should be, edges included, since a pixel's target is its coverage. A small
    region is few of all pixels, so half of the weight goes to the region and its neighbourhood; dice, which counts in
    relation to the region's area, does the rest.

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
    """Pair rows with columns so that the sum of their costs is least (Hungarian method).

    Args:
        cost: (rows, columns).

    Returns:
        Row and column numbers of the pairs, as many as the shorter side has.
    """
    rows, columns = linear_sum_assignment(torch.nan_to_num(cost.float(), 1e3, 1e3, -1e3).cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def mask_iou(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boolean masks (..., side, side)."""
    intersection = (one & other).flatten(-2).sum(-1)
    return intersection / (one | other).flatten(-2).sum(-1).clamp(min=1)
