"""What the user typed, or drew, turned into checked, immutable prompts.

Coordinates are pixels of the source image, x to the right and y down. Whatever cannot be a prompt is refused
here with a :class:`PromptError` that names the parameter, quotes the value and says what is expected; nothing
further down checks a prompt again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .parsing import (
    BACKGROUND,
    FOREGROUND,
    POSITIVE,
    Box,
    Point,
    PromptError,
    check_boxes,
    check_labels,
    in_brackets,
    parse_box_labels,
    parse_boxes,
    parse_phrases,
    parse_point_labels,
    parse_points,
)

logger = logging.getLogger(__name__)

UNNAMED = "object"  # the label of what no phrase names


@dataclass(frozen=True)
class ConceptPrompt:
    """Concepts, every instance of which is segmented: phrases name them, or example boxes show one.

    Attributes:
        phrases: noun phrases, each a concept of its own; beside example boxes at most one.
        boxes: examples, ``(x1, y1, x2, y2)`` in source-image pixels.
        box_labels: one per box, 1 for an example of what to find, 0 for one of what not.
        drawn: whether the boxes were drawn rather than typed; errors name them accordingly.

    Raises:
        TypeError: ``phrases`` is a string, whose letters would each be a phrase.
    """

    phrases: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    box_labels: tuple[int, ...] = ()
    drawn: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.phrases, str):
            raise TypeError(f"phrases = {self.phrases!r}: expected a tuple of strings")

    def __bool__(self) -> bool:
        return bool(self.phrases or self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """What the instances of each concept are called: the phrases, or "object" if only boxes say what to find."""
        return self.phrases or (UNNAMED,)

    def clipped(self, width: int, height: int) -> ConceptPrompt:
        """This prompt with its boxes cut to a ``width`` x ``height`` image.

        Raises:
            PromptError: a box has no area or is outside the image, the labels are not one per box, there are boxes
                beside several phrases, or there is nothing but examples of what not to find.
        """
        _check_examples(self)
        box_name = _box_name(self.drawn)
        check_boxes(box_name, self.boxes)
        return replace(self, boxes=_clipped_boxes(box_name, self.boxes, width, height))

    def scaled(self, x_factor: float, y_factor: float) -> ConceptPrompt:
        """This prompt with x coordinates multiplied by ``x_factor`` and y coordinates by ``y_factor``."""
        return replace(self, boxes=_scaled_boxes(self.boxes, x_factor, y_factor))


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

    @property
    def names(self) -> tuple[str, ...]:
        """What its objects are called: "object"."""
        return (UNNAMED,)

    def clipped(self, width: int, height: int) -> GeometricPrompt:
        """This prompt with its boxes cut to a ``width`` x ``height`` image.

        Raises:
            PromptError: a box has no area or is outside the image, a point is outside it, the labels are not one per
                point, or there are points beside several boxes.
        """
        box_name, point_name = _box_name(self.drawn), "drawn point" if self.drawn else "input_point"
        _check_point_labels(self)
        if self.points and len(self.boxes) > 1:
            raise PromptError(point_name, self.points, f"points refine a single box, not {len(self.boxes)} boxes")
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                expected = f"expected 0 <= x < {width} and 0 <= y < {height}"
                raise PromptError(point_name, in_brackets((x, y)), f"the point is outside the image; {expected}")
        check_boxes(box_name, self.boxes)
        return replace(self, boxes=_clipped_boxes(box_name, self.boxes, width, height))

    def scaled(self, x_factor: float, y_factor: float) -> GeometricPrompt:
        """This prompt with x coordinates multiplied by ``x_factor`` and y coordinates by ``y_factor``."""
        return replace(
            self,
            boxes=_scaled_boxes(self.boxes, x_factor, y_factor),
            points=tuple((x * x_factor, y * y_factor) for x, y in self.points),
        )


Prompt = ConceptPrompt | GeometricPrompt


def choose_prompt(
    input_text: str = "",
    input_box: str = "",
    input_box_label: str = "",
    input_point: str = "",
    input_point_label: str = "",
    drawn: GeometricPrompt | None = None,
) -> Prompt | None:
    """Parse the prompt strings and choose the prompt that counts.

    Phrases and example boxes come before boxes and points that outline objects, and typed ones of these before what
    was drawn. What is left aside is named in one logged warning.

    Args:
        input_text: see :func:`~sam3_engine.parsing.parse_phrases`.
        input_box: see :func:`~sam3_engine.parsing.parse_boxes`.
        input_box_label: see :func:`~sam3_engine.parsing.parse_box_labels`; labels make examples of the boxes, or if
            none are typed of the drawn rectangles.
        input_point: see :func:`~sam3_engine.parsing.parse_points`.
        input_point_label: see :func:`~sam3_engine.parsing.parse_point_labels`; they label the typed points, or if
            neither points nor boxes are typed the drawn ones.
        drawn: prompt made of drawn graphics, see :func:`drawn_prompt`.

    Returns:
        The prompt, or None if there is nothing to segment.

    Raises:
        PromptError: a string that counts does not hold what its parameter expects.
    """
    concepts = _concept_prompt(input_text, input_box, input_box_label, drawn)
    if concepts:
        unused = [
            name
            for name, given in (
                ("input_box", not concepts.boxes and not _blank(input_box)),
                ("input_point", not _blank(input_point)),
                ("what is drawn", drawn and not concepts.drawn),
                ("what is drawn beside rectangles", drawn and drawn.points and concepts.drawn),
            )
            if given
        ]
        if unused:
            if concepts.boxes:
                reason = "input_box_label is set, so boxes are examples"
            else:
                reason = "input_text is set, so it is the prompt"
            logger.warning("%s: %s not used.", reason, _enumeration(unused))
        return concepts

    chosen = _geometric_prompt(input_box, input_point, input_point_label, drawn)
    if chosen and not chosen.drawn and drawn:
        logger.warning("input_box or input_point is set, so it is the prompt: what is drawn is not used.")
    return _usable(chosen) or None


def prompt_errors(
    input_text: str = "",
    input_box: str = "",
    input_box_label: str = "",
    input_point: str = "",
    input_point_label: str = "",
) -> dict[str, str]:
    """What is wrong with each of the prompt strings, to be shown while they are typed.

    Args:
        input_text, input_box, input_box_label, input_point, input_point_label: see :func:`choose_prompt`.

    Returns:
        Names of parameters that do not hold what they are to hold, to the messages of their errors.
    """
    errors: dict[str, str] = {}
    for parse in (
        lambda: parse_phrases(input_text),
        lambda: parse_boxes(input_box),
        lambda: parse_box_labels(input_box_label),
        lambda: parse_points(input_point),
        lambda: parse_point_labels(input_point_label),
        # does it go together? labels may be those of what is going to be drawn
        lambda: (_blank(input_box) and _blank(input_point)) or _geometric_prompt("", input_point, input_point_label),
        lambda: _blank(input_box) or _concept_prompt(input_text, input_box, input_box_label),
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


def _blank(text: str) -> bool:
    return text.strip() in ("", "[]", "()")


def _concept_prompt(
    input_text: str, input_box: str, input_box_label: str, drawn: GeometricPrompt | None = None
) -> ConceptPrompt:
    labels = parse_box_labels(input_box_label)
    boxes = parse_boxes(input_box) if labels else ()
    use_drawn = bool(labels and not boxes and drawn)
    if use_drawn and drawn:
        boxes = drawn.boxes
    prompt = ConceptPrompt(parse_phrases(input_text), boxes, labels, use_drawn)
    _check_examples(prompt, input_box_label)
    return prompt


def _check_examples(prompt: ConceptPrompt, typed: str = "") -> None:
    labels = prompt.box_labels
    typed = typed or str(list(labels))
    name = "drawn rectangle(s)" if prompt.drawn else "box(es) in input_box"
    check_labels("input_box_label", labels, prompt.boxes, name, typed)
    if prompt.boxes and len(prompt.phrases) > 1:
        reason = f"example boxes go with one phrase, or with none, not with {len(prompt.phrases)}"
        raise PromptError("input_text", list(prompt.phrases), reason)
    if prompt.boxes and not prompt.phrases and POSITIVE not in labels:
        reason = "nothing says what to find; expected a 1 among the labels, or a phrase in input_text"
        raise PromptError("input_box_label", typed, reason)


def _geometric_prompt(
    input_box: str, input_point: str, input_point_label: str, drawn: GeometricPrompt | None = None
) -> GeometricPrompt:
    """What is typed, or if nothing is what is drawn."""
    prompt = GeometricPrompt(parse_boxes(input_box), parse_points(input_point))
    prompt = replace(prompt, point_labels=(FOREGROUND,) * len(prompt.points)) or drawn or prompt
    labels = parse_point_labels(input_point_label)
    if labels:
        prompt = replace(prompt, point_labels=labels)
    _check_point_labels(prompt, input_point_label)
    return prompt


def _check_point_labels(prompt: GeometricPrompt, typed: str = "") -> None:
    labels = prompt.point_labels
    name = "drawn point(s)" if prompt.drawn else "point(s) in input_point"
    check_labels("input_point_label", labels, prompt.points, name, typed or str(list(labels)))


def _usable(prompt: GeometricPrompt) -> GeometricPrompt:
    """``prompt`` without points that it cannot use."""
    if len(prompt.boxes) > 1 and prompt.points:
        logger.warning("Points refine a single box: with %d boxes the points are not used.", len(prompt.boxes))
        return replace(prompt, points=(), point_labels=())
    return prompt


def _box_name(drawn: bool) -> str:
    return "drawn rectangle" if drawn else "input_box"


def _clipped_boxes(name: str, boxes: tuple[Box, ...], width: int, height: int) -> tuple[Box, ...]:
    clipped = []
    for x1, y1, x2, y2 in boxes:
        left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
        if not (left < right and top < bottom):
            reason = f"the box is outside the image; expected an overlap with [0, 0, {width}, {height}]"
            raise PromptError(name, in_brackets((x1, y1, x2, y2)), reason)
        clipped.append((left, top, right, bottom))
    return tuple(clipped)


def _scaled_boxes(boxes: tuple[Box, ...], x_factor: float, y_factor: float) -> tuple[Box, ...]:
    return tuple((x1 * x_factor, y1 * y_factor, x2 * x_factor, y2 * y_factor) for x1, y1, x2, y2 in boxes)


def _enumeration(names: Sequence[str]) -> str:
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return f"{listed} {'is' if len(names) == 1 else 'are'}"
