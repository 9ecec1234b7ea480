"""Pictures of prompts and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

CAPTION_HEIGHT = 28
FOREGROUND, BACKGROUND, BOX = (60, 200, 60), (230, 40, 40), (20, 20, 20)

Colour = Sequence[int]  # RGB, 0..255


def overlay(image: np.ndarray, masks: Sequence[tuple[np.ndarray, Colour]]) -> np.ndarray:
    """``image`` with each mask tinted in its colour and outlined.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) bool and the colour; later ones are on top.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = image.copy()
    pen = _pen(image)
    for mask, colour in masks:
        picture[mask] = np.rint(0.45 * picture[mask] + 0.55 * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, (255, 255, 255), 3 * pen, cv2.LINE_AA)
        cv2.drawContours(picture, outlines, -1, tuple(int(channel * 0.6) for channel in colour), pen, cv2.LINE_AA)
    return picture


def draw_prompt(
    picture: np.ndarray,
    boxes: Sequence[Sequence[float]] = (),
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] = (),
) -> None:
    """Draw boxes x1, y1, x2, y2 and points x, y with labels (green 1, red 0; all 1 if none), in pixels, in place."""
    pen = _pen(picture)
    for x1, y1, x2, y2 in boxes:
        corners = (round(x1), round(y1)), (round(x2), round(y2))
        cv2.rectangle(picture, *corners, (255, 255, 255), 4 * pen, cv2.LINE_AA)
        cv2.rectangle(picture, *corners, BOX, 2 * pen, cv2.LINE_AA)
    for (x, y), label in zip(points, labels or [1] * len(points), strict=True):
        cv2.circle(picture, (round(x), round(y)), 7 * pen, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, (round(x), round(y)), 5 * pen, FOREGROUND if label else BACKGROUND, -1, cv2.LINE_AA)


def _pen(picture: np.ndarray) -> int:
    """Width of a thin line, in pixels."""
    return max(1, round(min(picture.shape[:2]) / 500))


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """The picture with a line of text above."""
    band = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, caption, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([band, picture])


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size, row by row, with white where one is missing and between them."""
    framed = [np.pad(picture, ((4, 4), (4, 4), (0, 0)), constant_values=255) for picture in pictures]
    framed += [np.full_like(framed[0], 255)] * (-len(framed) % columns)
    return np.vstack([np.hstack(framed[start : start + columns]) for start in range(0, len(framed), columns)])


def scaled_to_width(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture in another size, its aspect ratio kept."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.array(PIL.Image.fromarray(picture).resize((width, height)))


def depth(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32, for each pixel of a mask (H, W) bool how far it is from the next pixel outside."""
    return cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]


def read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the camera was held.

    Raises:
        OSError: there is no such file, or it is no image.
    """
    with PIL.Image.open(path) as image:
        return np.array(PIL.ImageOps.exif_transpose(image).convert("RGB"))


def write(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB."""
    PIL.Image.fromarray(picture).save(path)
