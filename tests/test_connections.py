"""Workflows in which other tasks follow the plugin or precede it: outputs exist before a run, at the same indices."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow

from testbed.plugin import PLUGIN, REPOSITORY
from tests.support.detector import Detector
from tests.support.workflow_user import content, results

pytestmark = pytest.mark.usefixtures("plugins_directory")

BOXES = [[10, 15, 75, 80], [2, 2, 150, 100], [80, 20, 130, 90]]
NO_PROMPT = {"input_text": "", "input_box": "", "input_point": "", "multimask_output": False, "instance_output": False}
FILTER_MASK, FILTER_OBJECTS = "ik_semantic_segmentation_filter", "ik_instance_segmentation_filter"
MASK, OBJECTS = "mask", "objects"
OUTPUTS = {  # after the image
    "nothing": ({}, [MASK]),
    "a phrase": ({"input_text": "shoe"}, [MASK]),
    "a phrase, objects": ({"input_text": "shoe", "instance_output": True}, [MASK, OBJECTS]),
    "phrases, candidates have no effect": ({"input_text": ["shoe", "hat"], "multimask_output": True}, [MASK]),
    "an example box": ({"input_box": BOXES[:1], "input_box_label": [1], "multimask_output": True}, [MASK]),
    "a point": ({"input_point": [40, 40]}, [MASK]),
    "candidates": ({"input_point": [40, 40], "multimask_output": True}, [MASK] * 3),
    "a box and points": ({"input_box": BOXES[0], "input_point": [[40, 40], [50, 50]]}, [MASK]),
    "boxes": ({"input_box": BOXES}, [MASK] * 3),
    "candidates of boxes, objects": (
        {"input_box": BOXES, "multimask_output": True, "instance_output": True},
        [MASK, OBJECTS, *[MASK] * 8],
    ),
}


@pytest.fixture
def image(photograph):
    """Return a (107, 160, 3) uint8 RGB image, because Ikomia's polygons take most of the time on large images."""
    return np.ascontiguousarray(photograph[::4, ::4])


@pytest.fixture
def new_workflow(small_checkpoint):
    """Return a function that makes a workflow of the plugin alone and returns it with the plugin's task."""
    always = {"model_weight_file": small_checkpoint, "cuda": False, "confidence_threshold": 0}

    def make(**parameters):
        workflow = Workflow()
        task = workflow.add_task(name=PLUGIN, auto_connect=True)
        workflow.set_parameters({**always, **parameters}, task_obj=task)
        return workflow, task

    return make


def kinds(task):
    """Return what the outputs after the image are."""
    types = {dataprocess.CSemanticSegmentationIO: MASK, dataprocess.CInstanceSegmentationIO: OBJECTS}
    return [next(types[kind] for kind in type(output).__mro__ if kind in types) for output in task.get_outputs()[1:]]


def found(output):
    """Return whether there is an object in an output."""
    if isinstance(output, dataprocess.CInstanceSegmentationIO):
        return output.get_object_count() > 0
    return bool(output.get_mask().any())


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- outputs before a run


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_exist_before_the_run_that_fills_them(new_workflow, image, case):
    parameters, expected = OUTPUTS[case]
    workflow, task = new_workflow(**parameters)
    before = task.get_outputs()
    assert kinds(task) == expected
    assert not any(output.is_data_available() for output in before[1:])
    workflow.run_on(array=image)
    after = task.get_outputs()
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert [output.is_data_available() for output in after[1:]] == [True] * len(expected)


def test_outputs_follow_each_change_of_the_parameters(new_workflow, image):
    workflow, task = new_workflow()
    for run_between in (False, True):
        for parameters, expected in [*OUTPUTS.values(), *reversed(OUTPUTS.values())]:
            workflow.set_parameters({**NO_PROMPT, "input_box_label": "", **parameters}, task_obj=task)
            assert kinds(task) == expected
            if run_between:
                workflow.run_on(array=image)
                assert kinds(task) == expected


@pytest.mark.parametrize("malformed", ["[[1, 2, 3]]", "[[1, 2, 3, 4], [", "shoe", "[[9, 9, 1, 1]]"])
def test_boxes_that_cannot_be_read_are_refused_by_the_run_not_before(new_workflow, image, malformed):
    workflow, task = new_workflow(input_box=malformed)
    with pytest.raises(RuntimeError, match="input_box = "):
        workflow.run_on(array=image)
    assert not any(output.is_data_available() for output in task.get_outputs()[1:])
    workflow.set_parameters({"input_box": BOXES}, task_obj=task)
    assert kinds(task) == [MASK] * 3


def test_a_task_without_a_workflow_has_outputs_too(small_checkpoint):
    from ikomia.dataprocess.registry import ik_registry

    task = ik_registry.create_algorithm(PLUGIN, None)
    task.set_parameters({"input_box": BOXES, "instance_output": True})
    assert kinds(task) == [MASK, OBJECTS, MASK, MASK]


def test_parameters_given_to_a_new_task_give_it_its_outputs(plugins_directory):
    from ikomia.dataprocess.registry import ik_registry

    template = ik_registry.create_algorithm(PLUGIN, None)
    template.set_parameters({"input_box": BOXES})
    task = ik_registry.create_algorithm(PLUGIN, template.get_param_object())
    assert kinds(task) == [MASK] * 3
    task.set_parameters({"input_box": BOXES[0]})
    assert (kinds(task), kinds(template)) == ([MASK], [MASK] * 3)


# --- other tasks that follow and precede

TWO_BOXES_AND_OBJECTS = {"input_box": BOXES[:2], "instance_output": True}
FOLLOWING = [  # name, parameters, edges from the plugin
    ("ocv_box_filter", {}, [(0, 0)]),
    ("ocv_crop", {"left": "5", "top": "5", "width": "100", "height": "60"}, [(0, 0)]),
    (FILTER_MASK, {}, [(0, 0), (1, 1)]),
    (FILTER_OBJECTS, {"confidence": "0"}, [(0, 0), (2, 1)]),
    (FILTER_MASK, {}, [(0, 0), (3, 1)]),
]
ORDERS = (
    "set connect run",
    "set connect run run",
    "set run connect run",
    "set connect save load run",
    "set connect run save load run",
    "set save load connect run",
    "set run save load connect save load run",
)


@pytest.fixture
def build(small_checkpoint, image, tmp_path):
    """Return a function that builds a workflow with a resize before the plugin, and returns it.

    It does steps in the order given: set parameters, connect other tasks to all outputs, save, load, run.
    """
    path = tmp_path / "workflow.json"

    def set_parameters(workflow):
        parameters = {"model_weight_file": small_checkpoint, "cuda": False, **TWO_BOXES_AND_OBJECTS}
        workflow.set_parameters(parameters, task_obj=plugin_of(workflow))

    def connect(workflow):
        for name, parameters, edges in FOLLOWING:
            following = workflow.add_task(name=name, auto_connect=False)
            following.set_parameters(parameters)
            workflow.connect_tasks(plugin_of(workflow), following, edges)

    def load(_):
        workflow = Workflow()
        workflow.load(str(path))
        return workflow

    steps = {
        "set": set_parameters,
        "connect": connect,
        "save": lambda workflow: workflow.save(str(path)),
        "load": load,
        "run": lambda workflow: workflow.run_on(array=np.repeat(image, 2, axis=1)),
    }

    def make(order):
        workflow = Workflow()
        workflow.add_task(name="ocv_resize", auto_connect=True).set_parameters({"newWidth": "160", "newHeight": "107"})
        workflow.add_task(name=PLUGIN, auto_connect=True)
        for step in order.split():
            workflow = steps[step](workflow) or workflow
        return workflow

    return make


def plugin_of(workflow):
    return workflow.find_task(PLUGIN, 0)


def test_tasks_that_follow_get_every_output_in_whatever_order_the_workflow_is_built(build):
    first = results(build(ORDERS[0]))
    (_, image, mask, objects, second), *following = first[2:]
    assert np.any(mask[1])
    assert np.any(second[1])
    assert [label for label, *_ in objects] == ["object"] * 2
    (_, blurred), *following = following
    assert np.shape(blurred) == np.shape(image) == (107, 160, 3)
    assert following == [
        ["ocv_crop", np.array(image)[5:65, 5:105].tolist()],
        [FILTER_MASK, image, mask],
        [FILTER_OBJECTS, image, objects],
        [FILTER_MASK, image, second],
    ]
    for order in ORDERS[1:]:
        assert results(build(order)) == first, order


def test_a_new_process_loads_the_connections_and_gives_the_same_results(build, image, tmp_path):
    expected = results(build("set connect save run"))
    assert cv2.imwrite(str(tmp_path / "image.png"), cv2.cvtColor(np.repeat(image, 2, axis=1), cv2.COLOR_RGB2BGR))
    script = Path(__file__).parent / "support" / "workflow_user.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "workflow.json", tmp_path / "image.png"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == expected


# --- connected outputs that the parameters no longer imply

FEWER = "stays, but is empty with these parameters."
CHANGES = {  # the connected output, the task that follows, parameters before and after, the warning
    "fewer boxes": (3, FILTER_MASK, {"input_box": BOXES}, {"input_box": BOXES[0]}, FEWER),
    "a phrase": (2, FILTER_MASK, {"input_box": BOXES}, {"input_text": "shoe", "input_box": ""}, FEWER),
    "no candidates": (3, FILTER_MASK, OUTPUTS["candidates"][0], {"multimask_output": False}, FEWER),
    "no objects": (2, FILTER_OBJECTS, TWO_BOXES_AND_OBJECTS, {"instance_output": False}, FEWER),
    "boxes that cannot be read": (
        2,
        FILTER_OBJECTS,
        TWO_BOXES_AND_OBJECTS,
        {"input_box": "[[1, 2", "instance_output": False},
        FEWER,
    ),
    "objects": (2, FILTER_MASK, {"input_box": BOXES}, {"instance_output": True}, "is now the objects."),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_connected_output_that_goes_stays_empty_with_one_warning(new_workflow, image, caplog, change):
    index, name, before, after, expected = CHANGES[change]
    workflow, task = new_workflow(**before)
    following = workflow.add_task(name=name, auto_connect=False)
    following.set_parameters({"confidence": "0"} if name == FILTER_OBJECTS else {})
    workflow.connect_tasks(task, following, [(0, 0), (index, 1)])
    workflow.run_on(array=image)
    full = content(following.get_output(1))
    assert full == content(task.get_output(index))
    caplog.clear()

    workflow.set_parameters(after, task_obj=task)
    assert warnings_of(caplog) == [f"Output {index}, which is connected to another task, {expected}"]
    for _ in range(2):
        if "[[1, 2" in after.values():
            with pytest.raises(RuntimeError, match="input_box = "):
                workflow.run_on(array=image)
        else:
            workflow.run_on(array=image)
            assert not found(following.get_output(1))
    assert sum("connected" in warning for warning in warnings_of(caplog)) == 1
    assert len(workflow.get_out_edges(workflow.get_task_id(task))) == 2

    workflow.set_parameters({**NO_PROMPT, **before}, task_obj=task)
    workflow.run_on(array=image)
    assert content(following.get_output(1)) == full
    assert sum("connected" in warning for warning in warnings_of(caplog)) == 1


# --- boxes of a task that precedes


@pytest.fixture
def detector_and_plugin(small_checkpoint):
    """Return a workflow, a detector in it, and the plugin, which segments the detector's boxes."""
    workflow = Workflow()
    detector = workflow.add_task(task=Detector(), auto_connect=True)
    task = workflow.add_task(name=PLUGIN, auto_connect=False)
    workflow.connect_tasks(detector, task, [(0, 0), (1, 1)])
    task.set_parameters({"model_weight_file": small_checkpoint, "cuda": False})
    return workflow, detector, task


@pytest.mark.parametrize("parameters", [{}, {"multimask_output": True}, {"instance_output": True}])
def test_the_outputs_of_detected_boxes_are_those_of_typed_ones(detector_and_plugin, new_workflow, image, parameters):
    workflow, detector, task = detector_and_plugin
    workflow.set_parameters(parameters, task_obj=task)
    for boxes in (BOXES, BOXES[:1], BOXES[1:]):
        detector.boxes = boxes
        workflow.run_on(array=image)
        alone, typed = new_workflow(input_box=boxes, **parameters)
        alone.run_on(array=image)
        assert list(map(content, task.get_outputs())) == list(map(content, typed.get_outputs()))


def test_masks_of_detected_boxes_can_be_connected_after_a_run(detector_and_plugin, image, caplog):
    workflow, detector, task = detector_and_plugin
    detector.boxes = BOXES
    workflow.run_on(array=image)
    following = workflow.add_task(name=FILTER_MASK, auto_connect=False)
    workflow.connect_tasks(task, following, [(0, 0), (3, 1)])
    for boxes in (BOXES, BOXES[:2], BOXES[:1], BOXES[:2], BOXES):
        detector.boxes = boxes
        workflow.run_on(array=image)
        assert found(following.get_output(1)) == (len(boxes) == 3)
    connected = [warning for warning in warnings_of(caplog) if "connected" in warning]
    assert connected == [f"Output 3, which is connected to another task, {FEWER}"]
