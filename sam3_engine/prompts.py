"""What to segment: immutable prompts, checked when they are created.

Coordinates are pixels of the source image, x to the right and y down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .arrays import to_plain
from .errors import PromptError, quote

Point = tuple[float, float]
Box = tuple[float, float, float, float]

# labels of points
FOREGROUND = 1
BACKGROUND = 0

# labels of example boxes
POSITIVE = 1
NEGATIVE = 0

UNNAMED = "object"  # the label of segments that neither a phrase nor a category names

MOST_POINTS_PER_SIDE = 64

PHRASES_EXPECTED = 'expected a noun phrase, or a list of noun phrases ["shoe", "person"]'
THRESHOLDS_EXPECTED = 'expected a number from 0 to 1 for each noun phrase, {"shoe": 0.3, "person": 0.6}'
BOXES_EXPECTED = "expected a list of boxes [[x1, y1, x2, y2], ...] in pixels, with x1 < x2 and y1 < y2"
POINTS_EXPECTED = "expected a list of points [[x, y], ...] in pixels"
BOX_LABELS_EXPECTED = "expected a list with one label per box, 1 for a positive and 0 for a negative example"
POINT_LABELS_EXPECTED = "expected a list with one label per point, 1 for foreground and 0 for background"
_THRESHOLD_EACH = "expected none, or one number from 0 to 1 per phrase"
_CATEGORIES_EXPECTED = "expected none, or one string per box"

_MAX_PHRASE_LENGTH = 1000  # far more than the 30 tokens that SAM 3 reads, and still fast to tokenize
_SEPARATORS = re.compile("[,;、，；]")
QUOTATION_MARKS = re.compile(r"""["“”„«»`]|(?<!\w)['‘]""")  # an apostrophe follows a letter


@dataclass(frozen=True)
class ConceptPrompt:
    """Segment every instance of one or more concepts, named by phrases or shown by example boxes.

    Lists, arrays and tensors are accepted too, and converted to tuples.

    Attributes:
        phrases: noun phrases, each a separate concept; at most one with example boxes. White space is collapsed, and a
            repeated phrase counts once.
        boxes: example boxes ``(x1, y1, x2, y2)`` in source pixels.
        box_labels: one per box, 1 or True for a positive and 0 or False for a negative example.
        confidence_thresholds: one per phrase, 0..1, or None for the phrases that use ``confidence_threshold`` of the
            options; or none. If all are None, there are none.

    Raises:
        PromptError: there is nothing to segment, or a value cannot be used; see the message.
        TypeError: ``phrases`` is a string, each of whose letters would be a phrase, or a mapping.
    """

    phrases: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    box_labels: tuple[int, ...] = ()
    confidence_thresholds: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.phrases, str | Mapping):
            raise TypeError(f"phrases = {self.phrases!r}: expected a tuple of strings")
        phrases = _checked_phrases(self.phrases)
        _set(self, confidence_thresholds=_checked_thresholds(self.confidence_thresholds, phrases))
        _set(self, phrases=tuple(dict.fromkeys(phrases)))
        _set(self, boxes=_checked_boxes(self.boxes))
        _set(self, box_labels=checked_labels("box_labels", self.box_labels, len(self.boxes)))
        if self.boxes and len(self.phrases) > 1:
            reason = f"example boxes work with one phrase or none, not with {len(self.phrases)}"
            raise PromptError("phrases", list(self.phrases), reason)
        if self.boxes and not self.phrases and POSITIVE not in self.box_labels:
            reason = "there is no positive example; expected at least one label 1, or a phrase"
            raise PromptError("box_labels", list(self.box_labels), reason)
        if not (self.phrases or self.boxes):
            raise PromptError("phrases", "", "there is nothing to segment; expected a phrase or an example box")

    @property
    def names(self) -> tuple[str, ...]:
        """The label of each concept's segments: its phrase, or "object" if there are only boxes."""
        return self.phrases or (UNNAMED,)


@dataclass(frozen=True)
class GeometricPrompt:
    """Segment one object by points and at most one box, or several objects by one box each.

    Lists, arrays and tensors are accepted too, and converted to tuples.

    Attributes:
        boxes: ``(x1, y1, x2, y2)`` in source pixels, one per object.
        points: ``(x, y)`` in source pixels; with one box they refine it, with more they are an error.
        point_labels: one per point, 1 or True for foreground, 0 or False for background.
        categories: one per box, what is in it, for example according to a detector; or none. White space is collapsed,
            and a blank category is "object". If all are, there are none.

    Raises:
        PromptError: there is nothing to segment, or a value cannot be used; see the message.
        TypeError: ``categories`` is a string; each of its letters would be a category.
    """

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    point_labels: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _set(self, boxes=_checked_boxes(self.boxes))
        _set(self, points=_checked_rows("points", self.points, 2, POINTS_EXPECTED))
        _set(self, point_labels=checked_labels("point_labels", self.point_labels, len(self.points)))
        _set(self, categories=_checked_categories(self.categories, len(self.boxes)))
        if self.points and len(self.boxes) > 1:
            raise PromptError("points", self.points, f"points refine a single box, not {len(self.boxes)} boxes")
        if not (self.boxes or self.points):
            raise PromptError("boxes", "", "there is nothing to segment; expected a box or a point")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each object's segments: the category of its box, or "object"."""
        return self.categories or (UNNAMED,) * max(1, len(self.boxes))

    @property
    def names(self) -> tuple[str, ...]:
        """The different labels, in the order in which they first appear."""
        return tuple(dict.fromkeys(self.labels))


@dataclass(frozen=True)
class EverythingPrompt:
    """Segment everything: whatever is at each point of a grid that covers the image.

    Attributes:
        points_per_side: 1..64, the number of rows of the grid, and of points in a row.

    Raises:
        PromptError: it is not a whole number from 1 to 64.
    """

    points_per_side: int = 32

    def __post_init__(self) -> None:
        side = to_plain(self.points_per_side)
        if not (is_finite(side) and side == int(side) and 1 <= side <= MOST_POINTS_PER_SIDE):
            reason = f"expected a whole number from 1 to {MOST_POINTS_PER_SIDE}"
            raise PromptError("points_per_side", side, reason)
        _set(self, points_per_side=int(side))

    @property
    def names(self) -> tuple[str, ...]:
        """The label of all segments, "object"."""
        return (UNNAMED,)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes, of which this prompt has none."""
        return ()

    @property
    def rows(self) -> tuple[tuple[Point, ...], ...]:
        """The points of each row of the grid, as fractions of the image's width and height."""
        steps = [(step + 0.5) / self.points_per_side for step in range(self.points_per_side)]
        return tuple(tuple((x, y) for x in steps) for y in steps)


Prompt = ConceptPrompt | GeometricPrompt | EverythingPrompt


def is_label(value: object) -> bool:
    """Return whether ``value`` is the number 0 or 1, or a boolean."""
    return isinstance(value, bool) or (is_finite(value) and value in (0, 1))


def is_threshold(value: object) -> bool:
    """Return whether ``value`` is a number from 0 to 1, or None."""
    return value is None or (is_finite(value) and 0 <= value <= 1)  # type: ignore[operator]  # is_finite: a number


def is_finite(value: object) -> bool:
    """Return whether ``value`` is a finite number, and not a boolean."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):  # an integer beyond the range of floats; not a number
        return False


def is_plain_phrase(phrase: str) -> bool:
    """Return whether a phrase has no comma or semicolon, no quotation mark and no full stop at its end."""
    return not (phrase.endswith((".", "。")) or _SEPARATORS.search(phrase) or QUOTATION_MARKS.search(phrase))


def in_brackets(values: Sequence[float]) -> str:
    """Write coordinates as you would type them."""
    return "[" + ", ".join(f"{value:.16g}" for value in values) + "]"


def _set(prompt: object, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(prompt, name, value)  # the way to set a field of a frozen dataclass


def _checked_phrases(phrases: Iterable[str]) -> list[str]:
    phrases = list(map(to_plain, phrases))
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise PromptError("phrases", phrases, f"{quote(phrase)} is not a phrase; {PHRASES_EXPECTED}")
        if len(phrase) > _MAX_PHRASE_LENGTH and len(" ".join(phrase.split())) > _MAX_PHRASE_LENGTH:
            value = phrases[0] if len(phrases) == 1 else phrases
            raise PromptError("phrases", value, f"expected a noun phrase of at most {_MAX_PHRASE_LENGTH} characters")
        if not phrase.strip():
            raise PromptError("phrases", phrases, f"it has a blank phrase; {PHRASES_EXPECTED}")
        if re.search("[\ud800-\udfff]", phrase):
            raise PromptError("phrases", phrases, f"it has half a character (a lone surrogate); {PHRASES_EXPECTED}")
    return [" ".join(phrase.split()) for phrase in phrases]


def _checked_thresholds(thresholds: Iterable[float | None], phrases: Sequence[str]) -> tuple[float | None, ...]:
    """Return a threshold for each different phrase; none if all are None."""
    thresholds = list(map(to_plain, thresholds))
    for threshold in thresholds:
        if not is_threshold(threshold):
            reason = f"{quote(threshold)} is not a number from 0 to 1; {_THRESHOLD_EACH}"
            raise PromptError("confidence_thresholds", thresholds, reason)
    if thresholds and len(thresholds) != len(phrases):
        counts = f"{_count(len(thresholds), 'threshold')} for {_count(len(phrases), 'phrase')}"
        raise PromptError("confidence_thresholds", thresholds, f"{counts}; {_THRESHOLD_EACH}")
    of_phrases: dict[str, float | None] = {}
    for phrase, threshold in zip(phrases, thresholds, strict=False):
        if of_phrases.setdefault(phrase, threshold) != threshold:
            reason = f"{quote(phrase)} has more than one threshold; {_THRESHOLD_EACH}"
            raise PromptError("confidence_thresholds", thresholds, reason)
    if all(threshold is None for threshold in thresholds):
        return ()
    return tuple(None if threshold is None else float(threshold) for threshold in of_phrases.values())


def _checked_categories(categories: Iterable[str], boxes: int) -> tuple[str, ...]:
    if isinstance(categories, str):
        raise TypeError(f"categories = {categories!r}: expected a tuple of strings")
    categories = list(map(to_plain, categories))
    for category in categories:
        if not isinstance(category, str):
            raise PromptError("categories", categories, f"{quote(category)} is not a string; {_CATEGORIES_EXPECTED}")
    if categories and len(categories) != boxes:
        counts = f"{len(categories)} for {_count(boxes, 'box')}"
        raise PromptError("categories", categories, f"{counts}; {_CATEGORIES_EXPECTED}")
    labels = tuple(" ".join(category.split()) or UNNAMED for category in categories)
    return labels if any(label != UNNAMED for label in labels) else ()


def _checked_boxes(boxes: Iterable[Sequence[float]]) -> tuple[Box, ...]:
    checked = _checked_rows("boxes", boxes, 4, BOXES_EXPECTED)
    for box in checked:
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2):
            raise PromptError("boxes", in_brackets(box), f"the box has no area; {BOXES_EXPECTED}")
    return checked


def _checked_rows(argument: str, rows: Iterable[Sequence[float]], length: int, expected: str) -> tuple[Any, ...]:
    checked = []
    for row in map(to_plain, rows):
        if not isinstance(row, Collection):
            raise PromptError(argument, row, f"this is not a list of {length} numbers; {expected}")
        if len(row) != length:
            raise PromptError(argument, row, f"there are {len(row)} numbers, not {length}; {expected}")
        for number in row:
            if not is_finite(number):
                raise PromptError(argument, list(row), f"{quote(number)} is not a finite number; {expected}")
        checked.append(tuple(float(number) for number in row))
    return tuple(checked)


def checked_labels(argument: str, labels: Iterable[int], labelled: int) -> tuple[int, ...]:
    """Return labels as the numbers 0 and 1.

    Args:
        argument: "box_labels" or "point_labels".
        labels: 0, 1 or booleans.
        labelled: number of boxes or points that they label.

    Raises:
        PromptError: a label is invalid, or their number is not ``labelled``.
    """
    labels = list(map(to_plain, labels))
    noun, expected = ("box", BOX_LABELS_EXPECTED) if argument == "box_labels" else ("point", POINT_LABELS_EXPECTED)
    for label in labels:
        if not is_label(label):
            raise PromptError(argument, labels, f"{quote(label)} is not a label; {expected}")
    if len(labels) != labelled:
        counts = f"{_count(len(labels), 'label')} for {_count(labelled, noun)}"
        raise PromptError(argument, labels, f"{counts}; {expected}")
    return tuple(int(label) for label in labels)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else noun + ('es' if noun.endswith('x') else 's')}"
