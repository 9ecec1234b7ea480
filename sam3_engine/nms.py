"""Non-maximum suppression by masks.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .mask_crops import MaskIndex
from .segments import Segment, by_descending_score, crops_of, logits_of

_BLOCK_SIZE = 256  # bounds the memory of comparing masks


def drop_duplicates(segments: Sequence[Segment], iou_threshold: float) -> list[Segment]:
    """Drop segments that overlap a better one too much: greedy non-maximum suppression.

    The IoU is that of the masks at the network's resolution (positive logits), or with tiles at source size. Labels do
    not matter.

    Args:
        segments: all of the same image and network.
        iou_threshold: 0..1; a segment is dropped if its IoU with a better one that is kept exceeds it. 1 keeps all.

    Returns:
        The others, in their order.
    """
    if iou_threshold >= 1 or len(segments) < 2:
        return list(segments)
    by_score = by_descending_score(segments)
    kept: list[int] = []
    if crops := crops_of(segments):
        better = MaskIndex()
        for index in by_score:
            if not any(better[number].iou(crops[index]) > iou_threshold for number in better.near(crops[index])):
                kept.append(index)
                better.add(crops[index])
        return [segments[index] for index in sorted(kept)]
    logits = logits_of(segments)
    for start in range(0, len(by_score), _BLOCK_SIZE):
        block = by_score[start : start + _BLOCK_SIZE]
        masks = _binary_masks([logits[index] for index in block])
        duplicate = np.zeros(len(block), bool)
        for earlier in range(0, len(kept), _BLOCK_SIZE):
            others = _binary_masks([logits[index] for index in kept[earlier : earlier + _BLOCK_SIZE]])
            duplicate |= (_pairwise_iou(masks, others) > iou_threshold).any(dim=1).cpu().numpy()
        overlapping = (_pairwise_iou(masks, masks) > iou_threshold).cpu().numpy()
        for index in range(len(block)):
            if not duplicate[index]:
                kept.append(block[index])
                duplicate |= overlapping[index]
    return [segments[index] for index in sorted(kept)]


def _binary_masks(mask_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return (masks, h * w) zeros and ones in float32, in which the sums of a mask are exact."""
    return torch.stack([logits > 0 for logits in mask_logits]).flatten(1).float()


def _pairwise_iou(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return (n, m) the IoU of each of n masks with each of m others; 0 if both are empty."""
    with torch.autocast(masks.device.type, enabled=False):  # it would round the sums
        intersection = masks @ others.T
    union = masks.sum(dim=1)[:, None] + others.sum(dim=1) - intersection
    return intersection / union.clamp(min=1)
