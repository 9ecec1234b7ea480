"""Options for segmenting: thresholds, number of candidates, image size."""

from __future__ import annotations

from dataclasses import dataclass

CANDIDATES = 3  # masks per object with ``multimask``
MAX_LABELS = 255  # a label map has 8 bits
SMALLEST_TILE = 64  # pixels
LARGEST_OVERLAP = 0.9


@dataclass(frozen=True)
class Options:
    """Everything that affects the segments besides the image and the prompt.

    Attributes:
        confidence_threshold: 0..1, concepts only; keep instances that score strictly above it.
        iou_threshold: 0..1, not for points and boxes; of two instances whose mask IoU exceeds it, keep the one with
            the higher score. To segment everything, at most 0.7 is used.
        max_detections: not for points and boxes; keep the instances with the highest scores, at most this many over all
            phrases. 0 keeps all.
        min_area_percent, max_area_percent: 0..100, not for points and boxes; share of the image that a mask covers at
            source size. Drop instances whose mask covers less or more.
        multimask: points and boxes only; return three candidates per object instead of one.
        size_percent: 1..100, shrink the image to this size before the image encoder.
        min_region_percent: 0..100, share of a mask's area; drop connected parts of the mask that are smaller, and fill
            holes that are smaller. The largest part always stays.
        tile_size: side of square tiles in source pixels, at least 64; look for concepts, or everything, in each tile
            and in the whole image, and segment points and boxes in a window of this size around them. 0 uses no tiles.
        tile_overlap: 0..0.9, not for points and boxes; the least share of a tile that it has in common with the next.
        predicted_iou_threshold: 0..1, segment everything only; drop masks whose IoU the network estimates to be lower.
        stability_score_threshold: 0..1, segment everything only; drop masks with a lower stability score: the IoU of
            the masks that result if the logits are cut off at +1 and at -1 instead of at 0.

    Raises:
        ValueError: a value is out of range, or no area is within the limits.
    """

    confidence_threshold: float = 0.5
    iou_threshold: float = 1.0
    max_detections: int = 0
    min_area_percent: float = 0.0
    max_area_percent: float = 100.0
    multimask: bool = False
    size_percent: int = 100
    min_region_percent: float = 0.0
    tile_size: int = 0
    tile_overlap: float = 0.2
    predicted_iou_threshold: float = 0.7
    stability_score_threshold: float = 0.9

    def __post_init__(self) -> None:
        for name in (
            "confidence_threshold",
            "iou_threshold",
            "predicted_iou_threshold",
            "stability_score_threshold",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected a number from 0 to 1.")
        if not self.max_detections >= 0:
            raise ValueError(f"max_detections = {self.max_detections!r}: expected 0 or more.")
        check_size_percent(self.size_percent)
        for name in ("min_area_percent", "max_area_percent", "min_region_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected a number from 0 to 100.")
        if self.tile_size != 0 and not self.tile_size >= SMALLEST_TILE:
            raise ValueError(f"tile_size = {self.tile_size!r}: expected 0, or {SMALLEST_TILE} or more.")
        if not 0 <= self.tile_overlap <= LARGEST_OVERLAP:
            raise ValueError(f"tile_overlap = {self.tile_overlap!r}: expected a number from 0 to {LARGEST_OVERLAP}.")
        if self.min_area_percent > self.max_area_percent:
            raise ValueError(
                f"min_area_percent = {self.min_area_percent!r}, max_area_percent = {self.max_area_percent!r}: expected "
                "a minimum that is not above the maximum."
            )


def check_size_percent(size_percent: int) -> None:
    """Raise ValueError unless ``size_percent`` is from 1 to 100."""
    if not 1 <= size_percent <= 100:
        raise ValueError(f"size_percent = {size_percent!r}: expected a number from 1 to 100.")


DEFAULTS = Options()
