"""Results are shaped for the next task: the best of a run, areas, a threshold for each phrase, masks of classes.

All of them filter the answers that are kept; the network does not run again.
"""

import dataclasses
import importlib
import itertools
import json

import numpy as np
import pytest
import torch
from ikomia.dataprocess.workflow import Workflow

from sam3_engine import ConceptPrompt, GeometricPrompt, Options
from sam3_engine.areas import drop_by_area
from sam3_engine.errors import PromptError
from sam3_engine.model import load_model
from sam3_engine.nms import drop_duplicates
from sam3_engine.predictor import Predictor
from sam3_engine.random_weights import SMALL
from sam3_engine.regions import remove_small_regions
from sam3_engine.segments import best, label_map
from sam3_engine.settings import Settings
from testbed.plugin import PLUGIN, Plugin

PHRASES = ("shoe", "yellow school bus", "hat")
CONCEPTS = ConceptPrompt(PHRASES)
ALL = Options(confidence_threshold=0)
BOX = [60, 80, 300, 330]
SHAPED = {"max_detections": 1, "min_area_percent": 99, "max_area_percent": 100, "mask_output": "classes"}
NOT_SHAPED = {name: getattr(Settings(), name) for name in SHAPED}


@pytest.fixture(scope="module")
def predictor(small_checkpoint):
    return Predictor(load_model(small_checkpoint, torch.device("cpu")))


@pytest.fixture(scope="module")
def embedding(predictor, photograph):
    return predictor.encode_image(photograph)


@pytest.fixture
def find(predictor, embedding, monkeypatch):
    """Return a function that segments the photograph with the answers that are kept, without the network."""
    predictor.segment(embedding, CONCEPTS)
    monkeypatch.setattr(predictor.model.network, "forward_grounding", None)

    def answer(prompt=CONCEPTS, **options):
        return predictor.segment(embedding, prompt, dataclasses.replace(ALL, **options))

    return answer


@pytest.fixture
def plugin(small_checkpoint):
    return Plugin(model_weight_file=small_checkpoint, cuda=False)


@pytest.fixture
def thumbnail(photograph):
    """Return a (107, 160, 3) uint8 RGB image, because Ikomia's polygons take most of the time on large images."""
    return np.ascontiguousarray(photograph[::4, ::4])


def facts(segments):
    return [(one.label, one.score, one.box, one.mask.tobytes()) for one in segments]


def objects_of(outputs):
    return [
        (one.id, one.class_index, one.label, one.confidence, one.box, one.color, one.mask.tobytes())
        for one in outputs[1].get_objects()
    ]


# --- the best of a run


def test_the_best_of_all_phrases_are_kept_in_their_order(find):
    every = find()
    assert len(every) == len(PHRASES) * SMALL.queries
    assert len({one.label for one in (every[index] for index in best(every, 30))}) == len(PHRASES)
    for count in (1, 2, 15, 30, len(every) - 1):
        assert facts(find(max_detections=count)) == facts(every[index] for index in best(every, count))
    for count in (0, len(every), 10**9):
        assert facts(find(max_detections=count)) == facts(every)


def test_the_best_are_chosen_after_all_other_filters(find):
    limits = {"min_area_percent": 10, "max_area_percent": 60}
    every = find()
    wanted = drop_by_area(drop_duplicates(remove_small_regions(every, 3), 0.8), 10, 60)
    options = {"min_region_percent": 3, "iou_threshold": 0.8, **limits}
    assert facts(find(**options)) == facts(wanted)
    for count in (3, 8):
        assert facts(find(**options, max_detections=count)) == facts(wanted[index] for index in best(wanted, count))
    assert len(wanted) > 8
    # with fewer filters, or in another order, others are kept
    assert len({len(wanted), len(every), len(find(**limits)), len(find(iou_threshold=0.8))}) == 4
    assert len(drop_by_area([every[index] for index in best(every, 8)], 10, 60)) < 8
    assert len(find(**limits, max_detections=8)) == 8


# --- areas


def test_areas_are_shares_of_the_image(find):
    every = find()
    shares = [100 * int(one.mask.sum()) / one.mask.size for one in every]
    low, high = sorted(shares)[5], sorted(shares)[-5]
    kept = find(min_area_percent=low, max_area_percent=high)
    assert facts(kept) == facts(one for one, share in zip(every, shares, strict=True) if low <= share <= high)
    assert 0 < len(kept) < len(every)


# --- thresholds of phrases


def test_each_phrase_has_its_threshold(find):
    alone = {phrase: [one for one in find() if one.label == phrase] for phrase in PHRASES}
    middle = {phrase: alone[phrase][4].score for phrase in PHRASES}
    last = {phrase: alone[phrase][-1].score for phrase in PHRASES}
    for chosen in (middle, last, {**middle, "hat": 1}, {**middle, "hat": 0}):
        prompt = ConceptPrompt(PHRASES, confidence_thresholds=[chosen[phrase] for phrase in PHRASES])
        wanted = [one for phrase in PHRASES for one in alone[phrase] if one.score > chosen[phrase]]
        for default in (0, 1):  # has no effect
            assert facts(find(prompt, confidence_threshold=default)) == facts(wanted)
    prompt = ConceptPrompt(PHRASES, confidence_thresholds=(middle["shoe"], None, 1))
    for default in (0, middle["yellow school bus"], 1):
        kept = find(prompt, confidence_threshold=default)
        assert facts(one for one in kept if one.label == "shoe") == facts(alone["shoe"][:4])
        assert {one.label for one in kept} <= {"shoe", "yellow school bus"}
        others = [one for one in alone["yellow school bus"] if one.score > default]
        assert facts(one for one in kept if one.label != "shoe") == facts(others)


def test_a_phrase_with_examples_has_its_threshold(predictor, embedding):
    def count(threshold, default):
        prompt = ConceptPrompt(("shoe",), [BOX], [0], threshold)
        return len(predictor.segment(embedding, prompt, Options(confidence_threshold=default)))

    assert [count([0], 1), count([1], 0), count([None], 0), count((), 1)] == [SMALL.queries, 0, SMALL.queries, 0]


def test_the_warning_of_crowded_concepts_tells_their_thresholds(predictor, embedding, caplog):
    predictor.segment(embedding, ConceptPrompt(PHRASES, confidence_thresholds=(0, 0.01, 1)), ALL)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "score above 0 or 0.01: there may be more" in warning
    assert warning.endswith("Concepts: 'shoe', 'yellow school bus'.")


@pytest.mark.parametrize("convert", [dict, str, json.dumps])
def test_the_plugin_takes_a_threshold_for_each_phrase(plugin, thumbnail, convert):
    outputs = plugin.segment(thumbnail, input_text=list(PHRASES), instance_output=True, confidence_threshold=0)
    scores = {phrase: [one[3] for one in objects_of(outputs) if one[2] == phrase] for phrase in PHRASES}
    thresholds = {"shoe": scores["shoe"][3], "hat": scores["hat"][1], "yellow school bus": 1.0}
    (output,) = plugin.segment(thumbnail, input_text=convert(thresholds), confidence_threshold=1)
    assert output.get_class_names() == ["background", "shoe 1", "shoe 2", "shoe 3", "hat 1"]
    parts = [part.split(",")[0] for part in output.description.split("; ")]
    assert parts == ["3 x shoe", "1 x hat", "no yellow school bus found"]


# --- masks of classes


def test_a_mask_of_classes_numbers_the_phrases(plugin, thumbnail, predictor):
    thresholds = {"shoe": 0, "cat": 1, "hat": 0, "yellow school bus": 0}
    shown = {"input_text": thresholds, "instance_output": True}
    before = plugin.segment(thumbnail, **shown)
    unchanged, wanted = objects_of(before), before[0].description
    colors = {one[2]: one[5][:3] for one in reversed(unchanged)}  # of each phrase's first object

    outputs = plugin.segment(thumbnail, **shown, mask_output="classes")
    output = outputs[0]
    assert output.get_class_names() == ["background", *thresholds]
    assert output.description == wanted
    assert output.description.count("\n") == 0
    assert objects_of(outputs) == unchanged
    for name, color in zip(thresholds, output.get_colors()[1:], strict=True):
        assert colors.get(name, color) == color
    assert output.get_colors()[0] == [0, 0, 0]

    segments = predictor.predict(thumbnail, ConceptPrompt(tuple(thresholds), confidence_thresholds=thresholds.values()))
    assert np.array_equal(output.get_mask(), label_map(segments, 160, 107, tuple(thresholds)))
    painted = np.zeros((107, 160), np.uint8)
    for one in sorted(segments, key=lambda one: one.score):
        painted[one.mask] = list(thresholds).index(one.label) + 1
    assert np.array_equal(output.get_mask(), painted)
    assert len(np.unique(painted)) > 2


def test_classes_that_are_not_found_keep_their_number_and_their_color(plugin, thumbnail):
    def legend(*phrases, threshold=0.0):
        (output,) = plugin.segment(
            thumbnail, input_text=list(phrases), confidence_threshold=threshold, mask_output="classes"
        )
        return output.get_class_names(), output.get_colors(), set(np.unique(output.get_mask()))

    names, colors, values = legend(*PHRASES)
    assert names == ["background", *PHRASES]
    assert values <= {0, 1, 2, 3}
    assert legend(*PHRASES, threshold=1) == (names, colors, {0})
    assert legend(*PHRASES, "cat")[1][:4] == colors
    assert legend("cat", *PHRASES[1:])[1] == colors
    assert [name for name, _ in zip(*legend("hat", "shoe", "hat", " shoe ")[:2], strict=True)] == [
        "background",
        "hat",
        "shoe",
    ]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ({"input_text": "shoe"}, "shoe"),
        ({"input_text": '["shoe"]', "input_box": BOX, "input_box_label": "[0]"}, "shoe"),
        ({"input_box": BOX, "input_box_label": "[1]"}, "object"),
    ],
)
def test_a_single_concept_is_class_1_in_the_color_of_its_first_object(plugin, photograph, prompt, name):
    mask, objects = plugin.segment(photograph, **prompt, instance_output=True, confidence_threshold=0)
    covered, color = mask.get_mask() > 0, objects.get_objects()[0].color[:3]
    (output,) = plugin.segment(photograph, **prompt, confidence_threshold=0, mask_output="classes")
    assert output.get_class_names() == ["background", name]
    assert output.get_colors() == [[0, 0, 0], color]
    assert np.array_equal(output.get_mask(), covered)


def test_a_mask_of_classes_holds_any_number_of_instances(plugin, thumbnail, caplog):
    phrases = [f"thing {number}" for number in range(25)]
    (output,) = plugin.segment(thumbnail, input_text=phrases, confidence_threshold=0, mask_output="classes")
    assert not [record for record in caplog.records if "a mask can hold only" in record.getMessage()]
    counts = [int(part.split(" x ")[0]) for part in output.description.split("; ")]
    assert counts == [SMALL.queries] * 25
    assert sum(counts) > 255


def test_up_to_255_phrases_are_classes_and_more_are_refused_before_the_run(plugin, thumbnail):
    phrases = [f"thing {number}" for number in range(256)]
    expected = r"^input_text = .*: mask_output = 'classes' can number at most 255 phrases, not 256\.$"
    with pytest.raises(PromptError, match=expected):
        Settings(input_text=str(phrases), mask_output="classes").prompt()
    with pytest.raises(RuntimeError, match=expected[1:-1]):
        plugin.segment(thumbnail, input_text=phrases, mask_output="classes")
    assert Settings(input_text=str(phrases)).prompt().prompt.phrases == tuple(phrases)
    assert Settings(input_text=str(phrases[:255]), mask_output="classes").prompt()
    assert Settings(input_text=str([*phrases[:255], "thing 7"]), mask_output="classes").prompt()
    outputs = importlib.import_module(f"{PLUGIN}.{PLUGIN}_outputs")
    assert len({tuple(outputs._class_color(index, 255)) for index in range(255)}) == 255


# --- in workflows


@pytest.mark.parametrize(
    "prompt",
    [
        {"input_point": [[210, 150]], "multimask_output": True},
        {"input_box": [BOX, [350, 100, 520, 390]], "instance_output": True},
        {},
    ],
)
def test_points_and_boxes_are_not_shaped(plugin, photograph, prompt):
    def digest(shape):
        outputs = plugin.segment(photograph, **shape, **prompt)
        masks = [one for one in outputs if hasattr(one, "get_class_names")]
        seen = [(one.get_mask().tobytes(), one.description, one.get_class_names(), one.get_colors()) for one in masks]
        return seen, objects_of(outputs) if len(masks) < len(outputs) else None

    shaped = digest(SHAPED)
    assert shaped == digest(NOT_SHAPED)
    assert len(shaped[0]) == {"multimask_output": 3, "instance_output": 2}.get(next(reversed(prompt), ""), 1)


def test_the_options_of_points_and_boxes_have_no_effect(predictor, embedding):
    for prompt in (GeometricPrompt([BOX]), GeometricPrompt(points=[[210, 150]], point_labels=[1])):
        strict = Options(confidence_threshold=1, max_detections=1, min_area_percent=100, multimask=True)
        assert facts(predictor.segment(embedding, prompt, strict)) == facts(
            predictor.segment(embedding, prompt, Options(multimask=True))
        )


def test_a_minimum_above_the_maximum_is_refused_before_the_network_runs(plugin, thumbnail, monkeypatch):
    plugin.segment(thumbnail, input_text="shoe", **NOT_SHAPED)
    plugin.algorithm.set_parameters({"min_area_percent": 30})
    plugin.algorithm.set_parameters({"max_area_percent": 20})
    with monkeypatch.context() as patched:
        patched.setattr(plugin.algorithm._predictor, "predict", None)
        expected = (
            r"^min_area_percent = 30\.0, max_area_percent = 20\.0: expected a minimum that is not above the maximum"
        )
        with pytest.raises(RuntimeError, match=expected):
            plugin.segment(thumbnail, input_text="hat")
    assert not plugin.algorithm.get_output(1).is_data_available()
    (output,) = plugin.segment(thumbnail, input_text="hat", **NOT_SHAPED)
    assert output.is_data_available()


def test_shaped_results_survive_saving_and_loading_a_workflow(plugins_directory, small_checkpoint, thumbnail, tmp_path):
    workflow = Workflow()
    task = workflow.add_task(name=PLUGIN, auto_connect=True)
    shape = {"max_detections": 3, "min_area_percent": 0.5, "max_area_percent": 99.5, "mask_output": "classes"}
    thresholds = {"driver's seat": 0.0, 'the "red" shoe': 0.05}
    task.set_parameters({"model_weight_file": small_checkpoint, "cuda": False, "input_text": thresholds, **shape})
    workflow.run_on(array=thumbnail)
    wanted = task.get_output(1).get_mask().copy(), task.get_output(1).description
    assert wanted[0].any()
    workflow.save(str(tmp_path / "shaped.json"))

    loaded = Workflow()
    loaded.load(str(tmp_path / "shaped.json"))
    again = loaded.find_task(PLUGIN)
    again = again[0] if isinstance(again, list) else again
    assert again.get_parameters() == task.get_parameters()
    loaded.run_on(array=thumbnail)
    assert np.array_equal(again.get_output(1).get_mask(), wanted[0])
    assert again.get_output(1).description == wanted[1]


def test_no_shape_runs_the_network_again(plugin, photograph, monkeypatch):
    plugin.segment(photograph, input_text=list(PHRASES), confidence_threshold=0.5)
    network = plugin.algorithm._predictor.model.network
    for part, method in ((network.backbone, "forward_image"), (network.backbone, "forward_text")):
        monkeypatch.setattr(part, method, None)
    monkeypatch.setattr(network, "forward_grounding", None)
    typed = [list(PHRASES), dict.fromkeys(PHRASES, 0.01), {"hat": 0.0, "shoe": None}, "hat"]
    shapes = [{}, {"max_detections": 2}, {"min_area_percent": 1, "max_area_percent": 90}, {"mask_output": "classes"}]
    counts = set()
    for text, shape in itertools.product(typed, shapes):
        *_, objects = plugin.segment(
            photograph, input_text=text, instance_output=True, confidence_threshold=0, **{**NOT_SHAPED, **shape}
        )
        counts.add(objects.get_object_count())
    assert len(counts) > 3
