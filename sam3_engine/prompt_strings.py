"""Make prompts from the parameters that users type and the graphics that they draw.

The plugin, the batch and the demo share these parameters: ``input_text``, ``input_box``, ``input_box_label``,
``input_point`` and ``input_point_label``. Errors name them, quote what was typed and say what is expected.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import PromptError, quote
from .fitting import FittedPrompt, fit_prompt
from .literals import read_literal
from .prompts import (
    BACKGROUND,
    BOX_LABELS_EXPECTED,
    BOXES_EXPECTED,
    FOREGROUND,
    PHRASES_EXPECTED,
    POINT_LABELS_EXPECTED,
    POINTS_EXPECTED,
    Box,
    ConceptPrompt,
    GeometricPrompt,
    Point,
    Prompt,
    is_finite,
    is_label,
)

logger = logging.getLogger(__name__)

_TYPED = {
    "phrases": "input_text",
    "boxes": "input_box",
    "box_labels": "input_box_label",
    "points": "input_point",
    "point_labels": "input_point_label",
}
_DRAWN = {**_TYPED, "boxes": "drawn rectangle", "points": "drawn point"}


@dataclass(frozen=True)
class Drawing:
    """Graphics that a user draws on the image, in source pixels.

    Attributes:
        rectangles: ``(x1, y1, x2, y2)``.
        points: ``(x, y)``.
    """

    rectangles: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rectangles or self.points)


@dataclass(frozen=True)
class ChosenPrompt:
    """The prompt that takes effect.

    Attributes:
        prompt: in source pixels.
        drawn: whether its boxes and points are drawn, not typed.
    """

    prompt: Prompt
    drawn: bool = False

    def fit(self, width: int, height: int) -> FittedPrompt:
        """Fit the prompt to an image of ``width`` x ``height`` pixels.

        Raises:
            PromptError: see :func:`~.fitting.fit_prompt`; it names the parameter, or the drawn graphic.
        """
        with self.naming_arguments():
            return fit_prompt(self.prompt, width, height)

    def naming_arguments(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which errors about the prompt name the parameter, or the drawn graphic."""
        return _naming(_DRAWN if self.drawn else _TYPED)


@dataclass(frozen=True)
class PromptStrings:
    """The prompt parameters as users type them; blank or ``[]`` is empty.

    Attributes:
        input_text: a noun phrase, or several, ``["shoe", "person"]``.
        input_box: boxes ``[[x1, y1, x2, y2], ...]`` or a single ``[x1, y1, x2, y2]``.
        input_box_label: labels ``[1, 0, ...]`` that turn the boxes into examples; if no box is typed, the drawn
            rectangles.
        input_point: points ``[[x, y], ...]`` or a single ``[x, y]``.
        input_point_label: labels ``[1, 0, ...]`` of the typed points; if neither points nor boxes are typed, of the
            drawn points.
    """

    input_text: str = ""
    input_box: str = ""
    input_box_label: str = ""
    input_point: str = ""
    input_point_label: str = ""

    def choose(self, drawing: Drawing | None = None) -> ChosenPrompt | None:
        """Return the prompt that takes effect, or None if there is nothing to segment.

        Phrases and example boxes take precedence over boxes and points of single objects; of these, typed ones take
        precedence over drawn ones. One logged warning names what is ignored.

        Raises:
            PromptError: a parameter that takes effect cannot be used.
        """
        drawing = drawing or Drawing()
        concepts = self._concepts(drawing)
        if concepts:
            self._warn_of_unused(concepts, drawing)
            return concepts
        return self._outline(drawing)

    def errors(self) -> dict[str, str]:
        """Return the error of each parameter that cannot be used, by name, to show while the user types.

        Labels without boxes or points are not an error: the user may draw the boxes or points later.
        """
        nothing_typed = is_blank(self.input_box) and is_blank(self.input_point)
        errors: dict[str, str] = {}
        for check in (
            lambda: self._concept_prompt(parse_phrases(self.input_text), (), ()),
            lambda: self._geometric_prompt(parse_boxes(self.input_box), (), ()),
            lambda: parse_box_labels(self.input_box_label),
            lambda: parse_points(self.input_point),
            lambda: parse_point_labels(self.input_point_label),
            lambda: nothing_typed or self._outline_points(),
            lambda: is_blank(self.input_box) or self._concepts(Drawing()),
        ):
            try:
                check()
            except PromptError as error:
                errors.setdefault(error.argument, str(error))
        return errors

    def _concepts(self, drawing: Drawing) -> ChosenPrompt | None:
        labels = parse_box_labels(self.input_box_label)
        boxes = parse_boxes(self.input_box) if labels else ()
        drawn = bool(labels and not boxes and drawing)
        if drawn:
            boxes = drawing.rectangles
        prompt = self._concept_prompt(parse_phrases(self.input_text), boxes, labels, drawn)
        return ChosenPrompt(prompt, drawn) if prompt else None

    def _outline(self, drawing: Drawing) -> ChosenPrompt | None:
        boxes = parse_boxes(self.input_box)
        drawn = bool(drawing and not boxes and not parse_points(self.input_point))
        if drawn:
            boxes = drawing.rectangles
        elif drawing:
            logger.warning("input_box or input_point is set, so drawn graphics are ignored.")
        points, labels = self._outline_points(drawing if drawn else None)
        if points and len(boxes) > 1:
            logger.warning("Points refine a single box: with %d boxes, the points are ignored.", len(boxes))
            points = labels = ()
        prompt = self._geometric_prompt(boxes, points, labels, drawn)
        return ChosenPrompt(prompt, drawn) if prompt else None

    def _outline_points(self, drawing: Drawing | None = None) -> tuple[tuple[Point, ...], tuple[int, ...]]:
        """Return the points and their labels, checked against each other."""
        points = drawing.points if drawing else parse_points(self.input_point)
        default = BACKGROUND if drawing and drawing.rectangles else FOREGROUND
        labels = parse_point_labels(self.input_point_label) or (default,) * len(points)
        self._geometric_prompt((), points, labels, bool(drawing))
        return points, labels

    def _concept_prompt(
        self, phrases: tuple[str, ...], boxes: tuple[Box, ...], labels: tuple[int, ...], drawn: bool = False
    ) -> ConceptPrompt | None:
        if not (phrases or boxes or labels):
            return None
        typed = {"phrases": self.input_text, "box_labels": self.input_box_label}
        with _naming(_DRAWN if drawn else _TYPED, typed):
            return ConceptPrompt(phrases, boxes, labels)

    def _geometric_prompt(
        self, boxes: tuple[Box, ...], points: tuple[Point, ...], labels: tuple[int, ...], drawn: bool = False
    ) -> GeometricPrompt | None:
        if not (boxes or points or labels):
            return None
        typed = {"point_labels": self.input_point_label}
        with _naming(_DRAWN if drawn else _TYPED, typed):
            return GeometricPrompt(boxes, points, labels)

    def _warn_of_unused(self, concepts: ChosenPrompt, drawing: Drawing) -> None:
        has_boxes = bool(concepts.prompt.boxes)
        unused = [
            name
            for name, given in (
                ("input_box", not has_boxes and not is_blank(self.input_box)),
                ("input_point", not is_blank(self.input_point)),
                ("drawn graphics", drawing and not concepts.drawn),
                ("drawn points", drawing.points and concepts.drawn),
            )
            if given
        ]
        if unused:
            reason = "input_box_label is set, so boxes are examples" if has_boxes else "input_text is set"
            logger.warning("%s. Ignored: %s.", reason, ", ".join(unused))


def parse_phrases(text: str) -> tuple[str, ...]:
    """Read noun phrases from ``["shoe", "person"]``; anything else is one phrase, and blank text is none.

    Raises:
        PromptError: the text begins like a list, but is not a list of strings.
    """
    stripped = text.strip()
    if not stripped:
        return ()
    if stripped[0] not in "[(":
        return (text,)
    try:
        phrases = read_literal(stripped)
    except ValueError:
        phrases = None
    if stripped[0] == "(" and not isinstance(phrases, tuple):
        return (text,)  # a phrase that begins with a bracket
    if not isinstance(phrases, list | tuple):
        raise PromptError("input_text", text, f"this cannot be read; {PHRASES_EXPECTED}")
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise PromptError("input_text", text, f"{quote(phrase)} is not a phrase; {PHRASES_EXPECTED}")
    return tuple(phrases)


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Read boxes from ``[[x1, y1, x2, y2], ...]`` or a single ``[x1, y1, x2, y2]``; blank text or ``[]`` is none.

    Raises:
        PromptError: the text is something else.
    """
    return _parse_rows("input_box", text, 4, BOXES_EXPECTED)


def parse_points(text: str) -> tuple[Point, ...]:
    """Read points from ``[[x, y], ...]`` or a single ``[x, y]``; blank text or ``[]`` is none.

    Raises:
        PromptError: the text is something else.
    """
    return _parse_rows("input_point", text, 2, POINTS_EXPECTED)


def parse_box_labels(text: str) -> tuple[int, ...]:
    """Read labels from ``[1, 0, ...]``, or a bare ``1`` or ``0``; blank text or ``[]`` is none.

    Raises:
        PromptError: the text is something else.
    """
    return _parse_labels("input_box_label", text, BOX_LABELS_EXPECTED)


def parse_point_labels(text: str) -> tuple[int, ...]:
    """Read labels from ``[1, 0, ...]``, or a bare ``1`` or ``0``; blank text or ``[]`` is none.

    Raises:
        PromptError: the text is something else.
    """
    return _parse_labels("input_point_label", text, POINT_LABELS_EXPECTED)


def is_blank(text: str) -> bool:
    """Return whether a parameter is empty."""
    return text.strip() in ("", "[]", "()")


def _parse_labels(parameter: str, text: str, expected: str) -> tuple[int, ...]:
    value = _parse(parameter, text, expected)
    labels = value if isinstance(value, list | tuple) else (value,)
    for label in labels:
        if not is_label(label):
            raise PromptError(parameter, text, f"{quote(label)} is not a label; {expected}")
    return tuple(int(label) for label in labels)


def _parse_rows(parameter: str, text: str, length: int, expected: str) -> tuple[Any, ...]:
    value = _parse(parameter, text, expected)
    if not isinstance(value, list | tuple):
        raise PromptError(parameter, text, f"this is not a list; {expected}")
    nested = any(isinstance(item, list | tuple) for item in value)
    rows = value if nested or not value else [value]
    for row in rows:
        if not isinstance(row, list | tuple):
            raise PromptError(parameter, text, f"{quote(row)} is not a list of {length} numbers; {expected}")
        if len(row) != length:
            raise PromptError(parameter, text, f"{quote(row)} has {len(row)} items, not {length}; {expected}")
        for number in row:
            if not is_finite(number):
                raise PromptError(parameter, text, f"{quote(number)} is not a finite number; {expected}")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _parse(parameter: str, text: str, expected: str) -> Any:
    if not text.strip():
        return ()
    try:
        return read_literal(text)
    except ValueError:
        raise PromptError(parameter, text, f"this cannot be read; {expected}") from None


@contextlib.contextmanager
def _naming(names: Mapping[str, str], typed: Mapping[str, str] | None = None) -> Iterator[None]:
    """Make errors name the parameter or graphic that an argument comes from, and quote the typed text, if any."""
    try:
        yield
    except PromptError as error:
        value = (typed or {}).get(error.argument) or error.value
        raise PromptError(names[error.argument], value, error.reason) from None
