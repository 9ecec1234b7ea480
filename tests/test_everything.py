"""Segmenting everything: the grid, the thresholds, and what the shapes network finds."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch

from sam3_engine import everything
from sam3_engine.everything import _contain, _stability_scores
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import EverythingPrompt, GeometricPrompt
from sam3_engine.segments import Segment, label_map, masks_of
from sam3_engine.settings import Settings
from testbed.plugin import PLUGIN, Plugin
from testbed.scenes import Scene, draw_scene, iou
from training.evaluate import held_out_scenes, pillow_scenes
from training.evaluate_everything import judge

CPU = torch.device("cpu")
SEED = 50_000_000  # used neither for training nor for the table in docs/everything.md
GRID = EverythingPrompt(12)
SHAPES = Options(stability_score_threshold=0.75)  # see docs/everything.md
EVERY_MASK = Options(predicted_iou_threshold=0, stability_score_threshold=0)
TIMEOUT = 60


@pytest.fixture(scope="module")
def predictor(shapes_checkpoint):
    return Predictor(load_model(shapes_checkpoint, CPU))


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Return a scene of several shapes, one of which has a dot."""
    random = np.random.default_rng(SEED)
    scenes = (draw_scene(random, 400, 300) for _ in itertools.count())
    return next(one for one in scenes if len(one.shapes) >= 4 and any(shape.dot for shape in one.shapes))


@pytest.fixture(scope="module")
def found(predictor, scene):
    return predictor.predict(scene.image, GRID, SHAPES)


def masks_in(segments):
    return [mask.view(np.bool_) for mask in masks_of(segments)]


# --- the grid


def test_a_grid_covers_the_image_evenly():
    assert EverythingPrompt(2).rows == (((0.25, 0.25), (0.75, 0.25)), ((0.25, 0.75), (0.75, 0.75)))
    assert EverythingPrompt(1).rows == (((0.5, 0.5),),)
    assert [len(row) for row in EverythingPrompt(64).rows] == [64] * 64


@pytest.mark.parametrize("side", [np.int64(8), 8.0, torch.tensor(8)])
def test_the_number_of_points_may_be_any_whole_number(side):
    prompt = EverythingPrompt(side)
    assert (prompt, type(prompt.points_per_side)) == (EverythingPrompt(8), int)


@pytest.mark.parametrize("side", [0, -1, 65, 3.5, float("nan"), True, "32", None, [32]])
def test_other_grids_are_refused(side):
    with pytest.raises(ValueError, match=r"points_per_side = .*expected a whole number from 1 to 64"):
        EverythingPrompt(side)


# --- which candidates stay


def test_the_stability_score_is_the_iou_of_the_masks_at_two_cutoffs():
    logits = np.random.default_rng(0).normal(0, 2, (20, 12, 9)).astype(np.float32)
    wanted = [iou(one > 1, one > -1) for one in logits]
    np.testing.assert_allclose(_stability_scores(logits), wanted)
    assert _stability_scores(np.full((1, 3, 3), -5.0, np.float32)) == [0]
    assert _stability_scores(np.zeros((0, 3, 3), np.float32)).shape == (0,)


def test_a_mask_contains_its_point_or_a_neighbor_of_it():
    mask = np.full((8, 10), -1.0)
    mask[3, 4] = 1.0  # x from 0.4 to 0.5, y from 0.375 to 0.5
    points = {(0.45, 0.4): True, (0.31, 0.3): True, (0.59, 0.6): True, (0.65, 0.4): False, (0.45, 0.7): False}
    points |= {(0.0, 0.0): False, (0.99, 0.99): False}
    found = _contain(np.repeat(mask[np.newaxis], len(points), axis=0), np.array(list(points)))
    assert found.tolist() == list(points.values())


def test_thresholds_drop_exactly_what_is_below_them(predictor, scene):
    embedding = predictor.encode_image(scene.image)
    for predicted_iou, stability in ((0.5, 0.6), (0.95, 0.6), (0.5, 0.85)):
        options = Options(predicted_iou_threshold=predicted_iou, stability_score_threshold=stability)
        segments = predictor.segment(embedding, GRID, options)
        logits = torch.stack([segment.mask_logits for segment in segments]).numpy()
        assert len(segments) > 3
        assert min(segment.score for segment in segments) >= predicted_iou
        assert _stability_scores(logits).min() >= stability
        assert segments == sorted(segments, key=lambda segment: -segment.score)
    assert predictor.segment(embedding, GRID, Options(predicted_iou_threshold=1, stability_score_threshold=1)) == []


def test_of_masks_that_show_the_same_one_stays(predictor, scene):
    for threshold in (1.0, 0.7, 0.2):
        segments = predictor.predict(
            scene.image, GRID, Options(stability_score_threshold=0.75, iou_threshold=threshold)
        )
        logits = [segment.mask_logits > 0 for segment in segments]
        alike = [iou(a.numpy(), b.numpy()) for a, b in itertools.combinations(logits, 2)]
        assert max(alike) <= min(0.7, threshold)


def test_other_options_apply(predictor, scene, found):
    areas = [100 * mask.mean() for mask in masks_in(found)]
    middle = float(np.median(areas))
    larger = predictor.predict(scene.image, GRID, Options(stability_score_threshold=0.75, min_area_percent=middle))
    assert [segment.score for segment in larger] == [
        segment.score for segment, area in zip(found, areas, strict=True) if area >= middle
    ]
    two = predictor.predict(scene.image, GRID, Options(stability_score_threshold=0.75, max_detections=2))
    assert [segment.score for segment in two] == [segment.score for segment in found[:2]]
    clean = predictor.predict(scene.image, GRID, Options(stability_score_threshold=0.75, min_region_percent=100))
    assert all(len(np.unique(everything_labels(mask))) == 2 for mask in masks_in(clean))


def everything_labels(mask):
    from skimage.measure import label

    return label(mask.view(np.uint8), connectivity=2)


# --- what is found


@pytest.mark.parametrize("source", [held_out_scenes, pillow_scenes])
def test_the_shapes_network_finds_every_shape_and_little_else(predictor, source):
    (results,) = judge(predictor, source(5, np.random.default_rng(SEED)), EverythingPrompt(20), [SHAPES])
    assert results.shapes.good / results.shapes.all >= 0.92
    assert np.mean(results.ious) >= 0.92
    assert results.dotted.good >= 0.8 * results.dotted.all
    assert results.wrong.good <= 0.06 * results.wrong.all


def test_each_mask_is_a_candidate_of_a_point_of_the_grid(predictor, scene, found):
    """Points that are asked for together have the answers of single points."""
    height, width = scene.image.shape[:2]
    embedding = predictor.encode_image(scene.image)
    candidates = []
    for x, y in itertools.chain.from_iterable(GRID.rows):
        point = GeometricPrompt(points=((x * width, y * height),), point_labels=(1,))
        candidates += predictor.segment(embedding, point, Options(multimask=True))
    scores = np.array([candidate.score for candidate in candidates])
    for segment in found:
        of_score = [candidates[index] for index in np.flatnonzero(np.abs(scores - segment.score) < 0.01)]
        agreement = [((one.mask_logits > 0) == (segment.mask_logits > 0)).float().mean() for one in of_score]
        assert max(agreement) > 0.999


def test_the_size_of_a_pass_does_not_matter(predictor, scene, found, monkeypatch):
    for size in (5, 64):
        monkeypatch.setattr(predictor._click_head, "points_per_pass", size)
        steps = []
        others = predictor.predict(scene.image, GRID, SHAPES, on_step=lambda steps=steps: steps.append(1))
        assert len(steps) == 1 + 12 * -(-12 // size)
        assert len(others) == len(found)
        for one, other in zip(masks_in(found), masks_in(others), strict=True):
            assert iou(one, other) > 0.98


def test_masks_that_wait_for_their_comparison_do_not_matter(predictor, scene, found, monkeypatch):
    """Few are kept in memory; what is dropped early would have been dropped at the end."""
    monkeypatch.setattr(everything, "_MOST_UNCOMPARED", 0)
    others = predictor.predict(scene.image, GRID, SHAPES)
    assert [one.score for one in others] == [one.score for one in found]
    assert all(np.array_equal(a, b) for a, b in zip(masks_in(found), masks_in(others), strict=True))


def test_holes_are_filled_as_for_points(shapes_checkpoint, tmp_path, scene):
    contents = torch.load(shapes_checkpoint, weights_only=True)
    contents["architecture"]["fill_hole_area"] = 10_000
    torch.save(contents, tmp_path / "filled.pt")
    filled = Predictor(load_model(tmp_path / "filled.pt", CPU)).predict(scene.image, GRID, SHAPES)
    assert any((segment.mask_logits == 10).any() for segment in filled)
    for segment in filled:
        outside = everything_labels((segment.mask_logits <= 0).numpy())
        assert outside.max() <= 1 or (np.bincount(outside.ravel())[1:] > 10_000).all()


def test_masks_keep_no_other_candidates_in_memory(predictor, scene, found):
    for segment in found:
        assert segment.mask_logits.untyped_storage().nbytes() <= len(found) * segment.mask_logits.nbytes


# --- the map


def test_a_part_stays_visible_on_its_whole():
    logits = torch.full((3, 40, 40), -5.0)
    logits[0, 15:20, 15:20] = logits[1, 5:35, 5:35] = logits[2, 0:10, 0:10] = 5.0
    segments = [Segment(one, 40, 40, score, "object") for one, score in zip(logits, (0.7, 0.9, 0.8), strict=True)]
    by_score, by_size = (label_map(segments, 40, 40, smallest_on_top=on_top) for on_top in (False, True))
    assert set(np.unique(by_score)) == {0, 2, 3}
    assert (by_size[17, 17], by_size[25, 25], by_size[7, 7], by_size[39, 39]) == (1, 2, 3, 0)


# --- a run


def test_progress_has_a_step_for_each_row(predictor, scene):
    steps = []
    predictor.predict(
        scene.image,
        EverythingPrompt(3),
        SHAPES,
        on_step=lambda: steps.append("step"),
        on_encoded=lambda: steps.append("encoded"),
        on_row=lambda: steps.append("row"),
    )
    assert steps == ["step", "encoded", *["step", "row"] * 3]


def test_other_threads_are_answered_between_two_passes(predictor, scene):
    point = GeometricPrompt(points=((50.0, 50.0),), point_labels=(1,))
    answers = []

    def ask_elsewhere():
        thread = threading.Thread(target=lambda: answers.append(predictor.predict(scene.image, point)))
        thread.start()
        thread.join(TIMEOUT)
        assert not thread.is_alive()

    segments = predictor.segment(
        predictor.encode_image(scene.image), EverythingPrompt(2), SHAPES, on_step=ask_elsewhere
    )
    assert len(answers) == 2
    assert len(segments) == len(predictor.predict(scene.image, EverythingPrompt(2), SHAPES))


def test_tiles_have_grids_of_their_own(predictor):
    random = np.random.default_rng(SEED)
    whole = next(one for one in iter(lambda: draw_scene(random, 640, 480), None) if len(one.shapes) > 4)
    options = Options(stability_score_threshold=0.75, tile_size=320)
    settings = Settings(points_per_side=8, tile_size=320)
    steps, rows, encoded = [], [], []
    segments = predictor.predict(
        whole.image,
        EverythingPrompt(8),
        options,
        on_step=lambda: steps.append(1),
        on_row=lambda: rows.append(1),
        on_encoded=lambda: encoded.append(1),
    )
    assert len(rows) + len(encoded) == settings.count_steps(640, 480)
    assert len(steps) >= len(rows)
    assert {segment.label for segment in segments} == {"object"}
    assert {segment.mask_logits for segment in segments} == {None}
    masks = masks_in(segments)
    for shape in whole.shapes:
        assert sum(iou(mask, shape.whole.mask) > 0.7 for mask in masks) == 1


def test_a_checkpoint_without_a_click_head_is_refused_by_name(predictor, scene, monkeypatch):
    without = dataclasses.replace(predictor.model.architecture, click_head=False)
    monkeypatch.setattr(predictor.model, "architecture", without)
    with pytest.raises(
        ValueError, match="points_per_side = '12': sam3_shapes.pt is a .* It answers phrases and example"
    ):
        predictor.predict(scene.image, GRID)


# --- in Ikomia


@pytest.fixture(scope="module")
def plugin(shapes_checkpoint):
    return Plugin(model_weight_file=shapes_checkpoint, cuda=False, stability_score_threshold=0.75)


def test_the_plugin_segments_everything(plugin, predictor, scene, found):
    emitted = []
    plugin.algorithm.emit_step_progress = lambda: emitted.append(1)
    mask, objects = plugin.segment(scene.image, points_per_side="12", instance_output=True)
    assert len(emitted) == plugin.algorithm.get_progress_steps() == 2 + 1 + 12
    assert np.array_equal(mask.get_mask(), label_map(found, 400, 300, smallest_on_top=True))
    assert mask.get_class_names() == ["background", *(f"object {number + 1}" for number in range(len(found)))]
    assert mask.description.startswith(f"{len(found)} x object, scores {found[0].score:.3f}, ")
    listed = objects.get_objects()
    assert [one.label for one in listed] == ["object"] * len(found)
    for one, wanted in zip(listed, masks_in(found), strict=True):
        assert np.array_equal(one.mask.astype(bool), wanted)


def test_a_dot_is_visible_on_its_shape(plugin, scene):
    (mask,) = plugin.segment(scene.image, points_per_side=32)
    numbers = mask.get_mask()
    for shape in scene.shapes:
        if shape.dot:
            on_dot, on_ring = (np.bincount(numbers[region.mask]).argmax() for region in (shape.dot, shape.ring))
            assert 0 not in (on_dot, on_ring)
            assert on_dot != on_ring


def test_a_map_of_classes_has_one_value(plugin, scene, found):
    (mask,) = plugin.segment(scene.image, points_per_side=12, mask_output="classes")
    assert mask.get_class_names() == ["background", "object"]
    assert np.array_equal(mask.get_mask() > 0, np.any(masks_in(found), axis=0))


def test_any_other_prompt_takes_precedence_with_a_warning(plugin, scene, caplog):
    (mask,) = plugin.segment(scene.image, input_text="star")
    alone, description = mask.get_mask().copy(), mask.description
    caplog.clear()
    (mask,) = plugin.segment(scene.image, input_text="star", points_per_side=12)
    expected = "points_per_side = 12: ignored, because everything is segmented only if there is no other prompt."
    assert caplog.messages.count(expected) == 1
    assert np.array_equal(mask.get_mask(), alone)
    assert mask.description == f"{description}; not used: points_per_side"


def test_labels_without_boxes_or_points_are_named(plugin, scene, caplog):
    (mask,) = plugin.segment(scene.image, points_per_side=4, input_point_label="[1]")
    assert mask.description.endswith("; not used: input_point_label (no points)")
    assert "Ignored: input_point_label (no points)." in caplog.messages


def test_zero_points_are_no_prompt(plugin, scene, caplog):
    (mask,) = plugin.segment(scene.image)
    assert not mask.get_mask().any()
    assert any("or set points_per_side to segment everything" in message for message in caplog.messages)


def test_a_saved_workflow_with_the_number_as_a_string_segments_everything(workflow, algorithm, photograph, tmp_path):
    from ikomia.dataprocess.workflow import Workflow

    strings = {"points_per_side": "4", "predicted_iou_threshold": "0", "stability_score_threshold": "0"}
    workflow.set_parameters(strings, task_obj=algorithm)
    workflow.run_on(array=photograph)
    wanted = algorithm.get_output(1).get_mask()
    assert wanted.any()
    workflow.save(str(tmp_path / "everything.json"))
    loaded = Workflow()
    loaded.load(str(tmp_path / "everything.json"))
    loaded.run_on(array=photograph)
    task = loaded.find_task(PLUGIN)
    task = task[0] if isinstance(task, list) else task
    assert np.array_equal(task.get_output(1).get_mask(), wanted)
