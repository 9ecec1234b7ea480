"""Segments: what the predictor returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .prompts import Box

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Segment:
    """One segmented object.

    Attributes:
        mask_logits: (h, w) at the network's mask resolution, covering the whole image, in the network's dtype.
        width, height: of the source image, in pixels.
        score: 0..1. Instances: SAM 3's confidence. Points and boxes: its estimate of the mask's IoU.
        label: the phrase, or "object".
        detected_box: the detector's (x1, y1, x2, y2) in source pixels, clipped to the image; instances only.
    """

    mask_logits: torch.Tensor
    width: int
    height: int
    score: float
    label: str
    detected_box: Box | None = None

    @property
    def mask(self) -> np.ndarray:
        """The mask (height, width) bool at source size. Computed on each access: many segments take little memory."""
        from .masks import masks_of

        (mask,) = masks_of([self])
        return mask.view(np.bool_)

    @property
    def box(self) -> Box:
        """The box (x1, y1, x2, y2) in source pixels: the detected one, or that of the mask; all 0 if that is empty."""
        from .masks import bounding_box

        return self.detected_box or bounding_box(self.mask)


def by_descending_score(segments: Sequence[Segment]) -> list[int]:
    """Return the indices of segments, best first; equal scores keep their order."""
    return sorted(range(len(segments)), key=lambda index: -segments[index].score)


def best(segments: Sequence[Segment], count: int) -> list[int]:
    """Return the indices of the ``count`` best segments, all if there are fewer, in the order of ``segments``."""
    return sorted(by_descending_score(segments)[:count])
