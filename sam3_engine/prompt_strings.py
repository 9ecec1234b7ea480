"""Make prompts from the parameters that users type and the graphics that they draw.

The plugin, the batch and the demo share these parameters: ``input_text``, ``input_box``, ``input_box_label``,
``input_point`` and ``input_point_label``. Errors name them, quote what was typed and say what is expected.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .errors import PromptError, quote
from .fitting import FittedPrompt, fit_prompt, warn_of_fractions
from .literals import RepeatedKeyError, read_literal
from .prompts import (
    BACKGROUND,
    BOX_LABELS_EXPECTED,
    BOXES_EXPECTED,
    FOREGROUND,
    PHRASES_EXPECTED,
    POINT_LABELS_EXPECTED,
    POINTS_EXPECTED,
    POSITIVE,
    QUOTATION_MARKS,
    THRESHOLDS_EXPECTED,
    Box,
    ConceptPrompt,
    GeometricPrompt,
    Point,
    Prompt,
    checked_labels,
    is_finite,
    is_label,
    is_threshold,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_TYPED = {
    "phrases": "input_text",
    "confidence_thresholds": "input_text",
    "boxes": "input_box",
    "box_labels": "input_box_label",
    "points": "input_point",
    "point_labels": "input_point_label",
    "points_per_side": "points_per_side",
}
_DRAWN = {**_TYPED, "boxes": "drawn rectangle", "points": "drawn point", "categories": "drawn rectangle"}
_OUTRANKED = ("input_box", "input_point", "drawn graphics", "drawn points")  # by concepts
_DRAWING_EXPECTED = "draw a rectangle, ellipse or polygon around an object, or a point on it"
_CLOSING = {'"': '"', "`": "`", "'": "'", "“": "”", "”": "”", "„": "“”", "«": "»", "»": "«", "‘": "’"}


@dataclass(frozen=True)
class Drawing:
    """Graphics that a user draws on an image, in source pixels.

    Attributes:
        rectangles: ``(x1, y1, x2, y2)``, also the bounds of ellipses and polygons.
        points: ``(x, y)``.
        others: what else is drawn and cannot be a prompt, such as "polyline".
        width, height: of the image, in pixels; infinite if unknown.
        categories: one per rectangle, what is in it according to a detector, blank if unknown; or none.
    """

    rectangles: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    others: tuple[str, ...] = ()
    width: float = math.inf
    height: float = math.inf
    categories: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rectangles or self.points or self.others)

    @property
    def usable_rectangles(self) -> tuple[bool, ...]:
        """For each rectangle, whether it has an area and overlaps the image."""
        return tuple(not self._flaw_of_rectangle(rectangle) for rectangle in self.rectangles)

    @property
    def usable_points(self) -> tuple[bool, ...]:
        """For each point, whether it is inside the image."""
        return tuple(not self._flaw_of_point(point) for point in self.points)

    @property
    def unusable(self) -> tuple[str, ...]:
        """What is drawn and cannot be used, with numbers, for example "shape without area", "polyline (2)"."""
        flaws = [*map(self._flaw_of_rectangle, self.rectangles), *map(self._flaw_of_point, self.points), *self.others]
        counts = Counter(filter(None, flaws))
        return tuple(flaw if count == 1 else f"{flaw} ({count})" for flaw, count in counts.items())

    def _flaw_of_rectangle(self, rectangle: Box) -> str:
        x1, y1, x2, y2 = rectangle
        if not (x1 < x2 and y1 < y2):
            return "shape without area"
        on_image = x1 < self.width and y1 < self.height and x2 > 0 and y2 > 0
        return "" if on_image and all(map(is_finite, rectangle)) else "shape outside the image"

    def _flaw_of_point(self, point: Point) -> str:
        x, y = point
        on_image = 0 <= x < self.width and 0 <= y < self.height
        return "" if on_image and all(map(is_finite, point)) else "point outside the image"


@dataclass(frozen=True)
class ChosenPrompt:
    """The prompt that takes effect.

    Attributes:
        prompt: in source pixels.
        drawn: whether its boxes and points are drawn, not typed.
        unused: the parameters and graphics that are set or drawn but do not take effect.
    """

    prompt: Prompt
    drawn: bool = False
    unused: tuple[str, ...] = ()

    def fit(self, width: int, height: int) -> FittedPrompt:
        """Fit the prompt to an image of ``width`` x ``height`` pixels.

        Warns if typed coordinates look like fractions of the image, see :func:`~.fitting.warn_of_fractions`.

        Raises:
            PromptError: see :func:`~.fitting.fit_prompt`; it names the parameter, or the drawn graphic.
        """
        with self.naming_arguments():
            fitted = fit_prompt(self.prompt, width, height)
        if not self.drawn:
            warn_of_fractions(self.prompt, width, height, _TYPED)
        return fitted

    def naming_arguments(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which errors about the prompt name the parameter, or the drawn graphic."""
        return _naming(_DRAWN if self.drawn else _TYPED)


@dataclass(frozen=True)
class PromptStrings:
    """The prompt parameters as users type them; blank or ``[]`` is empty.

    Attributes:
        input_text: a noun phrase, or several, ``["shoe", "person"]``; with a confidence threshold for each,
            ``{"shoe": 0.3, "person": 0.6}``.
        input_box: boxes ``[[x1, y1, x2, y2], ...]`` or a single ``[x1, y1, x2, y2]``.
        input_box_label: labels ``[1, 0, ...]`` that turn the boxes into examples; if no box is typed, the drawn
            rectangles. A bare ``1`` labels all of them.
        input_point: points ``[[x, y], ...]`` or a single ``[x, y]``.
        input_point_label: labels ``[1, 0, ...]`` of the typed points; if neither points nor boxes are typed, of the
            drawn points. A bare ``1`` labels all of them.
    """

    input_text: str = ""
    input_box: str = ""
    input_box_label: str = ""
    input_point: str = ""
    input_point_label: str = ""

    def choose(self, drawing: Drawing | None = None) -> ChosenPrompt | None:
        """Return the prompt that takes effect, or None if there is nothing to segment.

        Phrases and example boxes take precedence over boxes and points of single objects; of these, typed ones take
        precedence over drawn ones. Logged warnings name what is ignored, and so does :attr:`ChosenPrompt.unused`.
        Parameters that are ignored may be invalid.

        Raises:
            PromptError: a parameter that takes effect cannot be used, or nothing that is drawn can be used.
        """
        drawing = drawing or Drawing()
        concepts = self._concepts(drawing)
        if concepts is None:
            return self._outline(drawing)
        outranked = [what for what in concepts.unused if what in _OUTRANKED]
        if outranked:
            logger.warning("%s. Ignored: %s.", _precedence(concepts), ", ".join(outranked))
        if len(outranked) < len(concepts.unused):
            logger.warning("Ignored: %s.", ", ".join(what for what in concepts.unused if what not in outranked))
        return concepts

    def labels_without_use(self, *, boxes: bool = False, points: bool = False) -> tuple[str, ...]:
        """Return the labels that are set although there is nothing that they label.

        Args:
            boxes: whether there are boxes that ``input_box_label`` labels.
            points: whether there are points that ``input_point_label`` labels.
        """
        return (
            *(["input_box_label (no boxes)"] if not boxes and not is_blank(self.input_box_label) else []),
            *(["input_point_label (no points)"] if not points and not is_blank(self.input_point_label) else []),
        )

    def warn_of_labels(self, *, points: bool) -> tuple[str, ...]:
        """Warn of labels for which there are no boxes or points, and return them.

        Args:
            points: whether there are points that ``input_point_label`` labels.
        """
        unused = self.labels_without_use(points=points)
        if unused:
            logger.warning("Ignored: %s.", ", ".join(unused))
        return unused

    def count_objects(self) -> int | None:
        """Return how many single objects the typed boxes and points mark, before they are checked.

        Returns:
            0 for concepts and for prompts that cannot be read; None if nothing is typed.
        """
        has_boxes = not is_blank(self.input_box)
        try:
            if parse_phrases(self.input_text) or (has_boxes and not is_blank(self.input_box_label)):
                return 0
            if not has_boxes and is_blank(self.input_point):
                return None
            return len(parse_boxes(self.input_box)) or 1
        except PromptError:
            return 0

    def errors(self) -> dict[str, str]:
        """Return the error of each parameter that cannot be used, by name, to show while the user types.

        A parameter that a run ignores is included if it is invalid in itself. Labels without boxes or points are not an
        error: the user may draw the boxes or points later.
        """
        errors: dict[str, str] = {}
        for check in (
            lambda: self._concept_prompt((), ()),
            lambda: self._geometric_prompt(parse_boxes(self.input_box), (), ()),
            lambda: parse_box_labels(self.input_box_label),
            lambda: parse_points(self.input_point),
            lambda: parse_point_labels(self.input_point_label),
            lambda: self._point_labels(len(parse_points(self.input_point)), FOREGROUND),
            lambda: self._concepts(Drawing()),
        ):
            try:
                check()
            except PromptError as error:
                errors.setdefault(error.argument, str(error))
        return errors

    def notes(self) -> dict[str, str]:
        """Return why parameters that are set do not take effect, by name, to show while the user types.

        Labels without boxes or points have no note: the user may draw the boxes or points later.
        """
        try:
            concepts = self._concepts(Drawing())
            if concepts:
                ignored = [name for name in ("input_box", "input_point") if name in concepts.unused]
                return dict.fromkeys(ignored, f"Ignored: {_precedence(concepts)}.")
            boxes = parse_boxes(self.input_box)
        except PromptError:
            return {}  # shown as an error
        if len(boxes) > 1 and not is_blank(self.input_point):
            return {"input_point": f"Ignored: points refine a single box, and there are {len(boxes)}."}
        return {}

    def _concepts(self, drawing: Drawing) -> ChosenPrompt | None:
        phrases = parse_phrases(self.input_text)
        boxes = () if is_blank(self.input_box_label) else parse_boxes(self.input_box)
        drawn = bool(drawing.rectangles) and not boxes and not is_blank(self.input_box_label)
        unused_labels = self.labels_without_use(
            boxes=bool(boxes) or drawn, points=bool(drawing.points) or not is_blank(self.input_point)
        )
        if drawn:
            boxes = _compress(drawing.rectangles, drawing.usable_rectangles)
            labels = _labels_of_usable(self._box_labels, drawing.usable_rectangles)
            if not phrases and not boxes:
                raise _drawing_error(drawing)
            self._check_for_positive(phrases, labels, drawing)
        else:
            labels = self._box_labels(len(boxes))
        prompt = self._concept_prompt(boxes, labels, drawn)
        if prompt is None:
            return None
        unused = [
            *(["input_box"] if not boxes and not is_blank(self.input_box) else []),
            *(["input_point"] if not is_blank(self.input_point) else []),
            *(["drawn graphics"] if drawing and not drawn else []),
            *(["drawn points"] if drawing.points and drawn else []),
            *(_unusable(replace(drawing, points=())) if drawn else []),
            *unused_labels,
        ]
        return ChosenPrompt(prompt, drawn, tuple(unused))

    def _outline(self, drawing: Drawing) -> ChosenPrompt | None:
        boxes = parse_boxes(self.input_box)
        points = parse_points(self.input_point) if len(boxes) < 2 else ()
        if drawing and not boxes and not points:
            return self._drawn_outline(drawing)
        labels = self._point_labels(len(points), FOREGROUND)
        unused = []
        if drawing:
            logger.warning("input_box or input_point is set, so drawn graphics are ignored.")
            unused.append("drawn graphics")
        if len(boxes) > 1 and not is_blank(self.input_point):
            _warn_of_refining(boxes)
            unused.append("input_point")
        unused += self.warn_of_labels(points=bool(points) or "input_point" in unused)
        prompt = self._geometric_prompt(boxes, points, labels)
        return ChosenPrompt(prompt, unused=tuple(unused)) if prompt else None

    def _drawn_outline(self, drawing: Drawing) -> ChosenPrompt | None:
        boxes = _compress(drawing.rectangles, drawing.usable_rectangles)
        points: tuple[Point, ...] = ()
        labels: tuple[int, ...] = ()
        if len(boxes) < 2:
            default = BACKGROUND if boxes else FOREGROUND
            points = _compress(drawing.points, drawing.usable_points)
            labels = _labels_of_usable(lambda count: self._point_labels(count, default), drawing.usable_points)
        if not boxes and not points:
            raise _drawing_error(drawing)
        unused = list(_unusable(drawing if len(boxes) < 2 else replace(drawing, points=())))
        if unused:
            logger.warning(
                "Ignored: %s. Rectangles, ellipses and polygons are used as boxes, points as points.", ", ".join(unused)
            )
        if len(boxes) > 1 and drawing.points:
            _warn_of_refining(boxes)
            unused.append("drawn points")
        unused += self.warn_of_labels(points=bool(drawing.points))
        categories = _compress(drawing.categories, drawing.usable_rectangles)
        prompt = self._geometric_prompt(boxes, points, labels, categories, drawn=True)
        return ChosenPrompt(prompt, True, tuple(unused)) if prompt else None

    def _box_labels(self, boxes: int) -> tuple[int, ...]:
        """Return one label per box; if there are no boxes, the labels may be invalid."""
        if not boxes:
            return ()
        labels = parse_box_labels(self.input_box_label, boxes)
        with _naming(_TYPED, {"box_labels": self.input_box_label}):
            return checked_labels("box_labels", labels, boxes)

    def _point_labels(self, points: int, default: int) -> tuple[int, ...]:
        """Return one label per point; if there are no points, the labels may be invalid."""
        if not points:
            return ()
        labels = parse_point_labels(self.input_point_label, points) or (default,) * points
        with _naming(_TYPED, {"point_labels": self.input_point_label}):
            return checked_labels("point_labels", labels, points)

    def _check_for_positive(self, phrases: tuple[str, ...], labels: tuple[int, ...], drawing: Drawing) -> None:
        """Explain the lack of a positive example among the drawn shapes that can be used, if others were skipped."""
        if phrases or POSITIVE in labels or not drawing.unusable:
            return
        skipped = ", ".join(drawing.unusable)
        raise PromptError(
            "input_box_label",
            self.input_box_label,
            f"no shape that can be used is a positive example (skipped: {skipped}); {_DRAWING_EXPECTED}",
        )

    def _concept_prompt(
        self, boxes: tuple[Box, ...], labels: tuple[int, ...], drawn: bool = False
    ) -> ConceptPrompt | None:
        phrases, thresholds = parse_phrases(self.input_text), parse_thresholds(self.input_text)
        if not (phrases or boxes):
            return None
        typed = {
            "phrases": self.input_text,
            "confidence_thresholds": self.input_text,
            "box_labels": self.input_box_label,
        }
        with _naming(_DRAWN if drawn else _TYPED, typed):
            return ConceptPrompt(phrases, boxes, labels, thresholds)

    def _geometric_prompt(
        self,
        boxes: tuple[Box, ...],
        points: tuple[Point, ...],
        labels: tuple[int, ...],
        categories: tuple[str, ...] = (),
        drawn: bool = False,
    ) -> GeometricPrompt | None:
        if not (boxes or points):
            return None
        with _naming(_DRAWN if drawn else _TYPED):
            return GeometricPrompt(boxes, points, labels, categories)


def parse_phrases(text: str) -> tuple[str, ...]:
    """Read noun phrases from ``["shoe", "person"]`` or ``{"shoe": 0.3, "person": 0.6}``.

    Anything else is one phrase, and blank text is none. Quotation marks around a single phrase are removed.

    Raises:
        PromptError: the text begins like a list or an object, but is not a list of strings, or an object of thresholds.
    """
    stripped = text.strip()
    if not stripped:
        return ()
    if stripped[0] == "{":
        return tuple(_read_thresholds(text))
    if stripped[0] not in "[(":
        phrase = _without_quotation_marks(stripped)
        return (phrase,) if phrase.strip() else ()
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


def parse_thresholds(text: str) -> tuple[float | None, ...]:
    """Read the thresholds of the phrases that :func:`parse_phrases` reads, None where there is none.

    Returns:
        One per phrase of an object such as ``{"shoe": 0.3, "person": 0.6}``; none of any other text.

    Raises:
        PromptError: the text begins like an object, but is not an object of thresholds.
    """
    return tuple(_read_thresholds(text).values()) if text.lstrip().startswith("{") else ()


def _read_thresholds(text: str) -> dict[str, float | None]:
    try:
        thresholds = read_literal(text.strip())
    except RepeatedKeyError as error:
        reason = f"{quote(error.key)} has more than one threshold; {THRESHOLDS_EXPECTED}"
        raise PromptError("input_text", text, reason) from None
    except ValueError:
        thresholds = None
    if not isinstance(thresholds, dict):
        raise PromptError("input_text", text, f"this cannot be read; {THRESHOLDS_EXPECTED}")
    for phrase, threshold in thresholds.items():
        if not isinstance(phrase, str):
            raise PromptError("input_text", text, f"{quote(phrase)} is not a phrase; {THRESHOLDS_EXPECTED}")
        if not is_threshold(threshold):
            reason = f"{quote(threshold)} is not a number from 0 to 1; {THRESHOLDS_EXPECTED}"
            raise PromptError("input_text", text, reason)
    return thresholds


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


def parse_box_labels(text: str, boxes: int = 1) -> tuple[int, ...]:
    """Read labels from ``[1, 0, ...]``, or a bare ``1`` or ``0`` for all ``boxes``; blank text or ``[]`` is none.

    True and False are read as 1 and 0.

    Raises:
        PromptError: the text is something else.
    """
    return _parse_labels("input_box_label", text, boxes, BOX_LABELS_EXPECTED)


def parse_point_labels(text: str, points: int = 1) -> tuple[int, ...]:
    """Read labels from ``[1, 0, ...]``, or a bare ``1`` or ``0`` for all ``points``; blank text or ``[]`` is none.

    True and False are read as 1 and 0.

    Raises:
        PromptError: the text is something else.
    """
    return _parse_labels("input_point_label", text, points, POINT_LABELS_EXPECTED)


def is_blank(text: str) -> bool:
    """Return whether a parameter is empty."""
    return "".join(text.split()) in ("", "[]", "()")


def _without_quotation_marks(phrase: str) -> str:
    """Return what is between quotation marks around a whole phrase, not around parts of it."""
    inside = phrase[1:-1]
    is_quoted = len(phrase) > 1 and phrase[-1] in _CLOSING.get(phrase[0], "") and not QUOTATION_MARKS.search(inside)
    return inside if is_quoted else phrase


def _compress(items: Iterable[Item], selected: Iterable[bool]) -> tuple[Item, ...]:
    return tuple(itertools.compress(items, selected))


def _labels_of_usable(read: Callable[[int], tuple[int, ...]], usable: Sequence[bool]) -> tuple[int, ...]:
    """Return the labels of the drawn graphics that can be used.

    Args:
        read: returns the labels that the user typed for a number of graphics, or raises a PromptError.
        usable: which of the graphics can be used. The user may have labeled all of them, or only these.
    """
    try:
        return _compress(read(len(usable)), usable)
    except PromptError:
        return read(sum(usable))


def _precedence(concepts: ChosenPrompt) -> str:
    """Return why concepts take precedence over boxes and points of single objects."""
    return "input_box_label is set, so boxes are examples" if concepts.prompt.boxes else "input_text is set"


def _unusable(drawing: Drawing) -> tuple[str, ...]:
    return tuple(f"drawn {what}" for what in drawing.unusable)


def _drawing_error(drawing: Drawing) -> PromptError:
    return PromptError("drawn graphics", ", ".join(drawing.unusable), f"this cannot be used; {_DRAWING_EXPECTED}")


def _warn_of_refining(boxes: Sequence[Box]) -> None:
    logger.warning("Points refine a single box: with %d boxes, the points are ignored.", len(boxes))


def _parse_labels(parameter: str, text: str, labelled: int, expected: str) -> tuple[int, ...]:
    value = _parse(parameter, text, expected)
    labels = value if isinstance(value, list | tuple) else (value,) * labelled
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
