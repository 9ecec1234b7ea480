"""What the user typed, or drew, turned into checked, immutable prompts.

Coordinates are pixels of the source image, x to the right and y down. Whatever cannot be a prompt is refused
here with a :class:`PromptError` that names the parameter, quotes the value and says what is expected; nothing
further down checks a prompt again.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

logger = logging.getLogger(__name__)

Point = tuple[float, float]
Box = tuple[float, float, float, float]

FOREGROUND = 1
BACKGROUND = 0

_LONGEST_PHRASE = 1000  # far beyond the 30 tokens that SAM 3 reads, short enough to tokenize at once
_NOTHING_TYPED = ("", "[]", "()")
_BOXES_EXPECTED = "expected a list of boxes [[x1, y1, x2, y2], ...] in pixels, with x1 < x2 and y1 < y2"
_POINTS_EXPECTED = "expected a list of points [[x, y], ...] in pixels"
_LABELS_EXPECTED = "expected a list with one label per point, 1 for foreground and 0 for background"


class PromptError(ValueError):
    """A prompt that cannot be used.

    Args:
        parameter: name of the parameter at fault.
        value: what it held; a long value is shortened in the message.
        reason: what is wrong and what is expected.

    Attributes:
        parameter: as given.
    """

    def __init__(self, parameter: str, value: object, reason: str) -> None:
        super().__init__(f"{parameter} = {quote(value)}: {reason}.")
        self.parameter = parameter


@dataclass(frozen=True)
class TextPrompt:
    """A noun phrase; every instance of it is segmented."""

    phrase: str

    def clipped(self, width: int, height: int) -> TextPrompt:
        """This prompt: a phrase fits every image."""
        return self


@dataclass(frozen=True)
class GeometricPrompt:
    """Boxes and points that outline one object, or several boxes that outline one object each.

    Attributes:
        boxes: ``(x1, y1, x2, y2)`` in source-image pixels; each stands for an object of its own.
        points: ``(x, y)`` in source-image pixels; with one box they refine that box.
        point_labels: one per point, 1 foreground, 0 background.
        drawn: whether it was drawn rather than typed; errors name its parts accordingly.
    """

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    point_labels: tuple[int, ...] = ()
    drawn: bool = False

    def __bool__(self) -> bool:
        return bool(self.boxes or self.points)

    def clipped(self, width: int, height: int) -> GeometricPrompt:
        """This prompt with its boxes cut to a ``width`` x ``height`` image.

        Raises:
            PromptError: a box has no area or is outside the image, a point is outside it, the labels are not one per
                point, or there are points beside several boxes.
        """
        box_name, point_name = ("drawn rectangle", "drawn point") if self.drawn else ("input_box", "input_point")
        _check_label_count(self.point_labels, self.points, self.point_labels)
        if self.points and len(self.boxes) > 1:
            raise PromptError(point_name, self.points, f"points refine a single box, not {len(self.boxes)} boxes")
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                expected = f"expected 0 <= x < {width} and 0 <= y < {height}"
                raise PromptError(point_name, _numbers((x, y)), f"the point is outside the image; {expected}")
        _check_boxes(box_name, self.boxes)
        return replace(self, boxes=tuple(_clipped_box(box_name, box, width, height) for box in self.boxes))

    def scaled(self, x_factor: float, y_factor: float) -> GeometricPrompt:
        """This prompt with x coordinates multiplied by ``x_factor`` and y coordinates by ``y_factor``."""
        return replace(
            self,
            boxes=tuple((x1 * x_factor, y1 * y_factor, x2 * x_factor, y2 * y_factor) for x1, y1, x2, y2 in self.boxes),
            points=tuple((x * x_factor, y * y_factor) for x, y in self.points),
        )


Prompt = TextPrompt | GeometricPrompt


def choose_prompt(
    input_text: str = "",
    input_box: str = "",
    input_point: str = "",
    input_point_label: str = "",
    drawn: GeometricPrompt | None = None,
) -> Prompt | None:
    """Parse the prompt strings and choose the prompt that counts.

    Text comes before typed boxes and points, and these before what was drawn. What is left aside is named in
    one logged warning.

    Args:
        input_text: noun phrase.
        input_box: see :func:`parse_boxes`.
        input_point: see :func:`parse_points`.
        input_point_label: see :func:`parse_point_labels`.
        drawn: prompt made of drawn graphics, see :func:`drawn_prompt`.

    Returns:
        The prompt, or None if there is nothing to segment.

    Raises:
        PromptError: a string that counts does not hold what its parameter expects.
    """
    phrase = parse_phrase(input_text)
    if phrase:
        unused = [
            name
            for name, given in (
                ("input_box", input_box.strip() not in _NOTHING_TYPED),
                ("input_point", input_point.strip() not in _NOTHING_TYPED),
                ("what is drawn", drawn),
            )
            if given
        ]
        if unused:
            logger.warning("input_text is set, so it is the prompt: %s not used.", _enumeration(unused))
        return TextPrompt(phrase)

    typed = _typed_prompt(input_box, input_point, input_point_label)
    if typed and drawn:
        logger.warning("input_box or input_point is set, so it is the prompt: what is drawn is not used.")
    chosen = typed or drawn
    return _usable(chosen) if chosen else None


def prompt_errors(
    input_text: str = "", input_box: str = "", input_point: str = "", input_point_label: str = ""
) -> dict[str, str]:
    """What is wrong with each of the prompt strings, to be shown while they are typed.

    Args:
        input_text, input_box, input_point, input_point_label: see :func:`choose_prompt`.

    Returns:
        Names of parameters that do not hold what they are to hold, to the messages of their errors.
    """
    errors: dict[str, str] = {}
    for parse in (
        lambda: parse_phrase(input_text),
        lambda: parse_boxes(input_box),
        lambda: parse_points(input_point),
        lambda: parse_point_labels(input_point_label),
        lambda: _typed_prompt("", input_point, input_point_label),  # one label for each point?
    ):
        try:
            parse()
        except PromptError as error:
            errors.setdefault(error.parameter, str(error))
    return errors


def drawn_prompt(rectangles: Sequence[Box], points: Sequence[Point]) -> GeometricPrompt:
    """The prompt that drawn graphics stand for.

    Args:
        rectangles: ``(x1, y1, x2, y2)`` in source-image pixels.
        points: ``(x, y)`` in source-image pixels: background if a rectangle is drawn too, else foreground.
    """
    label = BACKGROUND if rectangles else FOREGROUND
    return GeometricPrompt(tuple(rectangles), tuple(points), (label,) * len(points), drawn=True)


def parse_phrase(text: str) -> str:
    """The noun phrase that ``text`` holds, with single spaces; blank gives none.

    Raises:
        PromptError: see the module.
    """
    phrase = " ".join(text.split())
    if len(phrase) > _LONGEST_PHRASE:
        raise PromptError("input_text", text, f"expected a noun phrase of at most {_LONGEST_PHRASE} characters")
    return phrase


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Boxes from ``[[x1, y1, x2, y2], ...]`` or a single ``[x1, y1, x2, y2]``; blank or ``[]`` gives none.

    Raises:
        PromptError: see the module.
    """
    boxes = _parse_rows("input_box", text, 4, _BOXES_EXPECTED)
    _check_boxes("input_box", boxes)
    return boxes  # type: ignore[return-value]


def parse_points(text: str) -> tuple[Point, ...]:
    """Points from ``[[x, y], ...]`` or a single ``[x, y]``; blank or ``[]`` gives none.

    Raises:
        PromptError: see the module.
    """
    return _parse_rows("input_point", text, 2, _POINTS_EXPECTED)  # type: ignore[return-value]


def parse_point_labels(text: str) -> tuple[int, ...]:
    """Labels from ``[1, 0, ...]`` or a bare ``1`` or ``0``; blank or ``[]`` gives none.

    Raises:
        PromptError: see the module.
    """
    value = _parse_json("input_point_label", text, _LABELS_EXPECTED)
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if not _is_number(label) or label not in (FOREGROUND, BACKGROUND):
            raise PromptError("input_point_label", text, f"{quote(label)} is not a label; {_LABELS_EXPECTED}")
    return tuple(int(label) for label in labels)


def quote(value: object, limit: int = 80) -> str:
    """``value`` in quotes for an error message, cut to ``limit`` characters."""
    text = value if isinstance(value, str) else str(value)
    shortened = text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
    return repr(shortened)


def _typed_prompt(input_box: str, input_point: str, input_point_label: str) -> GeometricPrompt:
    boxes = parse_boxes(input_box)
    points = parse_points(input_point)
    labels = parse_point_labels(input_point_label)
    if labels:
        _check_label_count(labels, points, input_point_label)
    return GeometricPrompt(boxes, points, labels or (FOREGROUND,) * len(points))


def _usable(prompt: GeometricPrompt) -> GeometricPrompt:
    """``prompt`` without points that it cannot use."""
    if len(prompt.boxes) > 1 and prompt.points:
        logger.warning("Points refine a single box: with %d boxes the points are not used.", len(prompt.boxes))
        return replace(prompt, points=(), point_labels=())
    return prompt


def _parse_rows(parameter: str, text: str, arity: int, expected: str) -> tuple[tuple[float, ...], ...]:
    value = _parse_json(parameter, text, expected)
    if not isinstance(value, list):
        raise PromptError(parameter, text, f"this is not a list; {expected}")
    rows = value if any(isinstance(item, list) for item in value) or not value else [value]
    for row in rows:
        if not isinstance(row, list):
            raise PromptError(parameter, text, f"{quote(row)} is not a list of {arity} numbers; {expected}")
        if len(row) != arity:
            raise PromptError(parameter, text, f"{quote(row)} has {len(row)} items, not {arity}; {expected}")
        for number in row:
            if not _is_number(number):
                raise PromptError(parameter, text, f"{quote(number)} is not a finite number; {expected}")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _parse_json(parameter: str, text: str, expected: str) -> Any:
    """The JSON value that ``text`` holds; it may also be what ``str()`` makes of tuples and of numpy's numbers."""
    if not text.strip():
        return []
    try:
        return json.loads(_with_tuples_as_lists(_with_plain_numbers(text)), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise PromptError(parameter, text, f"this cannot be read; {expected}") from None


def _with_plain_numbers(text: str) -> str:
    return re.sub(r"\bnp\.(?:float|u?int)\d+\(([^()]*)\)", r"\1", text)


def _with_tuples_as_lists(text: str) -> str:
    if "(" not in text:
        return text
    opened = []
    for bracket in re.findall(r"[()\[\]]", text):
        if bracket in "([":
            opened.append(bracket)
        elif not opened or opened.pop() + bracket not in ("()", "[]"):
            raise ValueError("unbalanced brackets")
    without_trailing_commas = re.sub(r"([^\s(,]\s*),\)", r"\1)", text)
    return without_trailing_commas.replace("(", "[").replace(")", "]")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _check_label_count(labels: Sequence[int], points: Sequence[Point], typed: object) -> None:
    if len(labels) != len(points):
        reason = f"{len(labels)} label(s) for {len(points)} point(s) in input_point; {_LABELS_EXPECTED}"
        raise PromptError("input_point_label", typed, reason)


def _check_boxes(parameter: str, boxes: Sequence[Sequence[float]]) -> None:
    for box in boxes:
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2):  # so that NaN is refused too
            raise PromptError(parameter, _numbers(box), f"the box has no area; {_BOXES_EXPECTED}")


def _clipped_box(name: str, box: Box, width: int, height: int) -> Box:
    x1, y1, x2, y2 = box
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise PromptError(
            name,
            _numbers(box),
            f"the box is outside the image; expected an overlap with [0, 0, {width}, {height}]",
        )
    return clipped


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.16g}" for value in values) + "]"


def _enumeration(names: Sequence[str]) -> str:
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return f"{listed} {'is' if len(names) == 1 else 'are'}"
