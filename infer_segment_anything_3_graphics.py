"""Reads graphics, which the user draws or another task detects, as a drawing."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ikomia import core, dataprocess

from .sam3_engine.prompt_strings import Drawing
from .sam3_engine.prompts import Box

_POLYGONS = (core.GraphicsItem.POLYGON, core.GraphicsItem.COMPLEX_POLYGON)
_NO_CATEGORY = core.GraphicsRectProperty().category  # of what is drawn by hand
_CAPTION = re.compile(r"(.*) #-?\d+: -?\d+[.,]\d{6}", re.DOTALL)


@dataclass(frozen=True)
class _Shape:
    """A rectangle, ellipse or polygon: its bounds, and its category as Ikomia has it."""

    bounds: Box
    category: str
    is_polygon: bool


def read_drawing(graphics: dataprocess.CGraphicsInput, width: int, height: int) -> Drawing:
    """Return the graphics on an image of ``width`` x ``height`` pixels as a drawing.

    Ikomia turns each detection of another task into a rectangle, or a polygon if it is rotated, and a caption with its
    label, number and confidence. For objects with masks, the outlines of the mask are between these two. Such captions
    and outlines are not part of the drawing.
    """
    shapes: list[_Shape] = []
    points, others = [], []
    follows_shape = False
    for item in graphics.get_items():
        kind = item.get_type()
        caption = _CAPTION.fullmatch(item.text) if follows_shape and kind == core.GraphicsItem.TEXT else None
        corners = _corners(item)
        if caption:
            _name_detection(shapes, caption[1])
        elif corners:
            xs, ys = zip(*corners, strict=True)
            bounds = (min(xs), min(ys), max(xs), max(ys))
            shapes.append(_Shape(bounds, item.get_category(), kind in _POLYGONS))
        elif kind == core.GraphicsItem.POINT:
            points.append((item.point.x, item.point.y))
        else:
            others.append(kind.name.lower())
        follows_shape = bool(corners)
    return Drawing(
        tuple(shape.bounds for shape in shapes),
        tuple(points),
        tuple(others),
        width,
        height,
        tuple("" if shape.category == _NO_CATEGORY else shape.category for shape in shapes),
    )


def _name_detection(shapes: list[_Shape], label: str) -> None:
    """Give the label of a detection to its shape, and drop the outlines, which follow the shape."""
    while shapes[-1].is_polygon and len(shapes) > 1 and shapes[-2].category == shapes[-1].category == label:
        shapes.pop()
    shapes[-1] = replace(shapes[-1], category=label)


def _corners(item: core.CGraphicsItem) -> list[tuple[float, float]]:
    """Return points (x, y) whose bounds are those of a rectangle, ellipse or polygon; none for other graphics."""
    kinds, kind = core.GraphicsItem, item.get_type()
    if kind in (kinds.RECTANGLE, kinds.ELLIPSE):
        return [(item.x, item.y), (item.x + item.width, item.y + item.height)]
    if kind in _POLYGONS:
        return [(point.x, point.y) for point in (item.points if kind == kinds.POLYGON else item.outer)]
    return []
