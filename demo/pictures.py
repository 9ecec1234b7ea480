"""Draw prompts and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ikomia  # noqa: F401 - adds the cv2 that it ships to the path

# isort: split
import cv2
import numpy as np
import PIL.Image

from sam3_engine.image_files import read_image

CAPTION_HEIGHT, CAPTION_MARGIN = 28, 6
CAPTION_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.5)
BOX_COLOR = (20, 20, 20)
_LABEL_COLORS = {1: (60, 200, 60), 0: (230, 40, 40)}

Color = Sequence[int]  # RGB, 0..255


def tint(picture: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Tint and outline a mask (H, W) bool in a picture (H, W, 3) uint8 RGB, in place."""
    pen = _pen(picture)
    picture[mask] = np.rint(0.45 * picture[mask] + 0.55 * np.array(color)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, (255, 255, 255), 3 * pen, cv2.LINE_AA)
    cv2.drawContours(picture, outlines, -1, tuple(int(channel * 0.6) for channel in color), pen, cv2.LINE_AA)


def draw_boxes(picture: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[int] = ()) -> None:
    """Draw boxes (x1, y1, x2, y2) in pixels, in place; labels make them green (1) or red (0)."""
    pen = _pen(picture)
    colors = [_LABEL_COLORS[label] for label in labels] or [BOX_COLOR] * len(boxes)
    for (x1, y1, x2, y2), color in zip(boxes, colors, strict=True):
        corners = (round(x1), round(y1)), (round(x2), round(y2))
        cv2.rectangle(picture, *corners, (255, 255, 255), 4 * pen, cv2.LINE_AA)
        cv2.rectangle(picture, *corners, color, 2 * pen, cv2.LINE_AA)


def draw_points(picture: np.ndarray, points: Sequence[Sequence[float]], labels: Sequence[int]) -> None:
    """Draw points (x, y) in pixels, in place, green (label 1) or red (label 0)."""
    pen = _pen(picture)
    for (x, y), label in zip(points, labels, strict=True):
        cv2.circle(picture, (round(x), round(y)), 7 * pen, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, (round(x), round(y)), 5 * pen, _LABEL_COLORS[label], -1, cv2.LINE_AA)


def _pen(picture: np.ndarray) -> int:
    """Return the width of a thin line, in pixels."""
    return max(1, round(min(picture.shape[:2]) / 500))


def captioned(picture: np.ndarray, title: str, scores: str = "") -> np.ndarray:
    """Add a line of text above a picture; a title that does not fit is cut, the scores are not."""
    band = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    words = title.split(" ")
    ending = f": {scores}" if scores else ""
    line = title + ending
    while _text_width(line) > picture.shape[1] - 2 * CAPTION_MARGIN and words:
        words.pop()
        line = " ".join([*words, "..."]) + ending
    cv2.putText(band, line, (CAPTION_MARGIN, 19), *CAPTION_FONT, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([band, picture])


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, *CAPTION_FONT, 1)[0][0]


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange pictures of one size in rows, with white space between them."""
    framed = [np.pad(picture, ((4, 4), (4, 4), (0, 0)), constant_values=255) for picture in pictures]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(framed[start : start + columns]) for start in range(0, len(framed), columns)])


def scaled_to_fit(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale a picture to fit into ``width`` and ``height`` pixels, keeping its aspect ratio."""
    factor = min(width / picture.shape[1], height / picture.shape[0])
    size = [max(1, round(side * factor)) for side in (picture.shape[1], picture.shape[0])]
    return np.array(PIL.Image.fromarray(picture).resize(size))


def distance_to_edge(mask: np.ndarray) -> np.ndarray:
    """Return how far each pixel of a mask (H, W) bool is from the nearest pixel outside, (H, W) float32 in pixels."""
    return cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]


def read(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    Raises:
        OSError, ImageError: there is no such file, or see :func:`~sam3_engine.image_files.read_image`.
    """
    return read_image(path)


def write(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 RGB."""
    PIL.Image.fromarray(picture).save(path)
