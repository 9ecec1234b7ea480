"""What the user typed, read: phrases, boxes, points and labels.

Lists are JSON, or what ``str()`` makes of Python's lists and tuples and of numpy's numbers, since Ikomia hands over
every value as a string. Anything else is refused with a :class:`PromptError`.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import math
import re
import tokenize
import warnings
from collections.abc import Sequence
from typing import Any

from .runtime import warnings_ignored

Point = tuple[float, float]
Box = tuple[float, float, float, float]

# labels of points
FOREGROUND = 1
BACKGROUND = 0

# labels of example boxes
POSITIVE = 1
NEGATIVE = 0

_LONGEST_PHRASE = 1000  # far beyond the 30 tokens that SAM 3 reads, short enough to tokenize at once
_PHRASES_EXPECTED = 'expected a noun phrase, or a list of them ["shoe", "person"]'
_BOXES_EXPECTED = "expected a list of boxes [[x1, y1, x2, y2], ...] in pixels, with x1 < x2 and y1 < y2"
_POINTS_EXPECTED = "expected a list of points [[x, y], ...] in pixels"
_LABELS_EXPECTED = {
    "input_point_label": "expected a list with one label per point, 1 for foreground and 0 for background",
    "input_box_label": "expected a list with one label per box, 1 for an example of what to find and 0 for what not",
}


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


def quote(value: object, limit: int = 80) -> str:
    """``value`` in quotes for an error message, cut to ``limit`` characters."""
    text = value if isinstance(value, str) else str(value)
    shortened = text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
    return repr(shortened)


def parse_phrases(text: str) -> tuple[str, ...]:
    """Noun phrases from ``["shoe", "person"]``, each once, or the one that ``text`` is; blank or ``[]`` gives none.

    Raises:
        PromptError: what begins like a list is not one of phrases, or a phrase is too long.
    """
    phrases = [" ".join(phrase.split()) for phrase in _listed_phrases(text)]
    if any(len(phrase) > _LONGEST_PHRASE for phrase in phrases):
        raise PromptError("input_text", text, f"expected a noun phrase of at most {_LONGEST_PHRASE} characters")
    if "" in phrases:
        raise PromptError("input_text", text, f"there is a blank phrase; {_PHRASES_EXPECTED}")
    if re.search("[\ud800-\udfff]", "".join(phrases)):
        raise PromptError("input_text", text, f"there is half a character (a lone surrogate); {_PHRASES_EXPECTED}")
    return tuple(dict.fromkeys(phrases))


def parse_boxes(text: str) -> tuple[Box, ...]:
    """Boxes from ``[[x1, y1, x2, y2], ...]`` or a single ``[x1, y1, x2, y2]``; blank or ``[]`` gives none.

    Raises:
        PromptError: it holds something else, or a box has no area.
    """
    boxes = _parse_rows("input_box", text, 4, _BOXES_EXPECTED)
    check_boxes("input_box", boxes)
    return boxes  # type: ignore[return-value]


def parse_points(text: str) -> tuple[Point, ...]:
    """Points from ``[[x, y], ...]`` or a single ``[x, y]``; blank or ``[]`` gives none.

    Raises:
        PromptError: it holds something else.
    """
    return _parse_rows("input_point", text, 2, _POINTS_EXPECTED)  # type: ignore[return-value]


def parse_point_labels(text: str) -> tuple[int, ...]:
    """Labels from ``[1, 0, ...]`` or a bare ``1`` or ``0``; blank or ``[]`` gives none.

    Raises:
        PromptError: it holds something else.
    """
    return _parse_labels("input_point_label", text)


def parse_box_labels(text: str) -> tuple[int, ...]:
    """Labels from ``[1, 0, ...]`` or a bare ``1`` or ``0``; blank or ``[]`` gives none.

    Raises:
        PromptError: it holds something else.
    """
    return _parse_labels("input_box_label", text)


def check_boxes(parameter: str, boxes: Sequence[Sequence[float]]) -> None:
    """Refuse boxes without area.

    Raises:
        PromptError: there is one.
    """
    for box in boxes:
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2):  # so that NaN is refused too
            raise PromptError(parameter, in_brackets(box), f"the box has no area; {_BOXES_EXPECTED}")


def check_labels(parameter: str, labels: Sequence[int], labelled: Sequence[Any], name: str, typed: str) -> None:
    """Refuse labels that are none, or are not one for each of what they are to label.

    Args:
        parameter: ``input_point_label`` or ``input_box_label``.
        labels: its labels.
        labelled: the points, or boxes.
        name: what these are called in the error.
        typed: the labels as typed.

    Raises:
        PromptError: they are more or fewer, or one is neither 0 nor 1.
    """
    for label in labels:
        if label not in (0, 1):
            raise PromptError(parameter, typed, f"{quote(label)} is not a label; {_LABELS_EXPECTED[parameter]}")
    if len(labels) != len(labelled):
        counts = f"{len(labels)} label(s) for {len(labelled)} {name}"
        raise PromptError(parameter, typed, f"{counts}; {_LABELS_EXPECTED[parameter]}")


def in_brackets(values: Sequence[float]) -> str:
    """Coordinates as they would be typed."""
    return "[" + ", ".join(f"{value:.16g}" for value in values) + "]"


def _listed_phrases(text: str) -> list[str]:
    stripped = text.strip()
    if not stripped:
        return []
    if stripped[0] not in "[(":
        return [text]
    value = _parse_literal(stripped)
    if stripped[0] == "(" and not isinstance(value, tuple):
        return [text]  # a phrase that begins with a bracket
    if value is None:
        raise PromptError("input_text", text, f"this cannot be read; {_PHRASES_EXPECTED}")
    for phrase in value:
        if not isinstance(phrase, str):
            raise PromptError("input_text", text, f"{quote(phrase)} is not a phrase; {_PHRASES_EXPECTED}")
    return list(value)


def _parse_literal(text: str) -> list[Any] | tuple[Any, ...] | None:
    """The list that ``text`` holds as JSON or as Python writes it, None if it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings_ignored():
            warnings.simplefilter("error")  # what Python would warn of, it does not write
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list | tuple) and not _lacks_comma(text) else None


def _lacks_comma(text: str) -> bool:
    """Whether strings stand side by side, which Python would join."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    seen = (kind for kind in kinds if kind in (tokenize.STRING, tokenize.OP))  # not comments and ends of lines
    return any(a == b == tokenize.STRING for a, b in itertools.pairwise(seen))


def _parse_labels(parameter: str, text: str) -> tuple[int, ...]:
    expected = _LABELS_EXPECTED[parameter]
    value = _parse_json(parameter, text, expected)
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if not _is_number(label) or label not in (0, 1):
            raise PromptError(parameter, text, f"{quote(label)} is not a label; {expected}")
    return tuple(int(label) for label in labels)


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
