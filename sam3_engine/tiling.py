"""Where to look in a large image: tiles that cover it, and windows around prompts.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .mask_crops import Window
from .prompts import Box

_MARGIN = 1 / 4  # of a box, on each side
_NEXT_LEVEL = 3  # how much larger the tiles of the next level are
_LEAST_REDUCTION = 1.5  # of the whole image against the level before it


def tile_levels(width: int, height: int, size: int, overlap: float) -> list[list[Window]]:
    """Cover an image with tiles of several sizes, so that things of every size are a good part of some tile.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: side of the smallest tiles, in pixels.
        overlap: 0 to 0.9, see :func:`tile_image`.

    Returns:
        The tiles of :func:`tile_image`; for very large images, tiles that are 3, 9, ... times as large; and the image.
    """
    levels = [tile_image(width, height, side, overlap) for side in _sides(width, height, size)]
    return [*levels, [(0, 0, width, height)]]


def count_tiles(width: int, height: int, size: int, overlap: float) -> int:
    """Return how many windows :func:`tile_levels` returns, all levels together; see there."""
    return 1 + sum(
        len(_starts(width, side, overlap)) * len(_starts(height, side, overlap)) for side in _sides(width, height, size)
    )


def _sides(width: int, height: int, size: int) -> list[int]:
    """Return the side of the tiles of each level but the last."""
    sides = [size]
    while sides[-1] * _NEXT_LEVEL * _LEAST_REDUCTION < max(width, height):
        sides.append(sides[-1] * _NEXT_LEVEL)
    return sides


def tile_image(width: int, height: int, size: int, overlap: float) -> list[Window]:
    """Cover an image with equal square tiles, row by row.

    Neighbors have at least ``overlap`` of a tile in common. The first and the last tile of a row touch the image's
    borders, and the others are spread evenly between them, so no tile reaches beyond the image. Where the image is
    smaller than a tile, the tile is as large as the image.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: side of a tile, in pixels.
        overlap: 0 to 0.9, the least share of a tile that it has in common with the next.

    Returns:
        (x1, y1, x2, y2) of each tile; only the image itself if it is not larger than a tile.
    """
    return [
        (x, y, x + min(size, width), y + min(size, height))
        for y in _starts(height, size, overlap)
        for x in _starts(width, size, overlap)
    ]


def _starts(side: int, size: int, overlap: float) -> list[int]:
    """Return where the tiles along one axis start."""
    free = side - size
    if free <= 0:
        return [0]
    steps = math.ceil(free / max(1, math.floor(size * (1 - overlap))))
    return [round(step * free / steps) for step in range(steps + 1)]


def windows_around(boxes: Sequence[Box], width: int, height: int, size: int) -> list[tuple[Window, list[int]]]:
    """Find square windows around boxes, a window for several boxes where they fit in one.

    A box and a margin of a quarter of it on each side fit in its window: if they are larger than ``size``, so is the
    window. It lies inside the image, and is smaller if the image is.

    Args:
        boxes: (x1, y1, x2, y2) in source pixels, inside the image.
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: side of a window, in pixels.

    Returns:
        Windows, each with the indices of its boxes.
    """
    groups: list[tuple[Box, list[int]]] = []
    for index, box in enumerate(boxes):
        wanted = _with_margin(box, width, height)
        for number, (bounds, members) in enumerate(groups):
            together = bounds_of((bounds, wanted))
            if max(together[2] - together[0], together[3] - together[1]) <= size:
                groups[number] = (together, [*members, index])
                break
        else:
            groups.append((wanted, [index]))
    return [(_window(bounds, width, height, size), members) for bounds, members in groups]


def _with_margin(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    x_margin, y_margin = _MARGIN * (x2 - x1), _MARGIN * (y2 - y1)
    return max(0.0, x1 - x_margin), max(0.0, y1 - y_margin), min(width, x2 + x_margin), min(height, y2 + y_margin)


def bounds_of(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that contains all boxes."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _window(bounds: Box, width: int, height: int, size: int) -> Window:
    """Return a square around ``bounds``, moved inside the image."""
    x1, y1, x2, y2 = bounds
    side = max(size, math.ceil(max(x2 - x1, y2 - y1)) + 2)  # the start is rounded down
    wide, high = min(side, width), min(side, height)
    left = min(max(0, math.floor((x1 + x2 - wide) / 2)), width - wide)
    top = min(max(0, math.floor((y1 + y2 - high) / 2)), height - high)
    return left, top, left + wide, top + high
