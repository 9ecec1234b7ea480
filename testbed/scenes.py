"""Synthetic scenes of colored shapes, with ground truth.

    python -m testbed.scenes scenes.png    # write a sheet of scenes

A scene depends only on a NumPy random generator, so a seed defines a data set. A shape may have a dot on it, which
makes three regions: the whole shape, the dot, and the ring around the dot.
"""

from __future__ import annotations

import argparse
import colorsys
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

KINDS = ("circle", "square", "triangle", "star", "cross")
HUES = {  # in degrees: the middle of the range, and half its width
    "red": (0, 7),
    "orange": (32, 7),
    "yellow": (57, 5),
    "green": (122, 22),
    "blue": (224, 18),
    "purple": (286, 14),
}
COLORS = tuple(HUES)
DOT_COLORS = ("white", "black")
ANY_SHAPE = ("shape", "object")
SYNONYMS = {"disc": "circle", "spot": "dot", "thing": "object", "violet": "purple"}
ARTICLES = ("a", "an", "the")

MOST_SHAPES = 8
LEAST_VISIBLE = 0.7  # share of each shape and dot that stays visible when others are drawn over it
LEAST_CONTRAST = 0.25  # between a shape and what is under it, in at least one channel, so that its edge is visible
SMALLEST_RADIUS = 0.06  # radii are relative to the geometric mean of the scene's sides
LARGEST_RADIUS = 0.3
SMALLEST_RADIUS_WITH_DOT = 0.1
PLACES_TRIED = 20


def plural(noun: str) -> str:
    """Return the regular plural: "stars", "crosses"."""
    return noun + ("es" if noun.endswith("s") else "s")


_NOUNS = (*KINDS, *ANY_SHAPE, "dot", *(word for word, meaning in SYNONYMS.items() if meaning not in COLORS))
_SINGULAR = {plural(noun): noun for noun in _NOUNS}
# all words that :meth:`Scene.instances` understands
VOCABULARY = (*ARTICLES, *COLORS, *DOT_COLORS, *SYNONYMS, *_NOUNS, *_SINGULAR)

# radius of the largest dot that fits on a shape of radius 1 and thickness 1
_ROOM_FOR_A_DOT = {"circle": 0.9, "square": 0.78, "triangle": 0.5, "star": 0.45, "cross": 0.4}
THICKNESSES = {"star": (0.82, 1.1), "cross": (0.8, 1.15)}  # ranges for the arms


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two masks (H, W) bool; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


@dataclass(frozen=True, eq=False)
class Region:
    """Something in a scene that a prompt can ask for.

    Attributes:
        coverage: (H, W) float32, 0..1, the visible share of this region in each pixel.
    """

    coverage: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """The mask (H, W) bool."""
        return self.coverage > 0.5

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The bounds of the mask, (x1, y1, x2, y2) in pixels."""
        mask = self.mask
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


@dataclass(frozen=True, eq=False)
class Shape:
    """A shape in a scene.

    Attributes:
        kind: one of :data:`KINDS`.
        color: one of :data:`COLORS`.
        whole: the shape with its dot.
        dot: None if there is no dot.
        dot_color: one of :data:`DOT_COLORS`; None if there is no dot.
    """

    kind: str
    color: str
    whole: Region
    dot: Region | None = None
    dot_color: str | None = None

    def is_like(self, other: Shape) -> bool:
        """Return whether both shapes have the same kind and color."""
        return (self.kind, self.color) == (other.kind, other.color)

    @functools.cached_property
    def ring(self) -> Region:
        """The shape without its dot."""
        return Region(self.whole.coverage - self.dot.coverage) if self.dot else self.whole


@dataclass(frozen=True, eq=False)
class Scene:
    """A synthetic image and its shapes.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        shapes: in the order in which they were drawn; later shapes may cover earlier ones.
    """

    image: np.ndarray
    shapes: tuple[Shape, ...]

    def instances(self, phrase: str) -> list[Region]:
        """Return every region that a phrase names, such as "star", "red disc", "blue shapes" or "the white dot".

        All other phrases name nothing.
        """
        words = phrase.lower().split()
        words = words[1:] if words[:1] and words[0] in ARTICLES else words
        *adjectives, noun = [SYNONYMS.get(word, word) for word in (_SINGULAR.get(word, word) for word in words)] or [""]
        if len(adjectives) > 1:
            return []
        color = adjectives[0] if adjectives else None
        if noun == "dot":
            return [shape.dot for shape in self.shapes if shape.dot and color in (None, shape.dot_color)]
        return [
            shape.whole
            for shape in self.shapes
            if (noun == shape.kind or noun in ANY_SHAPE) and color in (None, shape.color)
        ]


_Window = tuple[slice, slice]  # rows and columns of the canvas


@dataclass
class _Layer:
    """A shape or dot on the canvas: its color, its visible coverage of each pixel, its area and its visible area."""

    color: np.ndarray
    coverage: np.ndarray
    area: float
    visible_area: float


class _Canvas:
    """A scene in progress: colors in 0..1, and the layers so far."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.layers: list[_Layer] = []

    def has_room(self, window: _Window, coverage: np.ndarray, color: np.ndarray) -> bool:
        """Return whether all layers, and their edges, stay visible if ``coverage`` is drawn in ``window``."""
        for layer in self.layers:
            hidden = float((layer.coverage[window] * coverage).sum())
            if layer.visible_area - hidden < LEAST_VISIBLE * layer.area:
                return False
            if hidden and np.abs(layer.color - color).max() < LEAST_CONTRAST:
                return False
        return True

    def paint(self, window: _Window, coverage: np.ndarray, color: np.ndarray) -> None:
        """Draw a color (3,) or (h, w, 3) in a window."""
        self.image[window] += coverage[..., np.newaxis] * (color - self.image[window])

    def cover(self, window: _Window, coverage: np.ndarray) -> None:
        """Reduce the visible coverage of all layers by what ``coverage`` hides."""
        for layer in self.layers:
            hidden = layer.coverage[window] * coverage
            layer.coverage[window] -= hidden
            layer.visible_area -= float(hidden.sum())

    def note(self, window: _Window, coverage: np.ndarray, color: np.ndarray) -> _Layer:
        """Add a layer on top of all others."""
        area = float(coverage.sum())
        layer = _Layer(color, np.zeros(self.image.shape[:2], np.float32), area, area)
        layer.coverage[window] = coverage
        self.layers.append(layer)
        return layer


def draw_scene(random: np.random.Generator, width: int = 448, height: int = 448) -> Scene:
    """Draw a scene.

    Args:
        random: source of all randomness.
        width: of the image, in pixels; 64 or more, at most twice the height.
        height: of the image, in pixels; 64 or more, at most twice the width.

    Returns:
        A scene with 1 to :data:`MOST_SHAPES` shapes, each mostly visible.
    """
    canvas = _Canvas(draw_background(random, width, height))
    count = int(random.integers(1, MOST_SHAPES + 1))
    # most scenes have few kinds and colors, so that a phrase often matches several shapes and nearly matches others
    kinds, colors = random.choice(KINDS, random.integers(1, 4)), random.choice(COLORS, random.integers(1, 4))
    typical_radius = random.uniform(0.1, LARGEST_RADIUS if count <= 3 else 0.2)

    drawn = []
    for _ in range(count):
        kind = str(random.choice(KINDS if random.random() < 0.15 else kinds))
        color = str(random.choice(COLORS if random.random() < 0.15 else colors))
        shade = pick_color(random, color)
        placed = _place(random, canvas, kind, shade, typical_radius)
        if placed is not None:
            drawn.append(_draw_shape(random, canvas, placed, kind, color, shade))

    if random.random() < 0.6:
        canvas.image += random.normal(0, random.uniform(0.005, 0.04), (height, width, 1))
    image = np.rint(255 * canvas.image.clip(0, 1)).astype(np.uint8)
    return Scene(image, tuple(drawn))


@dataclass(frozen=True)
class _Placement:
    """Where a shape is: a window of the canvas, and coordinates (u, v) in it, in which the shape has radius 1."""

    window: _Window
    u: np.ndarray
    v: np.ndarray
    radius: float  # in pixels
    thickness: float
    coverage: np.ndarray


def _place(
    random: np.random.Generator, canvas: _Canvas, kind: str, shade: np.ndarray, typical_radius: float
) -> _Placement | None:
    """Find a random place, size, rotation and stretch with room for a shape; return None if there is no room."""
    height, width = canvas.image.shape[:2]
    for _ in range(PLACES_TRIED):
        relative_radius = np.clip(typical_radius * random.uniform(0.5, 1.1), SMALLEST_RADIUS, LARGEST_RADIUS)
        radius = float(relative_radius * np.sqrt(width * height))
        stretch = np.exp(random.uniform(-0.2, 0.2))
        reach = radius * max(stretch, 1 / stretch)  # in pixels, in any direction
        margin = 0.85 * reach
        if 2 * margin >= min(width, height):
            continue
        centre_x, centre_y = random.uniform(margin, width - margin), random.uniform(margin, height - margin)
        turn = 0.0 if random.random() < 0.3 else random.uniform(0, 2 * np.pi)

        rows = slice(max(0, int(centre_y - 1.15 * reach)), int(centre_y + 1.15 * reach) + 2)
        columns = slice(max(0, int(centre_x - 1.15 * reach)), int(centre_x + 1.15 * reach) + 2)
        y = np.arange(height, dtype=np.float32)[rows, np.newaxis] + 0.5
        x = np.arange(width, dtype=np.float32)[np.newaxis, columns] + 0.5
        dx, dy = (x - centre_x) / (radius * stretch), (y - centre_y) * stretch / radius
        u = np.cos(turn) * dx + np.sin(turn) * dy
        v = -np.sin(turn) * dx + np.cos(turn) * dy
        thickness = float(random.uniform(*THICKNESSES.get(kind, (1, 1))))
        coverage = coverage_of(signed_distance(kind, u, v, thickness), radius)
        if canvas.has_room((rows, columns), coverage, shade):
            return _Placement((rows, columns), u, v, radius, thickness, coverage)
    return None


def _draw_shape(
    random: np.random.Generator, canvas: _Canvas, placed: _Placement, kind: str, color: str, shade: np.ndarray
) -> Shape:
    """Draw a shape, sometimes with a dot on it."""
    shading = 1 + random.uniform(-0.12, 0.12) * placed.u + random.uniform(-0.12, 0.12) * placed.v
    canvas.paint(placed.window, placed.coverage, (shade * shading[..., np.newaxis]).clip(0, 1))
    canvas.cover(placed.window, placed.coverage)
    whole = Region(canvas.note(placed.window, placed.coverage, shade).coverage)
    if placed.radius < SMALLEST_RADIUS_WITH_DOT * np.sqrt(whole.coverage.size) or random.random() > 0.45:
        return Shape(kind, color, whole)

    room = _ROOM_FOR_A_DOT[kind] * placed.thickness
    dot_radius = room * random.uniform(0.5, 0.72) if room > 0.6 else room * random.uniform(0.75, 0.95)
    off_centre = random.uniform(-0.5, 0.5, 2) * (room - dot_radius)
    distance = np.hypot(placed.u - off_centre[0], placed.v - off_centre[1]) - dot_radius
    coverage = coverage_of(distance, placed.radius) * placed.coverage
    dot_color = str(random.choice(DOT_COLORS))
    dot_shade = np.full(3, random.uniform(0.92, 1.0) if dot_color == "white" else random.uniform(0.0, 0.1))
    canvas.paint(placed.window, coverage, dot_shade)
    dot = Region(canvas.note(placed.window, coverage, dot_shade).coverage)  # part of its shape, so it covers nothing
    return Shape(kind, color, whole, dot, dot_color)


def coverage_of(signed_distance: np.ndarray, radius: float) -> np.ndarray:
    """Return the share of each pixel that is inside, from a signed distance in units of ``radius`` pixels."""
    return np.clip(0.5 - signed_distance * radius, 0, 1).astype(np.float32)


def signed_distance(kind: str, u: np.ndarray, v: np.ndarray, thickness: float = 1.0) -> np.ndarray:
    """Return the distance to the edge of a shape, negative inside; its circumscribed circle has about radius 1."""
    if kind == "circle":
        return np.hypot(u, v) - 0.9
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.78
    if kind == "triangle":
        slanted = np.sqrt(3) / 2 * np.abs(u) - 0.5 * v
        return np.maximum(v, slanted) - 0.5
    if kind == "star":
        return _distance_to_star(u, v, notch_radius=0.45 * thickness)
    if kind == "cross":
        long, short = 0.95, 0.32 * thickness
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - long, b - short), np.maximum(a - short, b - long))
    raise ValueError(f"{kind!r} is not a kind of shape")


def _distance_to_star(u: np.ndarray, v: np.ndarray, notch_radius: float) -> np.ndarray:
    """Return the distance to the edge of a star; by symmetry, all edges fold onto one, from a tip at angle 0."""
    sector = 2 * np.pi / 5
    from_tip = np.abs(np.mod(np.arctan2(u, -v) + sector / 2, sector) - sector / 2)
    along, across = np.hypot(u, v) * np.cos(from_tip), np.hypot(u, v) * np.sin(from_tip)
    edge = np.array([notch_radius * np.cos(sector / 2) - 1, notch_radius * np.sin(sector / 2)])
    return ((along - 1) * edge[1] - across * edge[0]) / np.hypot(*edge)


def pick_color(random: np.random.Generator, name: str) -> np.ndarray:
    """Pick a random color that the name describes, (3,) RGB 0..1."""
    middle, spread = HUES[name]
    hue = ((middle + random.uniform(-spread, spread)) % 360) / 360
    darkest = 0.8 if name in ("yellow", "orange") else 0.48  # dark yellow is olive, dark orange is brown
    return np.array(colorsys.hsv_to_rgb(hue, random.uniform(0.72, 1.0), random.uniform(darkest, 1.0)))


def draw_background(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a background (H, W, 3) 0..1: plain, gradient, blotches or stripes, in pale colors that hide no shapes."""
    grey = colorsys.hsv_to_rgb(random.random(), random.uniform(0, 0.25), random.uniform(0.03, 0.97))
    image = np.empty((height, width, 3), np.float64)
    image[:] = grey
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1) - 0.5
    kind = random.choice(["plain", "gradient", "blotches", "stripes"])
    if kind == "gradient":
        slope = random.uniform(-1, 1) * x + random.uniform(-1, 1) * y
        image += (random.uniform(0.1, 0.5) * slope)[..., np.newaxis]
    elif kind == "blotches":
        cells = int(random.integers(4, 30))
        channels = 3 if random.random() < 0.3 else 1
        values = random.normal(0, random.uniform(0.01, 0.07), (cells, cells, channels))
        image += values[np.arange(height) * cells // height][:, np.arange(width) * cells // width]
    elif kind == "stripes":
        turn, waves = random.uniform(0, np.pi), random.uniform(3, 20)
        stripes = np.sin(2 * np.pi * waves * (np.cos(turn) * x + np.sin(turn) * y))
        image += (random.uniform(0.02, 0.1) * stripes)[..., np.newaxis]
    return image.clip(0, 1)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Draw a sheet of scenes.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    rows = [np.hstack([draw_scene(random, width, 240).image for width in (240, 480, 160, 320)]) for _ in range(4)]
    PIL.Image.fromarray(np.vstack(rows)).save(arguments.path)


if __name__ == "__main__":
    _main()
