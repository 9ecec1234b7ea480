"""Large scenes of many shapes, in the style of both renderers, for judging tiles.

Masks are kept as crops: full-size ones of 300 shapes would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw

from sam3_engine.mask_crops import MaskCrop
from testbed.scenes import (
    COLORS,
    KINDS,
    THICKNESSES,
    coverage_of,
    draw_background,
    pick_color,
    signed_distance,
)

from .pillow_scenes import BACKGROUNDS, RGB, corners_of

SMALLEST, LARGEST = 40, 900  # diameters, in pixels
_SHAPES_TRIED, _PLACES_TRIED = 5, 50  # for each
_GAP = 3  # pixels between shapes that are placed freely
_TOUCHING = 0.25  # share of shapes that are placed beside another one of their kind and color


@dataclass(frozen=True)
class LargeShape:
    """A shape in a large scene.

    Attributes:
        kind: one of :data:`~testbed.scenes.KINDS`.
        color: one of :data:`~testbed.scenes.COLORS`.
        crop: its mask.
        neighbor: the index of the shape of the same kind and color that it touches, or None.
    """

    kind: str
    color: str
    crop: MaskCrop
    neighbor: int | None = None

    @property
    def diameter(self) -> int:
        """The longer side of the mask's box, in pixels."""
        x1, y1, x2, y2 = self.crop.box
        return max(x2 - x1, y2 - y1)


@dataclass(frozen=True)
class LargeScene:
    """An image (H, W, 3) uint8 RGB and its shapes, none of which covers another."""

    image: np.ndarray
    shapes: tuple[LargeShape, ...]


@dataclass(frozen=True)
class _Style:
    """One renderer: how it draws a background (H, W, 3) 0..1, a shape's coverage (h, w) 0..1, and picks its color."""

    background: Callable[[np.random.Generator, int, int], np.ndarray]
    stencil: Callable[[np.random.Generator, str, float], np.ndarray]
    color: Callable[[np.random.Generator, str], np.ndarray]


def _testbed_stencil(random: np.random.Generator, kind: str, radius: float) -> np.ndarray:
    reach = int(1.2 * radius) + 2
    y, x = (np.mgrid[-reach:reach, -reach:reach] + 0.5) / radius
    turn = 0.0 if random.random() < 0.3 else random.uniform(0, 2 * np.pi)
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    thickness = float(random.uniform(*THICKNESSES.get(kind, (1, 1))))
    return coverage_of(signed_distance(kind, u, v, thickness), radius)


def _pillow_background(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    shade = np.array(BACKGROUNDS[random.integers(len(BACKGROUNDS))]) / 255
    return np.broadcast_to(shade, (height, width, 3)).copy()


def _pillow_stencil(random: np.random.Generator, kind: str, radius: float) -> np.ndarray:
    reach = int(radius) + 2
    stencil = PIL.Image.new("L", (2 * reach, 2 * reach))
    pen = PIL.ImageDraw.Draw(stencil)
    if kind == "circle":
        pen.ellipse([reach - radius, reach - radius, reach + radius, reach + radius], fill=255)
    else:
        turn = 0.0 if random.random() < 0.5 else random.uniform(0, 2 * np.pi)
        pen.polygon([tuple(corner) for corner in reach + radius * corners_of(kind, turn)], fill=255)
    return np.asarray(stencil, np.float32) / 255


def _pillow_color(random: np.random.Generator, name: str) -> np.ndarray:
    return np.array(RGB[name][random.integers(2)]) / 255


STYLES = {
    "training generator": _Style(draw_background, _testbed_stencil, pick_color),
    "another renderer": _Style(_pillow_background, _pillow_stencil, _pillow_color),
}


def draw_large_scene(
    random: np.random.Generator, width: int, height: int, count: int, style: str, smallest: int = SMALLEST
) -> LargeScene:
    """Draw many shapes that do not cover each other; some touch one of their own kind and color.

    Args:
        random: source of all randomness.
        width: of the image, in pixels.
        height: of the image, in pixels.
        count: number of shapes; fewer are drawn if there is no room.
        style: one of :data:`STYLES`.
        smallest: diameter of the smallest shapes, in pixels.

    Returns:
        The scene. Diameters are ``smallest`` to :data:`LARGEST` pixels, evenly distributed on a logarithmic scale.
    """
    drawn = STYLES[style]
    image = drawn.background(random, width, height).astype(np.float32)
    taken = np.zeros((height, width), bool)
    shapes: list[LargeShape] = []
    for _ in range(_SHAPES_TRIED * count):
        if len(shapes) == count:
            break
        free = [index for index, shape in enumerate(shapes) if shape.neighbor is None]
        beside = int(random.choice(free)) if free and random.random() < _TOUCHING else None
        kind, color = str(random.choice(KINDS)), str(random.choice(COLORS))
        if beside is not None:
            kind, color = shapes[beside].kind, shapes[beside].color
        stencil = drawn.stencil(random, kind, _radius(random, smallest, None if beside is None else shapes[beside]))
        coverage = stencil[np.ix_(stencil.any(axis=1), stencil.any(axis=0))]
        place = _free_place(random, taken, coverage) if beside is None else _beside(taken, coverage, shapes[beside])
        if place is None:
            continue
        top, left = place
        window = np.s_[top : top + coverage.shape[0], left : left + coverage.shape[1]]
        shade = drawn.color(random, color).astype(np.float32)
        if beside is not None:  # the same shade, a little darker or lighter, so that an edge is visible
            shade = (shade * random.choice([0.75, 1.25])).clip(0, 1)
        image[window] += coverage[..., np.newaxis] * (shade - image[window])
        taken[window] |= coverage > 0
        shapes.append(LargeShape(kind, color, MaskCrop.of(coverage > 0.5, left, top), beside))
        if beside is not None:
            shapes[beside] = LargeShape(kind, color, shapes[beside].crop, len(shapes) - 1)
    return LargeScene(np.rint(255 * image.clip(0, 1)).astype(np.uint8), tuple(shapes))


def _radius(random: np.random.Generator, smallest: int, beside: LargeShape | None) -> float:
    if beside is not None:
        return float(np.clip(beside.diameter / 2 * random.uniform(0.8, 1.2), smallest / 2, LARGEST / 2))
    return float(np.exp(random.uniform(np.log(smallest / 2), np.log(LARGEST / 2))))


def _free_place(random: np.random.Generator, taken: np.ndarray, coverage: np.ndarray) -> tuple[int, int] | None:
    """Return a random top and left where a shape has room."""
    height, width = coverage.shape
    for _ in range(_PLACES_TRIED):
        if height + 2 * _GAP > taken.shape[0] or width + 2 * _GAP > taken.shape[1]:
            return None
        top = int(random.integers(_GAP, taken.shape[0] - height - _GAP + 1))
        left = int(random.integers(_GAP, taken.shape[1] - width - _GAP + 1))
        if not taken[top - _GAP : top + height + _GAP, left - _GAP : left + width + _GAP].any():
            return top, left
    return None


def _beside(taken: np.ndarray, coverage: np.ndarray, shape: LargeShape) -> tuple[int, int] | None:
    """Return a top and left right of a shape, so that both just touch; None if there is no room."""
    height, width = coverage.shape
    x1, y1, x2, y2 = shape.crop.box
    top = (y1 + y2 - height) // 2
    stencil = coverage > 0
    for left in range(x1, x2 + 1):
        if top < 0 or top + height > taken.shape[0] or left + width > taken.shape[1]:
            return None
        if not (taken[top : top + height, left : left + width] & stencil).any():
            return top, left
    return None
