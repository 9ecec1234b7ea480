"""Questions about synthetic scenes have the stated answers, and the evaluation counts wrong answers as wrong."""

import numpy as np
import pytest

from sam3_engine.fitting import fit_prompt
from sam3_engine.prompts import GeometricPrompt
from testbed.scenes import SYNONYMS, Region, draw_scene, iou
from training.evaluate import Detections, Outlines
from training.questions import (
    EXEMPLAR_KINDS,
    OUTLINE_KINDS,
    OutlineQuestion,
    ask_by_exemplar,
    ask_for_absent,
    ask_for_outline,
    ask_for_present,
    loose_box,
)


@pytest.fixture(scope="module")
def scenes():
    random = np.random.default_rng(11)
    return [draw_scene(random, 200, 160) for _ in range(60)]


@pytest.fixture(scope="module")
def outlines(scenes):
    random = np.random.default_rng(12)
    return [
        (scene, ask_for_outline(random, scene, kind)) for scene in scenes for kind in OUTLINE_KINDS for _ in range(3)
    ]


def test_phrases_for_present_shapes_have_the_stated_answers(scenes):
    random = np.random.default_rng(1)
    questions = [(scene, ask_for_present(random, scene)) for scene in scenes for _ in range(5)]
    for scene, question in questions:
        assert question.answers
        assert question.answers == scene.instances(question.phrase)
    phrases = {question.phrase for _, question in questions}
    assert any("dot" in phrase for phrase in phrases)
    assert any(phrase.endswith(("stars", "crosses", "shapes")) for phrase in phrases)
    assert any(phrase.startswith(("a ", "the ")) for phrase in phrases)
    assert any(set(phrase.split()) & set(SYNONYMS) for phrase in phrases)


def test_phrases_for_absent_shapes_have_no_answers(scenes):
    random = np.random.default_rng(2)
    phrases = []
    for scene in scenes:
        for _ in range(5):
            question = ask_for_absent(random, scene)
            assert question.answers == scene.instances(question.phrase) == []
            phrases.append(question.phrase)
    assert len(set(phrases)) > 100


def test_points_lie_inside_or_outside_the_answer_as_labeled(outlines):
    for _, question in outlines:
        for (x, y), label in zip(question.points, question.labels, strict=True):
            assert question.answer.mask[int(y), int(x)] == bool(label)


def test_boxes_bound_the_answer_or_the_shape_around_it(outlines):
    boxes = [(scene, question) for scene, question in outlines if question.box]
    assert len(boxes) > 100
    for scene, question in boxes:
        x1, y1, x2, y2 = question.box
        around = [s.whole for s in scene.shapes if not (question.answer.mask & ~s.whole.mask).any()]
        outer = around if question.labels.size else []
        tolerance = 0.1 * max(x2 - x1, y2 - y1) + 1
        assert (
            min(np.abs(np.subtract(question.box, region.box)).max() for region in [question.answer, *outer]) < tolerance
        )


def test_every_question_is_a_valid_prompt(outlines):
    for scene, question in outlines:
        height, width = scene.image.shape[:2]
        prompt = GeometricPrompt(
            (question.box,) if question.box else (),
            tuple((x, y) for x, y in question.points.tolist()),
            tuple(question.labels.tolist()),
        )
        assert fit_prompt(prompt, width, height)


def test_questions_cover_every_kind_of_region(outlines):
    for kind in ("points", "box and point"):
        answers = [(scene, question.answer) for scene, question in outlines if question.kind == kind]
        dots = [shape.dot for scene, _ in answers for shape in scene.shapes if shape.dot]
        wholes = [shape.whole for scene, _ in answers for shape in scene.shapes]
        assert any(answer in dots for _, answer in answers)
        assert any(answer in wholes for _, answer in answers)
        assert any(answer not in dots and answer not in wholes for _, answer in answers)  # a ring


def test_the_answer_is_the_first_acceptable_region(outlines):
    assert all(question.answer is question.acceptable[0] for _, question in outlines)
    assert any(len(question.acceptable) == 2 for _, question in outlines)


@pytest.fixture(scope="module")
def exemplars(scenes):
    random = np.random.default_rng(13)
    return [
        (scene, ask_by_exemplar(random, scene, kind)) for scene in scenes for kind in EXEMPLAR_KINDS for _ in range(3)
    ]


def shape_in(box, scene):
    """Return the shape whose box is closest to the given one."""
    return min(scene.shapes, key=lambda shape: np.abs(np.subtract(shape.whole.box, box)).sum())


def test_positive_boxes_ask_for_all_similar_shapes(exemplars):
    without_phrase = [(scene, question) for scene, question in exemplars if question.phrase is None]
    for scene, question in without_phrase:
        shown = [shape_in(box, scene) for box in question.boxes]
        alike = {(shape.kind, shape.color) for shape, label in zip(shown, question.labels, strict=True) if label}
        unlike = {(shape.kind, shape.color) for shape, label in zip(shown, question.labels, strict=True) if not label}
        assert len(alike) == 1
        assert not alike & unlike
        assert not unlike or question.kind == "positive and negative box"
        assert question.answers == [shape.whole for shape in scene.shapes if (shape.kind, shape.color) in alike]
    assert {sum(question.labels) for _, question in without_phrase} == {1, 2}
    assert any(0 in question.labels for _, question in without_phrase)
    assert any(len(question.answers) > 2 for _, question in without_phrase)


def test_with_a_positive_box_the_phrase_defines_the_answers(exemplars):
    for scene, question in exemplars:
        if question.kind == "phrase and positive box":
            assert question.labels == [1]
            assert question.answers == scene.instances(question.phrase)
            assert shape_in(question.boxes[0], scene).whole in question.answers


def test_a_negative_box_excludes_similar_shapes(exemplars):
    empty = 0
    for scene, question in exemplars:
        if question.kind == "phrase and negative box":
            assert question.labels == [0]
            shown = shape_in(question.boxes[0], scene)
            named = scene.instances(question.phrase)
            taken = [s.whole for s in scene.shapes if (s.kind, s.color) == (shown.kind, shown.color)]
            assert question.answers == [region for region in named if region not in taken]
            empty += not question.answers
            if len({(shape.kind, shape.color) for shape in scene.shapes}) > 1:
                assert question.answers
    assert empty  # happens in scenes with one kind and color


def test_a_loose_box_stays_inside_the_image():
    everything = Region(np.ones((30, 40), np.float32))
    random = np.random.default_rng(0)
    for _ in range(50):
        x1, y1, x2, y2 = loose_box(random, everything)
        assert 0 <= x1 < x2 <= 40
        assert 0 <= y1 < y2 <= 30


def region(*columns):
    coverage = np.zeros((4, 10), np.float32)
    coverage[:, list(columns)] = 1
    return Region(coverage)


def test_detections_count_each_answer_once():
    measure = Detections()
    left, right = region(0, 1, 2), region(6, 7, 8)
    measure.add([left.mask, left.mask, region(4, 5).mask], [left, right])
    assert (measure.matched, measure.found, measure.true) == (1, 3, 2)
    assert measure.ious == [1.0]
    measure.add([], [right])
    measure.add([region(6, 7, 8, 9).mask], [right])
    assert (measure.matched, measure.found, measure.true) == (2, 4, 4)
    assert measure.ious[1] == 0.75


def test_outlines_are_scored_against_the_answer_alone():
    dot, whole = region(2), region(1, 2, 3)
    question = OutlineQuestion("point", np.array([[2.5, 1.5]]), np.array([1]), None, dot, (dot, whole))
    measure = Outlines()
    measure.add(question, whole.mask, [whole.mask, dot.mask, region(9).mask])
    assert measure.single == [pytest.approx(1 / 3)]
    assert measure.best_of_three == [1.0]


def test_the_iou_of_two_empty_masks_is_1():
    nothing = np.zeros((3, 3), bool)
    assert iou(nothing, nothing) == 1
    assert iou(nothing, ~nothing) == 0


def test_the_share_of_questions_about_absent_dots_can_be_raised(scenes):
    scene = next(scene for scene in scenes if not any(shape.dot for shape in scene.shapes))
    random = np.random.default_rng(2)
    asked = [ask_for_absent(random, scene, dots=0.8).phrase for _ in range(60)]
    assert 30 < sum("dot" in phrase or "spot" in phrase for phrase in asked) < 60
