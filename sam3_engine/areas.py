"""Drop segments whose masks are too small or too large.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from .segments import Segment, areas_of


def drop_by_area(segments: Sequence[Segment], min_percent: float, max_percent: float) -> list[Segment]:
    """Drop segments whose masks cover too little or too much of the image, at its size.

    Args:
        segments: all of the same image.
        min_percent: 0..100, share of the image; segments whose mask covers less are dropped. 0 keeps small ones.
        max_percent: 0..100, share of the image; segments whose mask covers more are dropped. 100 keeps large ones.

    Returns:
        The others, in their order.
    """
    if not segments or (min_percent <= 0 and max_percent >= 100):
        return list(segments)
    pixels = segments[0].width * segments[0].height
    return [
        segment
        for segment, area in zip(segments, areas_of(segments), strict=True)
        if min_percent <= 100 * area / pixels <= max_percent
    ]
