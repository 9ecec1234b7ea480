"""Which of the segments that were found stay, as the options ask for.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from .areas import drop_by_area
from .nms import drop_duplicates
from .options import Options
from .prompts import EverythingPrompt, Prompt
from .regions import remove_small_regions
from .segments import Segment, best

_DUPLICATE_IOU = 0.7  # of what several points of a grid find


def duplicate_iou(prompt: Prompt, options: Options) -> float:
    """Return the IoU above which of two masks only the better one stays."""
    return min(_DUPLICATE_IOU, options.iou_threshold) if isinstance(prompt, EverythingPrompt) else options.iou_threshold


def select_instances(segments: Sequence[Segment], prompt: Prompt, options: Options) -> list[Segment]:
    """Clean masks, and drop instances, as the options ask for.

    Args:
        segments: of one image, phrase by phrase, each by descending score.
        prompt: of concepts, or of everything.
        options: the smallest region, the IoU of duplicates, the limits of areas and the number of instances.

    Returns:
        The others, in their order.
    """
    segments = remove_small_regions(segments, options.min_region_percent)
    segments = drop_duplicates(segments, duplicate_iou(prompt, options))
    segments = drop_by_area(segments, options.min_area_percent, options.max_area_percent)
    return [segments[index] for index in best(segments, options.max_detections or len(segments))]
