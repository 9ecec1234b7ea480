"""Scenes from another renderer: Pillow's primitives on plain backgrounds.

A network that has learned shapes, rather than the style of :mod:`testbed.scenes`, recognizes these too.
"""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw

from testbed.scenes import COLORS, KINDS, Region, Scene, Shape

SMALLEST_SIDE, LARGEST_SIDE = 300, 1600
# two of each: the pure color, and a softer one
RGB = {
    "red": ((255, 0, 0), (220, 20, 30)),
    "orange": ((255, 140, 0), (245, 130, 20)),
    "yellow": ((255, 255, 0), (250, 235, 20)),
    "green": ((0, 128, 0), (0, 200, 40)),
    "blue": ((0, 0, 255), (30, 110, 230)),
    "purple": ((160, 32, 240), (128, 0, 160)),
}
BACKGROUNDS = ((255, 255, 255), (0, 0, 0), (128, 128, 128), (225, 220, 210), (50, 60, 70))


def draw_with_pillow(random: np.random.Generator) -> Scene:
    """Draw 1 to 6 shapes that do not touch, in an image with sides of 300 to 1600 pixels, at most 2:1."""
    width = round(np.exp(random.uniform(np.log(SMALLEST_SIDE), np.log(LARGEST_SIDE))))
    height = round(np.clip(width * 2 ** random.uniform(-1, 1), SMALLEST_SIDE, LARGEST_SIDE))
    image = PIL.Image.new("RGB", (width, height), BACKGROUNDS[random.integers(len(BACKGROUNDS))])
    taken = np.zeros((height, width), bool)
    shapes = []
    for _ in range(int(random.integers(1, 7))):
        kind, color = str(random.choice(KINDS)), str(random.choice(COLORS))
        stencil = _stencil(random, kind, width, height, taken)
        if stencil is None:
            continue
        mask = np.asarray(stencil) > 0
        taken |= mask
        image.paste(RGB[color][random.integers(2)], mask=stencil)
        shapes.append(Shape(kind, color, Region(mask.astype(np.float32))))
    return Scene(np.array(image), tuple(shapes))


def _stencil(
    random: np.random.Generator, kind: str, width: int, height: int, taken: np.ndarray
) -> PIL.Image.Image | None:
    """Draw a shape, 255 on 0, where it has room and a margin; return None if there is no room."""
    for _ in range(50):
        radius = random.uniform(0.08, 0.25) * np.sqrt(width * height)
        if 2 * radius >= min(width, height):
            continue
        centre = random.uniform([radius, radius], [width - radius, height - radius])
        around = tuple(slice(max(0, int(c - 1.1 * radius)), int(c + 1.1 * radius) + 1) for c in centre[::-1])
        if taken[around].any():
            continue
        stencil = PIL.Image.new("L", (width, height))
        pen = PIL.ImageDraw.Draw(stencil)
        if kind == "circle":
            pen.ellipse([*(centre - radius), *(centre + radius)], fill=255)
        else:
            turn = 0.0 if random.random() < 0.5 else random.uniform(0, 2 * np.pi)
            pen.polygon([tuple(corner) for corner in centre + radius * corners_of(kind, turn)], fill=255)
        return stencil
    return None


def corners_of(kind: str, turn: float) -> np.ndarray:
    """Return the corners (N, 2), x and y, on the unit circle; notches lie inside it."""
    if kind == "cross":
        arm = 0.34
        quarter = np.array([[-arm, -arm], [-arm, -0.94], [arm, -0.94]])
        turns = turn + np.arange(4) * np.pi / 2
        rotations = np.stack([[np.cos(turns), np.sin(turns)], [-np.sin(turns), np.cos(turns)]]).transpose(2, 0, 1)
        return (quarter @ rotations).reshape(-1, 2)
    count, radii = {"triangle": (3, [1.0]), "square": (4, [1.0]), "star": (10, [1.0, 0.42])}[kind]
    start = np.pi / 4 if kind == "square" else 0.0
    angles = start + turn + 2 * np.pi * np.arange(count) / count
    lengths = np.resize(radii, count)
    return np.stack([lengths * np.sin(angles), -lengths * np.cos(angles)], axis=1)
