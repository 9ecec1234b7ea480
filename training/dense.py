"""An auxiliary loss for the image encoder: what is at each position of the feature maps.

Training that starts with prompts stalls: prompts teach little while the image features carry no information, and the
features learn little without useful gradients from the prompts. So 1x1 convolutions, which are discarded after
training, predict from the features at every position whether there is an object, its kind, color and box, and whether
there is a white or black dot. Training starts with this loss alone and keeps it when the prompts are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from testbed.scenes import COLORS, DOT_COLORS, KINDS

from .batches import NOTHING, Batch, DenseTargets
from .losses import Losses

FEATURE_PENALTY = 0.03
LEVELS = (0, 2)  # of the feature pyramids: the one for masks, and the image tokens
_PARTS = {"object": 1, "dots": len(DOT_COLORS), "kind": len(KINDS), "color": len(COLORS), "box": 4}


class DenseHeads(torch.nn.Module):
    """A 1x1 convolution for each feature pyramid (of the detector and of the mask decoder) and level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(width, sum(_PARTS.values()), 1) for _ in range(2 * len(LEVELS))
        )

    def forward(self, features: Mapping[str, Any], batch: Batch) -> Losses:
        """Return the losses of the predictions from the image encoder's features, with ``batch.dense`` as targets."""
        pyramids = (features["backbone_fpn"], features["sam2_backbone_out"]["backbone_fpn"])
        losses: dict[str, list[torch.Tensor]] = {}
        for number, convolution in enumerate(self.convolutions):
            level = number % len(LEVELS)
            read = convolution(pyramids[number // len(LEVELS)][LEVELS[level]]).float()
            for name, loss in _losses(read, batch.dense[level]).items():
                losses.setdefault(name, []).append(loss)
        summed = {name: torch.stack(of_all).sum() for name, of_all in losses.items()}
        # position encodings have magnitude 1: much larger features would drown them in every attention
        squares = [level.float().square().mean() for pyramid in pyramids for level in pyramid]
        return {**summed, "features": FEATURE_PENALTY * torch.stack(squares).sum()}


def _losses(read: torch.Tensor, targets: DenseTargets) -> Losses:
    object_, dots, kind, color, box = read.split(list(_PARTS.values()), dim=1)
    somewhere = (targets.kind != NOTHING)[:, None]
    box_error = (box - 4 * (targets.box - 0.5)).abs() * somewhere
    return {
        "object": 2 * binary_cross_entropy_with_logits(object_[:, 0], targets.object),
        "dots": 2 * len(DOT_COLORS) * binary_cross_entropy_with_logits(dots, targets.dots),
        "kind": 0.5 * cross_entropy(kind, targets.kind, ignore_index=NOTHING),
        "color": 0.5 * cross_entropy(color, targets.color, ignore_index=NOTHING),
        "box": 2 * box_error.sum() / (4 * somewhere.sum()).clamp(min=1),
    }
