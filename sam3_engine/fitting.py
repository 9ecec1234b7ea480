"""Fit prompts to an image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import PromptError, quote
from .prompts import Box, ConceptPrompt, EverythingPrompt, GeometricPrompt, Point, Prompt, in_brackets

logger = logging.getLogger(__name__)

_LARGEST_FRACTION = 1.1  # a box may extend a little beyond the image


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that fits an image.

    Attributes:
        prompt: in source pixels, its boxes clipped to the image.
        width, height: of the image, in pixels.
    """

    prompt: Prompt
    width: int
    height: int

    @property
    def relative_boxes(self) -> tuple[Box, ...]:
        """The boxes ``(x1, y1, x2, y2)`` as fractions of the image's width and height."""
        x, y = 1 / self.width, 1 / self.height
        return tuple((x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in self.prompt.boxes)

    @property
    def relative_points(self) -> tuple[Point, ...]:
        """The points ``(x, y)`` as fractions of the image's width and height."""
        points = self.prompt.points if isinstance(self.prompt, GeometricPrompt) else ()
        return tuple((x * (1 / self.width), y * (1 / self.height)) for x, y in points)


def fit_prompt(prompt: Prompt | FittedPrompt, width: int, height: int) -> FittedPrompt:
    """Clip a prompt's boxes to an image and check that its points are inside.

    Args:
        prompt: in source pixels; a prompt that is already fitted to the image is returned unchanged.
        width: of the image, in pixels.
        height: of the image, in pixels.

    Raises:
        PromptError: a box does not overlap the image, or a point is outside it.
        ValueError: the prompt was fitted to an image of another size.
        TypeError: it is not a prompt.
    """
    if isinstance(prompt, FittedPrompt):
        if (prompt.width, prompt.height) != (width, height):
            fitted = f"{prompt.width}x{prompt.height}"
            raise ValueError(f"The prompt was fitted to an image of {fitted} pixels, not {width}x{height}.")
        return prompt
    if isinstance(prompt, EverythingPrompt):
        return FittedPrompt(prompt, width, height)
    if not isinstance(prompt, ConceptPrompt | GeometricPrompt):
        expected = "expected a ConceptPrompt, a GeometricPrompt or an EverythingPrompt"
        raise TypeError(f"prompt = {prompt!r}: {expected}")
    if isinstance(prompt, GeometricPrompt):
        for x, y in prompt.points:
            if not (0 <= x < width and 0 <= y < height):
                expected = f"expected 0 <= x < {width} and 0 <= y < {height}"
                raise PromptError("points", in_brackets((x, y)), f"the point is outside the image; {expected}")
    boxes = tuple(_clip_box(box, width, height) for box in prompt.boxes)
    return FittedPrompt(replace(prompt, boxes=boxes), width, height)


def warn_of_fractions(prompt: Prompt, width: int, height: int, names: Mapping[str, str] | None = None) -> None:
    """Log a warning if coordinates look like fractions of the image, which are read as pixels.

    They do if the coordinates of all boxes, or of all points, are at most 1, or a little more, because some detectors
    overshoot. Points of whole numbers do not: they are pixels in the corner of the image.

    Args:
        prompt: in source pixels.
        width: of the image, in pixels.
        height: of the image, in pixels.
        names: what the warning calls the arguments ``boxes`` and ``points``.
    """
    if width == height == 1:
        return
    points = prompt.points if isinstance(prompt, GeometricPrompt) else ()
    for argument, rows in {"boxes": prompt.boxes, "points": points}.items():
        numbers = [number for row in rows for number in row]
        small = bool(numbers) and all(abs(number) <= _LARGEST_FRACTION for number in numbers)
        if small and (argument == "boxes" or any(number % 1 for number in numbers)):
            logger.warning(
                "%s = %s: coordinates are pixels, not fractions of the image. "
                "Multiply x by its width, %d, and y by its height, %d.",
                (names or {}).get(argument, argument),
                quote(f"[{', '.join(in_brackets(row) for row in rows)}]"),
                width,
                height,
            )


def _clip_box(box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if not (left < right and top < bottom):
        reason = f"the box is outside the image; expected a box that overlaps [0, 0, {width}, {height}]"
        raise PromptError("boxes", in_brackets(box), reason)
    return left, top, right, bottom
