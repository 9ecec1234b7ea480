"""What the image encoder makes of an image."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .lru_cache import LRUCache
from .prompts import Box

if TYPE_CHECKING:
    import torch

    from .model import Model

CACHED_DETECTIONS = 16  # for each image; at SAM 3's size 33 MB each in bfloat16, 66 MB in float32


@dataclass(frozen=True, eq=False)
class Detections:
    """The detector's answer to a concept: all its queries, by descending score.

    Attributes:
        scores: (queries,) 0..1.
        boxes: (x1, y1, x2, y2) in source pixels, one per query.
        mask_logits: (queries, h, w), on the model's device.
    """

    scores: Sequence[float]
    boxes: Sequence[Box]
    mask_logits: torch.Tensor


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The output of the image encoder; serves any number of prompts.

    Attributes:
        features: the feature pyramids of both heads, on the model's device.
        width, height: of the source image, in pixels.
        resolution: side of the network's input, in pixels.
        precision: dtype of the matrix products that computed it.
        model: a weak reference to the model that made it.
        detections: the detector's last answers, so that changing a threshold only filters.
    """

    features: Mapping[str, Any]
    width: int
    height: int
    resolution: int
    precision: torch.dtype
    model: weakref.ref[Model] = field(repr=False)
    detections: LRUCache[Detections] = field(repr=False)

    def is_finite(self) -> bool:
        """Return whether no feature map contains NaN or infinity. This waits for the GPU."""
        import torch

        pyramids = [self.features, self.features.get("sam2_backbone_out")]
        maps = [feature_map for pyramid in pyramids if pyramid for feature_map in pyramid["backbone_fpn"]]
        return bool(torch.stack([feature_map.isfinite().all() for feature_map in maps]).all())
