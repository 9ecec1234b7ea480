"""Prompts and outputs of the plugin in real Ikomia workflows."""

import colorsys
import gc
import itertools
import json
import logging

import numpy as np
import psutil
import pytest
from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow

from testbed.plugin import PLUGIN

BOX = [60, 80, 300, 330]
BOXES = [BOX, [5, 5, 635, 420], [350, 100, 520, 390]]
POINT = [210, 150]
NO_PROMPT = {"input_text": "", "input_box": "", "input_point": "", "input_point_label": "", "multimask_output": False}

NAMES_OF_THE_EARLIER_PLUGIN = [
    "cuda",
    "input_size_percent",
    "confidence_threshold",
    "input_text",
    "input_box",
    "input_point",
    "input_point_label",
    "multimask_output",
]

# prompts, and the number of mask outputs
GEOMETRIES = [
    ({"input_point": [POINT]}, 1),
    ({"input_point": [POINT], "multimask_output": True}, 3),
    ({"input_point": [POINT, [500, 300]], "input_point_label": [1, 0]}, 1),
    ({"input_point": [POINT, [500, 300]], "multimask_output": True}, 3),
    ({"input_box": BOX}, 1),
    ({"input_box": [BOX], "multimask_output": True}, 3),
    ({"input_box": [BOX], "input_point": [POINT], "input_point_label": [0]}, 1),
    ({"input_box": [BOX], "input_point": [POINT], "input_point_label": [0], "multimask_output": True}, 3),
    ({"input_box": BOXES}, 3),
    ({"input_box": BOXES, "multimask_output": True}, 9),
    ({"input_box": BOXES, "input_point": [POINT]}, 3),
]


@pytest.fixture
def run(workflow, algorithm, photograph):
    """Run the plugin on an image with only the given prompt, and return its mask outputs."""

    def run_with(image=photograph, **parameters):
        workflow.set_parameters({**NO_PROMPT, **parameters}, task_obj=algorithm)
        workflow.run_on(array=image)
        return masks_of(algorithm)

    return run_with


def masks_of(algorithm):
    outputs = algorithm.get_outputs()
    assert isinstance(outputs[0], dataprocess.CImageIO)
    assert all(isinstance(output, dataprocess.CSemanticSegmentationIO) for output in outputs[1:])
    return outputs[1:]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("prompt", "count"), GEOMETRIES)
def test_points_and_boxes_give_one_mask_per_object_and_candidate(run, algorithm, photograph, prompt, count):
    outputs = run(**prompt)
    assert len(outputs) == count
    assert np.array_equal(algorithm.get_output(0).get_image(), photograph)
    for output in outputs:
        mask = output.get_mask()
        assert mask.dtype == np.uint8
        assert mask.shape == photograph.shape[:2]
        assert set(np.unique(mask)) <= {0, 1}
        assert output.get_class_names() == ["background", "object"]
        assert output.get_colors()[0] == [0, 0, 0]
        assert "score 0." in output.description
        assert "\n" not in output.description
    assert len({tuple(output.get_colors()[1]) for output in outputs}) == count


def test_candidates_are_ordered_by_box_then_by_score(run):
    outputs = run(input_box=BOXES, multimask_output=True)
    descriptions = [output.description for output in outputs]
    scores = [float(description.rsplit(" ", 1)[1]) for description in descriptions]
    for box in range(3):
        of_this_box = scores[3 * box : 3 * box + 3]
        assert of_this_box == sorted(of_this_box, reverse=True)
        assert [f"box {box + 1} of 3" in description for description in descriptions].count(True) == 3
        alone = run(input_box=BOXES[box], multimask_output=True)
        assert [float(output.description.rsplit(" ", 1)[1]) for output in alone] == pytest.approx(of_this_box, abs=0.01)


def test_a_flat_box_is_the_same_as_a_nested_one(run):
    flat = run(input_box=BOX)[0].get_mask()
    nested = run(input_box=[BOX])[0].get_mask()
    assert np.array_equal(flat, nested)


def test_several_boxes_give_the_same_masks_as_each_box_alone(run):
    together = [output.get_mask() for output in run(input_box=BOXES)]
    alone = [run(input_box=box)[0].get_mask() for box in BOXES]
    for mask, reference in zip(together, alone, strict=True):
        assert np.mean(mask == reference) > 0.99
    assert not np.array_equal(together[0], together[1])


def test_points_with_several_boxes_are_ignored_with_one_warning(run, caplog):
    with_points = [output.get_mask() for output in run(input_box=BOXES, input_point=[POINT])]
    assert len(warnings_of(caplog)) == 1
    assert "points are ignored" in warnings_of(caplog)[0]
    without = [output.get_mask() for output in run(input_box=BOXES)]
    assert all(np.array_equal(a, b) for a, b in zip(with_points, without, strict=True))


def test_text_numbers_the_instances_in_one_mask(run, photograph):
    (output,) = run(input_text="shoe", confidence_threshold=0)
    count = len(output.get_class_names()) - 1
    assert count > 1
    assert output.get_class_names() == ["background", *(f"shoe {k}" for k in range(1, count + 1))]
    mask = output.get_mask()
    assert mask.dtype == np.uint8
    assert mask.shape == photograph.shape[:2]
    assert set(np.unique(mask)) <= set(range(count + 1))
    assert 1 in mask
    colors = output.get_colors()
    assert colors[0] == [0, 0, 0]
    assert len({tuple(color) for color in colors}) == count + 1
    scores = [float(score) for score in output.description.rpartition("scores ")[2].split(", ")]
    assert len(scores) == count
    assert scores == sorted(scores, reverse=True)


def test_text_that_finds_nothing_gives_an_empty_mask(run):
    (output,) = run(input_text="shoe", confidence_threshold=1)
    assert output.get_class_names() == ["background"]
    assert output.get_mask().shape == (427, 640)
    assert not output.get_mask().any()
    assert output.description == "no shoe found"


def test_text_takes_precedence_over_everything_else_with_one_warning(run, caplog):
    (output,) = run(input_text="shoe", confidence_threshold=0, input_box="not even a box", input_point=[POINT])
    assert output.get_class_names()[1] == "shoe 1"
    assert sum(warning.startswith("input_text is set. Ignored: ") for warning in warnings_of(caplog)) == 1
    assert "Ignored: input_box, input_point." in warnings_of(caplog)[0]


def test_no_prompt_gives_a_warning_and_one_empty_mask(run, algorithm, photograph, caplog):
    (output,) = run()
    assert output.get_class_names() == ["background"]
    assert output.get_mask().shape == photograph.shape[:2]
    assert not output.get_mask().any()
    assert len(warnings_of(caplog)) == 1
    assert np.array_equal(algorithm.get_output(0).get_image(), photograph)


def test_no_prompt_needs_no_weights(plugins_directory, photograph):
    workflow = Workflow()
    task = workflow.add_task(name="infer_segment_anything_3", auto_connect=True)
    task.set_parameters({"model_weight_file": "/nowhere/at/all.pt"})
    workflow.run_on(array=photograph)
    assert not task.get_output(1).get_mask().any()


def test_outputs_are_exactly_those_of_the_last_run(run, algorithm):
    text = {"input_text": "shoe", "confidence_threshold": 0}
    nothing = {"input_text": "shoe", "confidence_threshold": 1}
    sequence = [
        ({"input_box": BOXES, "multimask_output": True}, 9),
        (text, 1),
        ({"input_point": [POINT], "multimask_output": True}, 3),
        ({}, 1),
        ({"input_box": BOXES}, 3),
        (nothing, 1),
        ({"input_point": [POINT]}, 1),
        (text, 1),
    ]
    for prompt, count in sequence:
        outputs = run(**prompt)
        assert len(outputs) == count
        assert algorithm.get_output_count() == 1 + count
        assert all(output.is_data_available() for output in outputs)
        expected = "shoe 1" if prompt is text else "object" if prompt and prompt is not nothing else None
        for output in outputs:
            assert (output.get_class_names() + [None])[1] == expected
            assert len(output.get_class_names()) == len(output.get_colors())


def test_arrays_from_an_earlier_run_do_not_change(run):
    kept = [output.get_mask() for output in run(input_box=BOXES)]
    copies = [mask.copy() for mask in kept]
    run(input_text="shoe", confidence_threshold=0)
    run(input_box=BOXES[::-1], multimask_output=True)
    assert all(np.array_equal(mask, copy) for mask, copy in zip(kept, copies, strict=True))


def test_memory_stays_flat_when_the_number_of_masks_changes(run):
    """A workflow never frees an output of its task, so a new output in every run would keep its mask in memory."""
    prompts = [{"input_box": BOXES}, {"input_point": [POINT]}, {"input_text": "shoe"}]
    large = np.zeros((1200, 1800, 3), np.uint8)

    def memory_after(runs):
        for prompt in itertools.islice(itertools.cycle(prompts), runs):
            run(large, **prompt)
        gc.collect()
        return psutil.Process().memory_info().rss

    warm = memory_after(15)
    assert memory_after(100) - warm < 60e6  # the masks of 100 runs take 400 MB


def test_colors_are_the_same_in_every_run(run):
    first = [output.get_colors() for output in run(input_box=BOXES)]
    run(input_text="shoe", confidence_threshold=0)
    assert [output.get_colors() for output in run(input_box=BOXES)] == first


def test_object_colors_stand_out_from_the_black_background(run):
    (output,) = run(input_text="shoe", confidence_threshold=0)
    for color in output.get_colors()[1:]:
        assert colorsys.rgb_to_hsv(*(channel / 255 for channel in color))[2] == 1


def test_outputs_can_be_exported_and_overlaid(run, algorithm, photograph):
    for output in run(input_box=BOXES):
        exported = json.loads(output.to_json())
        assert exported
        overlay = algorithm.get_output(0).get_image_with_mask(output)
        assert overlay.shape == photograph.shape
        assert output.get_legend() is not None
    assert algorithm.get_image_with_mask().shape == photograph.shape


BAD_RUNS = [
    {"input_point": "[[1, 2, 3]]"},
    {"input_point": "[[640, 10]]"},
    {"input_box": "[[700, 500, 800, 600]]"},
    {"input_box": "[[10, 10, 10, 20]]"},
    {"input_point": "[[1, 2]]", "input_point_label": "[1, 1]"},
    {"input_point": "[[1, 2]]", "model_weight_file": "/nowhere/sam3.pt"},
    {"input_point": "[[1, 2]]", "model_weight_file": __file__},
]


@pytest.mark.parametrize("bad", BAD_RUNS)
def test_a_failed_run_names_the_parameter_and_leaves_no_mask_behind(run, algorithm, small_checkpoint, bad):
    good = {"input_box": BOXES}
    before = [output.get_mask() for output in run(**good)]
    with pytest.raises(RuntimeError, match=list(bad)[-1]):
        run(**bad)
    assert not any(output.is_data_available() for output in masks_of(algorithm))
    after = [output.get_mask() for output in run(**good, model_weight_file=small_checkpoint)]
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_run_that_fails_halfway_leaves_no_partial_result(run, algorithm, monkeypatch):
    fill = algorithm._outputs._fill

    def fill_two(output, *arguments):
        if output is algorithm.get_output(3):
            raise MemoryError("no more")
        fill(output, *arguments)

    monkeypatch.setattr(algorithm._outputs, "_fill", fill_two)
    with pytest.raises(RuntimeError, match="no more"):
        run(input_box=BOXES)
    assert not any(output.is_data_available() for output in masks_of(algorithm))


@pytest.mark.parametrize(
    "bad",
    [
        {"input_size_percent": "0"},
        {"input_size_percent": "12.5"},
        {"confidence_threshold": "nan"},
        {"confidence_threshold": "1.01"},
        {"multimask_output": "perhaps"},
        {"cuda": ""},
    ],
)
def test_a_rejected_parameter_changes_nothing(algorithm, bad):
    before = algorithm.get_parameters()
    with pytest.raises(RuntimeError, match=list(bad)[0]):
        algorithm.set_parameters({**bad, "input_text": "shoe"})
    assert algorithm.get_parameters() == before


def test_parameters_can_be_python_values(algorithm):
    algorithm.set_parameters({"input_point": [[520, 375]], "confidence_threshold": 0.25, "multimask_output": True})
    values = algorithm.get_parameters()
    assert [values[name] for name in ("input_point", "confidence_threshold", "multimask_output")] == [
        "[[520, 375]]",
        "0.25",
        "True",
    ]


def test_none_is_an_empty_string(algorithm):
    algorithm.set_parameters({"input_text": "shoe", "input_box": BOXES})
    algorithm.set_parameters({"input_text": None, "input_box": None})
    assert (algorithm.get_parameters()["input_text"], algorithm.get_parameters()["input_box"]) == ("", "")


@pytest.mark.parametrize("value", [b"shoe", {"shoe"}, (word for word in ("shoe",)), object, (1).__add__])
def test_values_of_other_types_are_refused(algorithm, value):
    before = algorithm.get_parameters()
    with pytest.raises(ValueError, match="^input_text = .*: expected a string, not "):
        algorithm.set_parameters({"input_text": value})
    assert algorithm.get_parameters() == before


def test_names_that_are_not_strings_are_ignored_with_a_warning(algorithm, caplog):
    algorithm.set_parameters({1: 2, None: 3})
    assert warnings_of(caplog)[0].startswith("Unknown parameters are ignored: 1, None. Known parameters: ")


def test_a_misspelt_parameter_is_named_in_a_warning(workflow, algorithm, caplog):
    before = algorithm.get_parameters()
    workflow.set_parameters({"input_txt": "shoe", "confidence_treshold": 0.3, "input_text": "hat"}, task_obj=algorithm)
    assert algorithm.get_parameters() == {**before, "input_text": "hat"}
    (warning,) = warnings_of(caplog)
    assert warning.startswith("Unknown parameters are ignored: input_txt, confidence_treshold. Known parameters: ")
    assert "input_text" in warning


def test_a_partial_map_from_an_older_workflow_is_accepted(algorithm):
    parameters = algorithm.get_param_object()
    parameters.set_values({"input_text": "shoe", "unknown_to_us": "1"})
    assert parameters.get_values()["input_text"] == "shoe"
    assert parameters.get_values()["input_size_percent"] == "100"


def test_cuda_without_a_gpu_runs_on_the_cpu_with_one_warning(run, caplog, small_checkpoint):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="there is no such file"):
            run(input_point=[POINT], cuda=True, model_weight_file="/nowhere.pt")
    for _ in range(2):
        (output,) = run(input_point=[POINT], cuda=True, model_weight_file=small_checkpoint)
        assert output.get_mask().any()
    assert len(warnings_of(caplog)) == 1
    assert "CPU" in warnings_of(caplog)[0]


@pytest.mark.parametrize("prompt", [{"input_box": BOXES}, {"input_text": "shoe", "confidence_threshold": 0.0}])
def test_a_smaller_input_changes_neither_the_mask_size_nor_the_prompt(run, photograph, prompt):
    whole = run(**prompt, input_size_percent=100)
    whole_masks = [output.get_mask() > 0 for output in whole]
    half = run(**prompt, input_size_percent=50)
    assert len(half) == len(whole_masks)
    for output, reference in zip(half, whole_masks, strict=True):
        mask = output.get_mask() > 0
        assert mask.shape == photograph.shape[:2]
        # the network sees both at 112 x 112: the same prompt must give nearly the same mask
        assert np.mean(mask == reference) > 0.95


def test_size_percent_does_not_move_the_prompt(run):
    """At 50 %, a box in source pixels still means the same box, not one of half or twice the size."""
    wanted = run(input_box=BOX, input_size_percent=50)[0].get_mask()
    whole = run(input_box=BOX, input_size_percent=100)[0].get_mask()
    halved = run(input_box=[coordinate / 2 for coordinate in BOX], input_size_percent=100)[0].get_mask()
    assert np.mean(wanted == whole) > np.mean(wanted == halved)


IMAGES = {
    "grey": lambda rgb: rgb[:, :, 1],
    "grey, one channel": lambda rgb: rgb[:, :, 1:2],
    "grey and alpha": lambda rgb: rgb[:, :, :2],
    "RGBA": lambda rgb: np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]),
    "16-bit": lambda rgb: rgb.astype(np.uint16) * 257,
    "float 0..1": lambda rgb: rgb.astype(np.float32) / 255,
    "float 0..255": lambda rgb: rgb.astype(np.float64),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_any_kind_of_image_is_segmented_like_its_rgb_equivalent(run, photograph, kind):
    image = IMAGES[kind](photograph)
    grey = kind.startswith("grey")
    equivalent = np.repeat(image.reshape(*photograph.shape[:2], -1)[:, :, :1], 3, axis=2) if grey else photograph
    reference = run(equivalent, input_box=BOX)[0].get_mask()
    mask = run(image, input_box=BOX)[0].get_mask()
    assert np.array_equal(mask, reference)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 900, 3), (900, 1, 3)])
def test_the_smallest_images_are_segmented(run, shape):
    (output,) = run(np.full(shape, 200, np.uint8), input_text="shoe")
    assert output.get_mask().shape == shape[:2]
    (output,) = run(np.full(shape, 200, np.uint8), input_point=[[0, 0]])
    assert output.get_mask().shape == shape[:2]


def load_workflow(path):
    """Load a workflow from a file; return it and the plugin's task in it."""
    loaded = Workflow()
    loaded.load(str(path))
    (task,) = [task for task in loaded.get_tasks() if task.name == PLUGIN]
    return loaded, task


def test_a_saved_workflow_gives_the_same_masks(run, workflow, photograph, tmp_path):
    reference = [output.get_mask() for output in run(input_box=BOXES, multimask_output=True)]
    path = tmp_path / "workflow.json"
    workflow.save(str(path))
    loaded, task = load_workflow(path)
    loaded.run_on(array=photograph)
    assert [output.get_mask().tolist() for output in masks_of(task)] == [mask.tolist() for mask in reference]


@pytest.mark.parametrize("known", [NAMES_OF_THE_EARLIER_PLUGIN, ["input_point"], ["input_point", "cuda"]])
def test_a_workflow_saved_by_an_older_plugin_loads_and_runs(
    run, workflow, small_checkpoint, photograph, tmp_path, known
):
    (reference,) = run(input_point=[POINT])
    path = tmp_path / "workflow.json"
    workflow.save(str(path))
    saved = json.loads(path.read_text())
    (task_data,) = [task["task_data"] for task in saved["tasks"]]
    task_data["parameters"] = [entry for entry in task_data["parameters"] if entry["name"] in known]
    assert len(task_data["parameters"]) == len(known)
    path.write_text(json.dumps(saved))

    loaded, task = load_workflow(path)
    loaded.set_parameters({"model_weight_file": small_checkpoint}, task_obj=task)
    loaded.run_on(array=photograph)
    (mask,) = masks_of(task)
    assert np.array_equal(mask.get_mask(), reference.get_mask())
    assert mask.description == reference.description


def test_parameters_can_be_exposed_as_workflow_parameters(run, workflow, photograph, tmp_path):
    reference = run(input_box=[BOX])[0].get_mask()
    run(input_point=[POINT])
    path = tmp_path / "workflow.json"
    exposed = {"input_box": {"name": "where", "description": "a box"}, "input_point": {}}
    workflow.save(str(path), exposed_params={PLUGIN: exposed})
    loaded, task = load_workflow(path)
    assert {"where", "input_point"} == set(loaded.get_workflow_parameters())
    loaded.set_workflow_parameters({"where": [BOX], "input_point": ""})
    loaded.run_on(array=photograph)
    (mask,) = masks_of(task)
    assert np.array_equal(mask.get_mask(), reference)


def test_objects_of_an_earlier_run_are_cleared(run, workflow, algorithm, photograph):
    workflow.set_parameters({**NO_PROMPT, "input_box": BOXES, "instance_output": True}, task_obj=algorithm)
    workflow.run_on(array=photograph)
    objects = algorithm.get_output(2)
    assert objects.description == f"{len(BOXES)} object(s)"
    run(input_box=BOXES, instance_output=False)
    assert (objects.get_object_count(), objects.description) == (0, "")


def test_init_long_process_loads_the_model(workflow, algorithm):
    workflow.init_long_process()
    assert algorithm._predictor is not None


@pytest.mark.parametrize(
    "prompt", [{}, {"input_text": "shoe"}, {"input_point": [POINT]}, {"input_box": BOXES, "multimask_output": True}]
)
def test_a_run_emits_as_many_steps_as_it_announces(run, algorithm, monkeypatch, prompt):
    emitted = []
    monkeypatch.setattr(algorithm, "emit_step_progress", lambda: emitted.append(1), raising=False)
    run(**prompt)
    assert len(emitted) == algorithm.get_progress_steps()
    run(**prompt)  # now the model is loaded, and the image and the answer are cached
    assert len(emitted) == 2 * algorithm.get_progress_steps()
