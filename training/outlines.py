"""The losses of the mask decoder: the region that points and boxes ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sam3_engine.model import Sam3Image

from .batches import Batch, OutlinePrompts
from .losses import Losses, cheapest_pairs, mask_iou, mask_losses

# at the detector's own weights, its gradients in the image encoder are seven times larger and dominate
WEIGHTS = {"mask": 10.0, "dice": 5.0, "iou": 4.0}


def outline_losses(network: Sam3Image, features: Mapping[str, Any], batch: Batch) -> Losses:
    """Answer all points and boxes of a batch with the mask decoder, and return the losses.

    Args:
        network: in evaluation mode.
        features: of the batch's images, from the image encoder.
        batch: with prompts.
    """
    tracker = network.inst_interactive_predictor.model
    fine, middle, coarse = features["sam2_backbone_out"]["backbone_fpn"]
    decoder = tracker.sam_mask_decoder
    pyramid = decoder.conv_s0(fine), decoder.conv_s1(middle), coarse + tracker.no_mem_embed.reshape(1, -1, 1, 1)
    losses: Losses = {}
    for prompts in batch.outlines:
        logits, ious = _predict(tracker, pyramid, prompts)
        for name, loss in _losses(logits.float(), ious.float(), prompts, batch).items():
            losses[name] = losses.get(name, torch.zeros_like(loss)) + loss
    return losses


def _predict(
    tracker: Any, pyramid: tuple[torch.Tensor, torch.Tensor, torch.Tensor], prompts: OutlinePrompts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict mask logits (N, 4, side, side) and IoUs (N, 4): first the single mask, then the three candidates.

    Does what the package's predictor does, for a batch of images and with gradients.
    """
    encoder = tracker.sam_prompt_encoder
    fine, middle, tokens = (level[prompts.scenes] for level in pyramid)
    sparse, dense = encoder(points=(prompts.points * tracker.image_size, prompts.labels), boxes=None, masks=None)
    logits, ious, *_ = tracker.sam_mask_decoder.predict_masks(
        image_embeddings=tokens,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=[fine, middle],
    )
    return logits, ious


def _losses(logits: torch.Tensor, ious: torch.Tensor, prompts: OutlinePrompts, batch: Batch) -> Losses:
    """Return the losses of the masks and of the IoU estimates.

    The first mask learns the answer. Each acceptable region teaches one of the other three masks.
    """
    masks = batch.masks[prompts.answers]
    single_entropy, single_dice = mask_losses(logits[:, 0], masks)

    owners = [number for number, regions in enumerate(prompts.acceptable) for _ in regions]
    acceptable = batch.masks[[region for regions in prompts.acceptable for region in regions]]
    candidates = logits[owners, 1:]  # (acceptable, 3, side, side)
    with torch.no_grad():
        entropy, dice = mask_losses(candidates.flatten(0, 1), acceptable.repeat_interleave(candidates.shape[1], dim=0))
        cost = (WEIGHTS["mask"] * entropy + WEIGHTS["dice"] * dice).reshape(len(owners), -1)
        rows, tokens = _assign(cost, [len(regions) for regions in prompts.acceptable])
        true_ious = _true_ious(logits > 0, masks > 0.5, acceptable > 0.5, owners)
    multi_entropy, multi_dice = mask_losses(candidates[rows, tokens], acceptable[rows])
    losses = {
        "mask": single_entropy.mean() + multi_entropy.mean(),
        "dice": single_dice.mean() + multi_dice.mean(),
        "iou": (ious - true_ious).square().mean(),
    }
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}


def _assign(cost: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Assign a different token to each acceptable region of a prompt; ``counts`` is the number of rows per prompt."""
    rows, tokens = [], []
    start = 0
    for count in counts:
        regions, chosen = cheapest_pairs(cost[start : start + count])
        rows.append(start + regions)
        tokens.append(chosen)
        start += count
    return torch.cat(rows), torch.cat(tokens)


def _true_ious(found: torch.Tensor, masks: torch.Tensor, acceptable: torch.Tensor, owners: list[int]) -> torch.Tensor:
    """Return (N, 4) the IoU of the single mask with the answer, and of the others with their best acceptable region."""
    ious = torch.zeros(found.shape[:2], device=found.device)
    ious[:, 0] = mask_iou(found[:, 0], masks)
    of_others = mask_iou(found[owners, 1:], acceptable[:, None])
    for row, owner in enumerate(owners):
        ious[owner, 1:] = torch.maximum(ious[owner, 1:], of_others[row])
    return ious
