"""Several phrases, example boxes, duplicates and objects, in real Ikomia workflows on a small network."""

import colorsys
import importlib
import itertools
import json
import logging

import cv2
import numpy as np
import pytest
from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow
from skimage.color import deltaE_ciede2000, rgb2lab

from sam3_engine.random_weights import SMALL
from testbed.plugin import PLUGIN, Plugin
from testbed.scenes import iou

BOX = [60, 80, 300, 330]
BOXES = [BOX, [5, 5, 635, 420], [350, 100, 520, 390]]
POINT = [210, 150]
ALL = {"confidence_threshold": 0}  # keeps every query
LABELS = ("shoe", "yellow school bus", "hat")


@pytest.fixture
def plugin(small_checkpoint):
    """Return a plugin on a small network; only the prompt and ``instance_output`` are reset for each call."""
    return Plugin(model_weight_file=small_checkpoint, cuda=False)


@pytest.fixture
def thumbnail(photograph):
    """Return a (107, 160, 3) uint8 RGB image, because Ikomia's polygons take most of the time on large images."""
    return np.ascontiguousarray(photograph[::4, ::4])


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def scores_of(description):
    return [float(score) for part in description.split("; ") for score in part.rpartition("scores ")[2].split(", ")]


# --- several phrases


@pytest.mark.parametrize("typed", [list(LABELS), tuple(LABELS), json.dumps(LABELS)])
def test_instances_are_numbered_phrase_by_phrase_in_one_mask(plugin, thumbnail, typed):
    (output,) = plugin.segment(thumbnail, input_text=typed, **ALL)
    names = output.get_class_names()
    assert names == ["background", *(f"{label} {k}" for label in LABELS for k in range(1, SMALL.queries + 1))]
    parts = output.description.split("; ")
    assert [part.split(",")[0] for part in parts] == [f"{SMALL.queries} x {label}" for label in LABELS]
    for part in parts:
        scores = scores_of(part)
        assert scores == sorted(scores, reverse=True)
    assert set(np.unique(output.get_mask())) <= set(range(len(names)))


def test_the_higher_score_wins_across_phrases(plugin, thumbnail):
    (output,) = plugin.segment(thumbnail, input_text=list(LABELS), **ALL)
    painted, scores = output.get_mask(), scores_of(output.description)
    wanted = np.zeros_like(painted)
    masks = []
    for label in LABELS:
        *_, objects = plugin.segment(thumbnail, input_text=label, instance_output=True, **ALL)
        masks += [found.mask > 0 for found in objects.get_objects()]
    for index in sorted(range(len(masks)), key=lambda index: (scores[index], -index)):
        wanted[masks[index]] = index + 1
    # scores are printed with three decimals: instances with equal printed scores may be in either order
    assert np.mean(painted == wanted) > 0.99
    assert len({(label - 1) // SMALL.queries for label in np.unique(painted) if label}) > 1


def test_a_phrase_without_instances_adds_nothing(plugin, thumbnail):
    best = {}
    for label in LABELS:
        (output,) = plugin.segment(thumbnail, input_text=label, **ALL)
        best[label] = scores_of(output.description)[0]
    worst = min(best, key=best.get)
    threshold = (best[worst] + min(score for label, score in best.items() if label != worst)) / 2
    (output,) = plugin.segment(thumbnail, input_text=list(LABELS), confidence_threshold=threshold)
    assert not any(name.startswith(worst) for name in output.get_class_names())
    assert f"no {worst} found" in output.description
    assert len(output.get_class_names()) > 2

    (output,) = plugin.segment(thumbnail, input_text=list(LABELS), confidence_threshold=1)
    assert output.get_class_names() == ["background"]
    assert not output.get_mask().any()
    assert output.description == "no shoe found; no yellow school bus found; no hat found"


def test_a_list_of_one_phrase_is_the_same_as_the_phrase(plugin, thumbnail):
    (alone,) = plugin.segment(thumbnail, input_text="shoe", **ALL)
    wanted = (alone.get_mask(), alone.get_class_names(), alone.get_colors(), alone.description)
    (listed,) = plugin.segment(thumbnail, input_text='["shoe"]', **ALL)
    assert np.array_equal(listed.get_mask(), wanted[0])
    assert (listed.get_class_names(), listed.get_colors(), listed.description) == wanted[1:]


def test_commas_are_part_of_a_phrase(plugin, thumbnail):
    (output,) = plugin.segment(thumbnail, input_text="shoe, hat", **ALL)
    assert output.get_class_names()[1] == "shoe, hat 1"


def test_the_mask_holds_the_255_best_and_one_warning_gives_the_total(plugin, photograph, caplog):
    phrases = [f"thing {number}" for number in range(25)]
    *_, output, objects = plugin.segment(photograph, input_text=phrases, instance_output=True, **ALL)
    count = len(phrases) * SMALL.queries
    assert count == 300
    assert len(output.get_class_names()) == 256
    told = "300 instances were found, but a mask can hold only 255: it contains those with the highest scores."
    assert warnings_of(caplog)[1:] == [told]  # the first is that all queries passed
    every = objects.get_objects()
    assert len(every) == count
    ranked = sorted(every, key=lambda found: -found.confidence)
    assert min(scores_of(output.description)) == pytest.approx(ranked[254].confidence, abs=1e-3)
    # each instance has the same color in both outputs
    names = iter(output.get_class_names()[1:])
    colors = dict(zip(names, output.get_colors()[1:], strict=True))
    of_objects = {tuple(found.color[:3]) for found in every}
    assert {tuple(color) for color in colors.values()} <= of_objects


def test_each_phrase_has_a_hue_and_its_instances_have_shades_of_it(plugin, photograph):
    phrases = [f"thing {number}" for number in range(21)]
    (output,) = plugin.segment(photograph, input_text=phrases, **ALL)
    colors = output.get_colors()[1:]
    assert len({tuple(color) for color in colors}) == len(colors) == 21 * SMALL.queries
    ranges = []
    for start in range(0, len(colors), SMALL.queries):
        shades = [colorsys.rgb_to_hsv(*(c / 255 for c in color)) for color in colors[start : start + SMALL.queries]]
        offsets = [(hue - shades[0][0] + 0.5) % 1 - 0.5 for hue, _, _ in shades]  # hues are angles
        assert max(offsets) - min(offsets) < 0.03
        assert all(value > 0.5 for _, _, value in shades)
        ranges.append((shades[0][0] + min(offsets), shades[0][0] + max(offsets)))
    ranges.sort()
    gaps = [after[0] - before[1] for before, after in itertools.pairwise([*ranges, (ranges[0][0] + 1, None)])]
    assert min(gaps) > 0
    assert plugin.segment(photograph, input_text=phrases, **ALL)[0].get_colors()[1:] == colors


def test_shades_of_many_instances_are_distinct(plugin):
    outputs = importlib.import_module(f"{PLUGIN}.{PLUGIN}_outputs")
    shades = {tuple(outputs._shade(concept, index, 3)) for concept in range(3) for index in range(200)}
    assert len(shades) == 600


def least_difference(colors):
    """Return the smallest CIEDE2000 difference of two of some RGB colors; from about 2 on, people see one."""
    lab = rgb2lab(np.array(colors, np.uint8)[np.newaxis])[0]
    return min(deltaE_ciede2000(one, other) for one, other in itertools.combinations(lab, 2))


@pytest.mark.parametrize(("phrases", "least"), [(2, 9), (3, 9), (5, 9), (8, 6.5), (13, 5), (30, 4.4)])
def test_the_first_twelve_instances_of_a_phrase_can_be_told_apart(plugin, phrases, least):
    outputs = importlib.import_module(f"{PLUGIN}.{PLUGIN}_outputs")
    for phrase in range(phrases):
        assert least_difference([outputs._shade(phrase, index, phrases) for index in range(12)]) > least


def test_the_first_twelve_objects_of_other_prompts_can_be_told_apart(plugin):
    outputs = importlib.import_module(f"{PLUGIN}.{PLUGIN}_outputs")
    assert least_difference([outputs._object_color(index) for index in range(12)]) > 9


# --- what the network cannot read, show or find

LONG_PHRASE = " ".join(["shoe"] * 29 + ["left", "right", "red"])


def messages_of(caplog, start):
    return [message for message in warnings_of(caplog) if message.startswith(start)]


def test_one_warning_quotes_what_is_read_of_a_phrase_of_more_than_30_tokens(plugin, thumbnail, caplog):
    def description(phrase):
        return plugin.segment(thumbnail, input_text=phrase)[0].description.replace(phrase, "")

    read = " ".join(["shoe"] * 29 + ["left"])
    for _ in range(2):  # the second time, the answer is cached
        caplog.clear()
        whole = description(LONG_PHRASE)
        (warning,) = messages_of(caplog, "The network reads the first 30 tokens")
        assert warning.endswith(f"It reads: '{read}'.")
    caplog.clear()
    plugin.algorithm._predictor.encode_image(thumbnail).detections.clear()  # only the text encoder's output is cached
    assert description(LONG_PHRASE) == whole
    assert len(messages_of(caplog, "The network reads")) == 1
    caplog.clear()
    assert description(read) == whole  # the end has no effect
    assert messages_of(caplog, "The network reads") == []


@pytest.mark.parametrize(
    ("phrase", "too_long"),
    [
        ("shoe " * 30, False),
        ("shoe " * 31, True),
        ("x" * 30, False),
        ("shoe, " * 15, False),
        ("shoe, " * 16, True),
        ("1234567890" * 3, False),
        ("1234567890" * 3 + "1", True),
        ("&hellip;" * 30, False),  # HTML entities are read as characters
        ("🫨" * 20, True),  # several tokens each
    ],
)
def test_tokens_are_counted_as_the_text_encoder_counts_them(plugin, thumbnail, caplog, phrase, too_long):
    plugin.segment(thumbnail, input_text=phrase)
    assert len(messages_of(caplog, "The network reads")) == too_long


def test_several_long_phrases_cause_one_warning(plugin, thumbnail, caplog):
    plugin.segment(thumbnail, input_text=[f"{number} {LONG_PHRASE}" for number in range(5)])
    (warning,) = messages_of(caplog, "The network reads")
    assert warning.endswith("shoe' and 2 more.")


def test_if_all_queries_pass_the_threshold_a_warning_says_that_there_may_be_more(plugin, thumbnail, caplog):
    plugin.segment(thumbnail, input_text=list(LABELS), **ALL)
    (warning,) = messages_of(caplog, f"All {SMALL.queries} instances that the network can return")
    assert warning.endswith("Concepts: 'shoe', 'yellow school bus', 'hat'.")
    assert "score above 0: there may be more. Use tiles, or name something more specific" in warning

    (output,) = plugin.segment(thumbnail, input_text="shoe", **ALL)
    lowest = scores_of(output.description)[-1]
    caplog.clear()
    (output,) = plugin.segment(thumbnail, input_text="shoe", confidence_threshold=lowest + 0.002)
    assert 0 < len(output.get_class_names()) - 1 < SMALL.queries
    assert warnings_of(caplog) == []
    plugin.segment(thumbnail, input_box=BOX, input_box_label=1, **ALL)
    assert messages_of(caplog, "All ")[0].endswith("Concepts: 'object'.")


@pytest.mark.parametrize(
    "phrase", ["shoe, hat", "shoe；hat", "a red shoe.", "靴。", 'the "red" shoe', "the 'red' shoe"]
)
def test_if_an_unusual_phrase_finds_nothing_the_description_says_what_is_expected(plugin, thumbnail, caplog, phrase):
    expected = 'expected a noun phrase, or a list of noun phrases ["shoe", "person"]'
    (output,) = plugin.segment(thumbnail, input_text=phrase, confidence_threshold=1)
    assert output.description == f"no {phrase} found ({expected})"
    assert warnings_of(caplog) == [f"Nothing was found for {phrase!r}; {expected}."]
    (output,) = plugin.segment(thumbnail, input_text=["hat", phrase], confidence_threshold=1)
    assert output.description == f"no hat found; no {phrase} found ({expected})"
    caplog.clear()
    (output,) = plugin.segment(thumbnail, input_text=phrase, **ALL)
    assert "expected" not in output.description
    assert messages_of(caplog, "Nothing was found") == []


def test_a_plain_phrase_that_finds_nothing_needs_no_explanation(plugin, thumbnail, caplog):
    (output,) = plugin.segment(thumbnail, input_text="driver's seat", confidence_threshold=1)
    assert output.description == "no driver's seat found"
    assert warnings_of(caplog) == []


def test_quotation_marks_around_a_whole_phrase_do_not_change_it(plugin, thumbnail):
    (plain,) = plugin.segment(thumbnail, input_text="shoe", **ALL)
    wanted = plain.get_mask(), plain.description
    for quoted in ('"shoe"', "'shoe'", "“shoe”"):
        (output,) = plugin.segment(thumbnail, input_text=quoted, **ALL)
        assert np.array_equal(output.get_mask(), wanted[0])
        assert output.description == wanted[1]


# --- what is set but not used


def test_labels_without_boxes_are_named_in_the_description(plugin, thumbnail, caplog):
    (output,) = plugin.segment(thumbnail, input_text="shoe", input_box_label=[7], confidence_threshold=1)
    assert output.description == "no shoe found; not used: input_box_label (no boxes)"
    (output,) = plugin.segment(thumbnail, input_box_label=[1])
    assert output.description == "nothing to segment: no prompt; not used: input_box_label (no boxes)"
    assert not output.get_mask().any()
    assert warnings_of(caplog)[-1].startswith("Nothing to segment")


def test_every_mask_output_names_what_is_not_used(plugin, thumbnail):
    boxes = [[5, 5, 60, 60], [20, 20, 150, 100]]
    outputs = plugin.segment(thumbnail, input_box=boxes, input_point=[[30, 30]], multimask_output=True)
    assert len(outputs) == 6
    assert all(output.description.endswith("; not used: input_point") for output in outputs)
    outputs = plugin.segment(thumbnail, input_box=boxes, multimask_output=True)
    assert not any("not used" in output.description for output in outputs)


@pytest.mark.parametrize("label", [1, "1"])
def test_a_bare_label_makes_every_box_an_example(plugin, photograph, label):
    (listed,) = plugin.segment(photograph, input_box=BOXES, input_box_label=[1, 1, 1], **ALL)
    mask, description = listed.get_mask(), listed.description
    (output,) = plugin.segment(photograph, input_box=BOXES, input_box_label=label, **ALL)
    assert np.array_equal(output.get_mask(), mask)
    assert output.description == description


# --- example boxes


def test_instances_found_by_example_boxes_are_named_object_or_after_the_phrase(plugin, photograph):
    (output,) = plugin.segment(photograph, input_box=BOXES, input_box_label=[1, 0, 1], **ALL)
    assert output.get_class_names()[:3] == ["background", "object 1", "object 2"]
    assert output.description.startswith(f"{SMALL.queries} x object, scores")
    (output,) = plugin.segment(photograph, input_text="hat", input_box=BOX, input_box_label="0", **ALL)
    assert output.get_class_names()[1] == "hat 1"


def test_drawn_rectangles_can_be_examples(workflow, algorithm, photograph):
    from ikomia import core

    def run(**parameters):
        workflow.set_parameters({**ALL, **parameters}, task_obj=algorithm)
        workflow.run_on(array=photograph)
        return algorithm.get_output(1)

    typed = run(input_box=BOXES[:2], input_box_label=[1, 0])
    wanted = typed.get_mask(), typed.description
    drawn = dataprocess.CGraphicsInput()
    drawn.set_items([core.CGraphicsRectangle(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in BOXES[:2]])
    algorithm.set_input(drawn, 1)
    output = run(input_box="")
    assert np.array_equal(output.get_mask(), wanted[0])
    assert output.description == wanted[1]


@pytest.mark.parametrize(
    ("bad", "parameter"),
    [
        ({"input_box": BOXES, "input_box_label": [1, 0]}, "input_box_label"),
        ({"input_box": BOX, "input_box_label": [0]}, "input_box_label"),
        ({"input_text": ["shoe", "hat"], "input_box": BOX, "input_box_label": [1]}, "input_text"),
        ({"input_box": [[700, 500, 800, 600]], "input_box_label": [1]}, "input_box"),
        ({"input_text": '["shoe", "hat"'}, "input_text"),
    ],
)
def test_invalid_concepts_are_refused_and_leave_no_mask(plugin, photograph, bad, parameter):
    good = {"input_text": list(LABELS), "instance_output": True}
    wanted = plugin.segment(photograph, **good, **ALL)[0].get_mask()
    with pytest.raises(RuntimeError, match=f"^{parameter} = "):
        plugin.segment(photograph, **bad, instance_output=True)
    assert not any(output.is_data_available() for output in plugin.algorithm.get_outputs()[1:])
    assert np.array_equal(plugin.segment(photograph, **good, **ALL)[0].get_mask(), wanted)


# --- duplicates


def test_duplicates_are_dropped_across_phrases(plugin, photograph):
    def objects_at(iou_threshold):
        outputs = plugin.segment(
            photograph, input_text=list(LABELS), instance_output=True, iou_threshold=iou_threshold, **ALL
        )
        found = outputs[1].get_objects()
        assert [f"{one.label} " for one in found] == [
            name[: len(one.label) + 1] for name, one in zip(outputs[0].get_class_names()[1:], found, strict=True)
        ]
        return found

    every, some = objects_at(1), objects_at(0.5)
    assert len(every) == len(LABELS) * SMALL.queries
    assert len({found.label for found in some}) > 1
    assert len(LABELS) <= len(some) < len(every)

    def identity(found):
        return found.label, round(found.confidence, 6)

    assert {identity(found) for found in some} <= {identity(found) for found in every}
    kept = {identity(found) for found in some}
    for found in every:
        better = [one.mask for one in some if one.confidence >= found.confidence and identity(one) != identity(found)]
        overlaps = [iou(found.mask > 0, mask > 0) for mask in better]
        # the plugin compares masks at the network's resolution, this test at the image's
        if identity(found) in kept:
            assert max(overlaps, default=0) < 0.55
        else:
            assert max(overlaps) > 0.45


def test_points_and_boxes_are_not_deduplicated(plugin, photograph):
    outputs = plugin.segment(photograph, input_box=[BOX, BOX, BOX], iou_threshold=0)
    assert len(outputs) == 3


# --- objects

PROMPTS = {
    "a phrase": ({"input_text": "shoe"}, 1),
    "several phrases": ({"input_text": list(LABELS)}, 1),
    "examples": ({"input_box": BOXES, "input_box_label": [1, 1, 0]}, 1),
    "a point": ({"input_point": [POINT]}, 1),
    "three candidates": ({"input_point": [POINT], "multimask_output": True}, 3),
    "boxes": ({"input_box": BOXES}, 3),
    "candidates of boxes": ({"input_box": BOXES, "multimask_output": True}, 9),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_objects_are_output_2_and_contain_every_segment(plugin, photograph, kind):
    prompt, count = PROMPTS[kind]
    without = [output.get_mask() for output in plugin.segment(photograph, **prompt, **ALL)]
    assert len(without) == count
    first, objects, *further = plugin.segment(photograph, **prompt, **ALL, instance_output=True)
    masks = [first, *further]
    assert isinstance(objects, dataprocess.CInstanceSegmentationIO)
    assert all(isinstance(mask, dataprocess.CSemanticSegmentationIO) for mask in masks)
    assert all(np.array_equal(mask.get_mask(), one) for mask, one in zip(masks, without, strict=True))

    found = objects.get_objects()
    assert [one.id for one in found] == list(range(1, len(found) + 1))
    height, width = photograph.shape[:2]
    for one in found:
        assert one.mask.shape == (height, width)
        assert one.mask.dtype == np.uint8
        assert set(np.unique(one.mask)) <= {0, 1}
        assert 0 <= one.confidence <= 1
        left, top, box_width, box_height = one.box
        assert 0 <= left <= left + box_width <= width + 1e-9
        assert 0 <= top <= top + box_height <= height + 1e-9
    phrases = prompt.get("input_text", "object")
    phrases = [phrases] if isinstance(phrases, str) else phrases
    assert {(one.class_index, one.label) for one in found} == set(enumerate(phrases))

    if count == 1 and "input_point" not in prompt:  # a label map
        assert len(found) == SMALL.queries * len(phrases)
        painted, colors = masks[0].get_mask(), masks[0].get_colors()
        for one in found:
            assert one.mask[painted == one.id].all()
            assert list(one.color[:3]) == list(colors[one.id])
        assert [one.confidence for one in found] == pytest.approx(scores_of(masks[0].description), abs=6e-4)
        assert sum(np.count_nonzero(one.mask) for one in found) > np.count_nonzero(painted)  # overlaps are kept
    else:
        for one, mask in zip(found, masks, strict=True):
            assert np.array_equal(one.mask, mask.get_mask())
            assert list(one.color[:3]) == list(mask.get_colors()[1])
            assert f"score {one.confidence:.3f}" in mask.description
            rows, columns = np.nonzero(one.mask)
            if len(rows):
                left, top, box_width, box_height = one.box
                assert (left, top) == (columns.min(), rows.min())
                assert (left + box_width, top + box_height) == (columns.max() + 1, rows.max() + 1)


def test_outputs_are_exactly_those_of_the_last_run(plugin, photograph):
    algorithm = plugin.algorithm
    kinds = list(PROMPTS.values())
    for (prompt, count), wanted in zip([*kinds, *reversed(kinds)], itertools.cycle([True, False, True, True])):
        outputs = plugin.segment(photograph, **prompt, **ALL, instance_output=wanted)
        assert len(outputs) == algorithm.get_output_count() - 1
        is_objects = [isinstance(output, dataprocess.CInstanceSegmentationIO) for output in outputs]
        assert is_objects == [False, *[True] * wanted, *[False] * (count - 1)]
        assert all(output.is_data_available() for output in outputs)


@pytest.mark.parametrize("prompt", [{}, {"input_text": "shoe", "confidence_threshold": 1}])
def test_if_nothing_is_found_there_are_no_objects(plugin, photograph, prompt):
    plugin.segment(photograph, input_text="shoe", **ALL, instance_output=True)
    mask, objects = plugin.segment(photograph, **prompt, instance_output=True)
    assert not mask.get_mask().any()
    assert objects.get_object_count() == 0
    assert objects.description == "0 object(s)"


def test_objects_can_be_overlaid_and_exported(plugin, photograph):
    _, objects = plugin.segment(photograph, input_text=list(LABELS), **ALL, instance_output=True)
    image = plugin.algorithm.get_output(0)
    for overlay in (image.get_image_with_mask_and_graphics(objects), image.get_image_with_mask(objects)):
        assert overlay.shape == photograph.shape
        assert np.count_nonzero((overlay != photograph).any(axis=2)) > 1000
    exported = json.loads(objects.to_json())
    assert len(exported["detections"]) == objects.get_object_count()


def test_objects_from_an_earlier_run_do_not_change(plugin, photograph):
    _, objects, *_ = plugin.segment(photograph, input_box=BOXES, instance_output=True)
    kept = [found.mask for found in objects.get_objects()]
    copies = [mask.copy() for mask in kept]
    plugin.segment(photograph[::-1], input_text=list(LABELS), **ALL, instance_output=True)
    assert all(np.array_equal(mask, copy) for mask, copy in zip(kept, copies, strict=True))


def test_a_folder_run_also_saves_the_objects(workflow, algorithm, photograph, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), cv2.cvtColor(photograph, cv2.COLOR_RGB2BGR))
    workflow.output_folder = str(tmp_path / "results")
    workflow.set_parameters({"input_box": BOXES, "instance_output": True}, task_obj=algorithm)
    workflow.run_on(folder=str(folder))
    saved = {path.stem.removeprefix(algorithm.name): path for path in tmp_path.rglob("*.json")}
    assert sorted(saved) == ["a", "a_2", "a_3", "a_objects"]
    objects = dataprocess.CInstanceSegmentationIO()
    objects.load(str(saved["a_objects"]))
    masks = [algorithm.get_output(index).get_mask() for index in (1, 3, 4)]
    assert [found.label for found in objects.get_objects()] == ["object"] * 3
    for name, wanted in zip(["a", "a_2", "a_3"], masks, strict=True):
        mask = dataprocess.CSemanticSegmentationIO()
        mask.load(str(saved[name]))
        assert np.array_equal(mask.get_mask(), wanted)


def test_a_saved_workflow_keeps_the_new_parameters(plugin, photograph, tmp_path, workflow, algorithm):
    parameters = {
        "input_text": ["shoe", "hat"],
        "confidence_threshold": 0.1,
        "iou_threshold": 0.5,
        "instance_output": True,
        "input_box_label": "",
    }
    workflow.set_parameters(parameters, task_obj=algorithm)
    workflow.run_on(array=photograph)
    path = tmp_path / "workflow.json"
    workflow.save(str(path))
    loaded = Workflow()
    loaded.load(str(path))
    loaded.run_on(array=photograph)
    (task,) = [task for task in loaded.get_tasks() if task.name == PLUGIN]
    assert task.get_parameters() == algorithm.get_parameters()
    assert task.get_output_count() == algorithm.get_output_count() == 3
    assert np.array_equal(task.get_output(1).get_mask(), algorithm.get_output(1).get_mask())
    assert task.get_output(2).get_object_count() == algorithm.get_output(2).get_object_count()
