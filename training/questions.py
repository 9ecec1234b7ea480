"""Prompts about synthetic scenes, with the correct answers, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion

from sam3_engine.prompts import BACKGROUND, FOREGROUND, NEGATIVE, POSITIVE
from testbed.scenes import ANY_SHAPE, ARTICLES, COLORS, DOT_COLORS, KINDS, SYNONYMS, Region, Scene, Shape, plural

# nouns that name nothing in any scene
OTHER_NOUNS = (
    *("apple", "banana", "bird", "boat", "book", "bottle", "bridge", "building", "car", "cat", "chair", "child"),
    *("clock", "cloud", "dog", "door", "face", "fish", "flower", "glass", "hand", "hat", "house", "lamp", "leaf"),
    *("mountain", "person", "phone", "pizza", "river", "shoe", "table", "train", "tree", "truck", "wheel", "window"),
)
SHAPE_PHRASE_SHARES = {"kind": 0.42, "color and kind": 0.4, "any shape": 0.09, "color and any shape": 0.09}
OUTLINE_KINDS = ("point", "points", "box", "box and point")
EXEMPLAR_KINDS = (
    "positive box",
    "positive and negative box",
    "phrase and positive box",
    "phrase and negative box",
)


@dataclass(frozen=True, eq=False)
class PhraseQuestion:
    """A phrase and every region that it names.

    Attributes:
        kind: one of :data:`SHAPE_PHRASE_SHARES`, "dot" or "absent".
        phrase: sometimes with a synonym, a plural or an article, which need not agree ("an red stars").
        answers: every region that the phrase names; none if it is absent.
    """

    kind: str
    phrase: str
    answers: list[Region]


@dataclass(frozen=True, eq=False)
class ExemplarQuestion:
    """Exemplar boxes, with or without a phrase, that ask for every shape like them.

    Two shapes are alike if they have the same kind and color. With a phrase, the answers are what it names; a negative
    box excludes shapes like the one in it.

    Attributes:
        kind: one of :data:`EXEMPLAR_KINDS`.
        phrase: None if there are only boxes.
        boxes: (x1, y1, x2, y2) in pixels.
        labels: one per box, 1 positive, 0 negative.
        answers: every region asked for.
    """

    kind: str
    phrase: str | None
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    answers: list[Region]


@dataclass(frozen=True, eq=False)
class OutlineQuestion:
    """Points and at most one box that ask for a single region.

    Attributes:
        kind: one of :data:`OUTLINE_KINDS`.
        points: (N, 2) x and y in pixels.
        labels: (N,) 1 foreground, 0 background.
        box: (x1, y1, x2, y2) in pixels, or None.
        answer: the intended region.
        acceptable: all plausible regions, including the answer: a point on a dot may also mean the whole shape.
    """

    kind: str
    points: np.ndarray
    labels: np.ndarray
    box: tuple[float, float, float, float] | None
    answer: Region
    acceptable: tuple[Region, ...]


def ask_for_present(random: np.random.Generator, scene: Scene, dots: float = 0.1) -> PhraseQuestion:
    """Ask for something in the scene by its kind, its color or both; ``dots`` is the share of phrases for dots."""
    shape = scene.shapes[random.integers(len(scene.shapes))]
    dotted = [other for other in scene.shapes if other.dot]
    kind = str(random.choice(list(SHAPE_PHRASE_SHARES), p=list(SHAPE_PHRASE_SHARES.values())))
    if dotted and random.random() < dots:
        kind = "dot"
        dot_color = random.choice([str(other.dot_color) for other in dotted])
        phrase = "dot" if random.random() < 0.5 else f"{dot_color} dot"
    else:
        noun = random.choice(ANY_SHAPE) if "any" in kind else shape.kind
        phrase = f"{shape.color} {noun}" if "color" in kind else str(noun)
    return PhraseQuestion(kind, _worded(random, phrase), scene.instances(phrase))


def ask_for_two(random: np.random.Generator, scene: Scene) -> list[PhraseQuestion]:
    """Ask for two different things in the scene; return no questions if it seems to contain only one kind of thing."""
    for _ in range(20):
        first, second = ask_for_present(random, scene), ask_for_present(random, scene)
        if not any(answer is other for answer in first.answers for other in second.answers):
            return [first, second]
    return []


def ask_for_absent(random: np.random.Generator, scene: Scene, dots: float = 0.1) -> PhraseQuestion:
    """Ask for something that is not in the scene: an unknown noun, or a near miss of what is there.

    ``dots``, less than 1, is the share of phrases that ask for a dot of an absent color. If dots of both colors are
    present, other phrases take their place.
    """
    of_others = (1 - dots) / 0.9
    kinds, colors = [shape.kind for shape in scene.shapes], [shape.color for shape in scene.shapes]
    while True:
        near_miss = f"{random.choice([*colors, random.choice(COLORS)])} {random.choice([*kinds, random.choice(KINDS)])}"
        unknown = str(random.choice(OTHER_NOUNS))
        phrase = random.choice(
            [
                near_miss,
                str(random.choice(KINDS)),
                f"{random.choice(COLORS)} {random.choice(ANY_SHAPE)}",
                f"{random.choice(DOT_COLORS)} dot",
                unknown,
                f"{random.choice(COLORS)} {unknown}",
            ],
            p=[0.34 * of_others, 0.22 * of_others, 0.12 * of_others, dots, 0.15 * of_others, 0.07 * of_others],
        )
        if not scene.instances(phrase):
            return PhraseQuestion("absent", _worded(random, phrase), [])


def ask_for_outline(random: np.random.Generator, scene: Scene, kind: str) -> OutlineQuestion:
    """Ask for a shape, its dot or its ring; half of the questions are about a shape with a dot, if there is one."""
    dotted = [shape for shape in scene.shapes if shape.dot]
    candidates = dotted if dotted and random.random() < 0.5 else scene.shapes
    shape = candidates[random.integers(len(candidates))]
    ask = {"point": _by_point, "points": _by_points, "box": _by_box, "box and point": _by_box_and_point}[kind]
    points, labels, box, answer, acceptable = ask(random, shape)
    return OutlineQuestion(
        kind, np.array(points, float).reshape(-1, 2), np.array(labels, int), box, answer, (answer, *acceptable)
    )


def ask_by_exemplar(random: np.random.Generator, scene: Scene, kind: str) -> ExemplarQuestion:
    """Ask by exemplar boxes with the given kind of prompt.

    If all shapes are alike, a negative box would exclude every shape. Next to a positive box, it is then left out; with
    a phrase, there is no correct answer.
    """
    exemplar = scene.shapes[random.integers(len(scene.shapes))]
    ask = _by_phrase_and_box if kind.startswith("phrase") else _by_boxes
    return ask(random, scene, exemplar, kind)


def _by_boxes(random: np.random.Generator, scene: Scene, exemplar: Shape, kind: str) -> ExemplarQuestion:
    alike = [shape for shape in scene.shapes if shape.is_like(exemplar)]
    others = [shape for shape in scene.shapes if not shape.is_like(exemplar)]
    shown = [alike[k] for k in random.permutation(len(alike))[: random.integers(1, 3)]]
    boxes, labels = [loose_box(random, shape.whole) for shape in shown], [POSITIVE] * len(shown)
    if others and kind == "positive and negative box":
        boxes.append(loose_box(random, others[random.integers(len(others))].whole))
        labels.append(NEGATIVE)
    return ExemplarQuestion(kind, None, boxes, labels, [shape.whole for shape in alike])


def _by_phrase_and_box(random: np.random.Generator, scene: Scene, exemplar: Shape, kind: str) -> ExemplarQuestion:
    negative = kind == "phrase and negative box"
    nouns = [exemplar.kind, *ANY_SHAPE, f"{exemplar.color} {random.choice(ANY_SHAPE)}"]
    if not negative:
        nouns.append(f"{exemplar.color} {exemplar.kind}")
    answers = {noun: [shape for shape in scene.shapes if shape.whole in scene.instances(noun)] for noun in nouns}
    if negative:
        left = {noun: [shape for shape in named if not shape.is_like(exemplar)] for noun, named in answers.items()}
        answers = {noun: shapes for noun, shapes in left.items() if shapes} or left
    noun = str(random.choice(list(answers)))
    return ExemplarQuestion(
        kind,
        _worded(random, noun),
        [loose_box(random, exemplar.whole)],
        [NEGATIVE if negative else POSITIVE],
        [shape.whole for shape in answers[noun]],
    )


_Outline = tuple[list, list, tuple[float, float, float, float] | None, Region, tuple[Region, ...]]


def _by_point(random: np.random.Generator, shape: Shape) -> _Outline:
    if not shape.dot:
        return [point_in(random, shape.whole.mask)], [FOREGROUND], None, shape.whole, ()
    if random.random() < 0.5:
        return [point_in(random, shape.dot.mask)], [FOREGROUND], None, shape.dot, (shape.whole,)
    return [point_in(random, shape.ring.mask)], [FOREGROUND], None, shape.whole, (shape.ring,)


def _by_points(random: np.random.Generator, shape: Shape) -> _Outline:
    outside = point_in(random, ~shape.whole.mask)
    if not shape.dot:
        return [point_in(random, shape.whole.mask), outside], [FOREGROUND, BACKGROUND], None, shape.whole, ()
    on_dot, on_ring = point_in(random, shape.dot.mask), point_in(random, shape.ring.mask)
    choice = random.integers(4)
    if choice == 0:
        return [on_dot, on_ring], [FOREGROUND, BACKGROUND], None, shape.dot, ()
    if choice == 1:
        return [on_ring, on_dot], [FOREGROUND, BACKGROUND], None, shape.ring, ()
    if choice == 2:
        return [on_ring, on_dot], [FOREGROUND, FOREGROUND], None, shape.whole, ()
    return [on_ring, outside], [FOREGROUND, BACKGROUND], None, shape.whole, (shape.ring,)


def _by_box(random: np.random.Generator, shape: Shape) -> _Outline:
    target = shape.dot if shape.dot and random.random() < 0.4 else shape.whole
    return [], [], loose_box(random, target), target, ()


def _by_box_and_point(random: np.random.Generator, shape: Shape) -> _Outline:
    box = loose_box(random, shape.whole)
    if not shape.dot:
        label = int(random.integers(2))
        point = point_in(random, shape.whole.mask if label == FOREGROUND else ~shape.whole.mask)
        return [point], [label], box, shape.whole, ()
    choice = random.integers(3)
    if choice == 0:
        return [point_in(random, shape.dot.mask)], [BACKGROUND], box, shape.ring, ()
    if choice == 1:
        return [point_in(random, shape.ring.mask)], [FOREGROUND], box, shape.whole, ()
    return [point_in(random, shape.dot.mask)], [FOREGROUND], loose_box(random, shape.dot), shape.dot, ()


def point_in(random: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """Return the center (x, y) of a random pixel of ``mask``, away from its edge if possible."""
    inner = binary_erosion(mask, iterations=2)
    pixels = np.flatnonzero(inner if inner.sum() > 8 else mask)
    row, column = divmod(int(random.choice(pixels)), mask.shape[1])
    return column + 0.5, row + 0.5


def loose_box(random: np.random.Generator, region: Region) -> tuple[float, float, float, float]:
    """Return the box of a region as drawn by hand: each side is off by about 2 % of the box."""
    x1, y1, x2, y2 = region.box
    off = random.normal(0, 0.02, 4) * np.array([x2 - x1, y2 - y1] * 2)
    height, width = region.coverage.shape
    jittered = np.array(region.box) + off
    return tuple(np.clip(jittered, 0, [width, height, width, height]).tolist())


def _worded(random: np.random.Generator, phrase: str) -> str:
    """Return the phrase, sometimes with a synonym, a plural or an article."""
    words = phrase.split()
    if random.random() < 0.15:
        words = [next((other for other, meaning in SYNONYMS.items() if meaning == word), word) for word in words]
    if random.random() < 0.2:
        words[-1] = plural(words[-1])
    if random.random() < 0.1:
        words.insert(0, str(random.choice(ARTICLES)))
    return " ".join(words)
