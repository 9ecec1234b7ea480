"""Boxes that another task detects: each object is labeled with the category of its box."""

import logging

import numpy as np
import pytest
from ikomia import core, dataprocess
from ikomia.dataprocess.workflow import Workflow

from sam3_engine import GeometricPrompt, Options, open_predictor
from sam3_engine.errors import PromptError
from sam3_engine.fitting import fit_prompt
from sam3_engine.prompt_strings import Drawing, PromptStrings
from testbed.plugin import PLUGIN
from tests.support.detector import Detector
from tests.support.workflow_user import content

pytestmark = pytest.mark.usefixtures("plugins_directory")

BOXES = [[10, 15, 75, 80], [2, 2, 150, 100], [80, 20, 130, 90]]
LABELS = ["truck", "wheel", "truck"]
OUTSIDE = [200, 10, 250, 60]


@pytest.fixture
def image(photograph):
    """Return a (107, 160, 3) uint8 RGB image."""
    return np.ascontiguousarray(photograph[::4, ::4])


@pytest.fixture
def run(small_checkpoint, image):
    """Return a function that runs a task and, on its second output, the plugin; it returns the plugin's outputs."""

    def run_with(task, **parameters):
        workflow = Workflow()
        before = workflow.add_task(task=task, auto_connect=True)
        plugin = workflow.add_task(name=PLUGIN, auto_connect=False)
        workflow.connect_tasks(before, plugin, [(0, 0), (1, 1)])
        plugin.set_parameters({"model_weight_file": small_checkpoint, "cuda": False, **parameters})
        workflow.run_on(array=image)
        return plugin.get_outputs()

    return run_with


@pytest.fixture
def typed(small_checkpoint, image):
    """Return a function that runs the plugin on typed boxes and returns its outputs."""

    def run_with(**parameters):
        workflow = Workflow()
        plugin = workflow.add_task(name=PLUGIN, auto_connect=True)
        plugin.set_parameters({"model_weight_file": small_checkpoint, "cuda": False, **parameters})
        workflow.run_on(array=image)
        return plugin.get_outputs()

    return run_with


def detector(boxes, labels):
    task = Detector()
    task.boxes, task.labels = boxes, labels
    return task


class Drawer(dataprocess.C2dImageTask):
    """A task that outputs graphics."""

    def __init__(self, *items):
        dataprocess.C2dImageTask.__init__(self, "drawer")
        self.set_param_object(core.CWorkflowTaskParam())
        self.add_output(dataprocess.CGraphicsOutput())
        self.items = items

    def get_progress_steps(self):
        return 1

    def run(self):
        self.begin_task_run()
        self.get_output(1).set_items(list(self.items))
        self.forward_input_image(0, 0)
        self.end_task_run()


def rectangle(box, category=None):
    left, top, right, bottom = box
    item = core.CGraphicsRectangle(left, top, right - left, bottom - top)
    if category is not None:
        item.set_category(category)
    return item


def masks(outputs):
    return [output for output in outputs if isinstance(output, dataprocess.CSemanticSegmentationIO)]


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- through a workflow


@pytest.mark.parametrize("candidates", [1, 3])
def test_objects_and_masks_have_the_labels_of_the_detections(run, typed, caplog, candidates):
    outputs = run(detector(BOXES, LABELS), instance_output=True, multimask_output=candidates == 3)
    assert warnings_of(caplog) == []
    labels = np.repeat(LABELS, candidates).tolist()
    objects = outputs[2].get_objects()
    assert [found.label for found in objects] == labels
    assert [found.class_index for found in objects] == [LABELS.index(label) for label in labels]
    assert [mask.get_class_names() for mask in masks(outputs)] == [["background", label] for label in labels]
    for index, mask in enumerate(masks(outputs)):
        place = f"{labels[index]} of box {index // candidates + 1} of 3"
        place += f", candidate {index % candidates + 1} of 3" if candidates == 3 else ""
        assert mask.description.rpartition(", score ")[0] == place

    expected = typed(input_box=BOXES, instance_output=True, multimask_output=candidates == 3)
    others = expected[2].get_objects()
    assert {found.label for found in others} == {"object"}
    assert [found.color for found in objects] == [found.color for found in others]
    for mask, other in zip(masks(outputs), masks(expected), strict=True):
        assert np.array_equal(mask.get_mask(), other.get_mask())
        assert mask.description == other.description.replace("object", mask.get_class_names()[1])


def test_a_detection_outside_the_image_is_skipped_with_its_label(run, caplog):
    task = detector([BOXES[0], OUTSIDE, BOXES[2], [-20, 5, 40, 60]], ["a", "b", "c", "d"])
    outputs = run(task, instance_output=True)
    assert [(found.label, found.class_index) for found in outputs[2].get_objects()] == [("a", 0), ("c", 1), ("d", 2)]
    assert warnings_of(caplog) == [
        "Ignored: drawn shape outside the image. Rectangles, ellipses and polygons are used as boxes, points as points."
    ]
    assert outputs[1].description.endswith("; not used: drawn shape outside the image")


def test_if_nothing_is_detected_there_is_one_empty_mask(run):
    _, mask, objects = run(detector([], []), instance_output=True)
    assert not mask.get_mask().any()
    assert objects.get_object_count() == 0


def test_detections_that_are_examples_do_not_name_what_is_found(run):
    for text, label in (("", "object"), ("shoe", "shoe")):
        parameters = {"input_text": text, "input_box_label": 1, "confidence_threshold": 0, "instance_output": True}
        objects = run(detector(BOXES, LABELS), **parameters)[2]
        assert {found.label for found in objects.get_objects()} == {label}


@pytest.mark.parametrize("category", [None, "Default", "", " "])
def test_boxes_without_a_category_are_objects_as_if_typed(run, typed, category):
    outputs = run(Drawer(*(rectangle(box, category) for box in BOXES)), instance_output=True)
    expected = typed(input_box=BOXES, instance_output=True)
    assert [*map(content, outputs)] == [*map(content, expected)]
    assert [mask.description for mask in masks(outputs)] == [mask.description for mask in masks(expected)]


def test_every_shape_keeps_its_category_and_those_without_one_are_objects(run):
    def named(item, category):
        item.set_category(category)
        return item

    corners = [core.CPointF(x, y) for x, y in ((10, 15), (75, 20), (50, 80))]
    items = [
        named(core.CGraphicsPolygon(corners), "polygon"),
        rectangle(BOXES[1]),
        named(core.CGraphicsEllipse(80, 20, 50, 70), "an\n ellipse "),
        named(core.CGraphicsComplexPolygon(corners, []), "polygon"),
        named(core.CGraphicsPoint(core.CPointF(5, 5)), "point"),
    ]
    objects = run(Drawer(*items), instance_output=True)[2].get_objects()
    found = [(found.label, found.class_index) for found in objects]
    assert found == [("polygon", 0), ("object", 1), ("an ellipse", 2), ("polygon", 0)]


def test_a_box_that_points_refine_keeps_its_category(run):
    items = [rectangle(BOXES[0], "truck"), core.CGraphicsPoint(core.CPointF(20, 20))]
    _, mask = run(Drawer(*items))
    assert mask.get_class_names() == ["background", "truck"]


@pytest.mark.parametrize("text", ["note", "truck", "truck #1", "truck #1: 9", "truck: 0.900000"])
def test_a_text_that_is_no_caption_of_a_detection_is_reported(run, text):
    items = [rectangle(BOXES[0], "truck"), core.CGraphicsText(text, 5, 5)]
    _, mask = run(Drawer(*items))
    assert mask.description.endswith("; not used: drawn text")


# --- other tasks that detect


class Segmenter(dataprocess.CInstanceSegmentationTask):
    """An instance segmentation of masks that Ikomia outlines in different ways: in parts, with a hole, none."""

    def __init__(self):
        dataprocess.CInstanceSegmentationTask.__init__(self, "segmenter")
        self.set_param_object(core.CWorkflowTaskParam())

    def get_progress_steps(self):
        return 1

    def run(self):
        self.begin_task_run()
        self.set_names(LABELS[:2] + ["Default"])
        height, width = self.get_input(0).get_image().shape[:2]
        in_parts, with_hole, empty = np.zeros((3, height, width), np.uint8)
        in_parts[20:30, 20:60] = in_parts[40:60, 20:60] = 1
        with_hole[10:80, 10:100] = 1
        with_hole[30:40, 30:40] = 0
        drawn = (in_parts, with_hole, empty, in_parts)
        for number, (mask, box) in enumerate(zip(drawn, [*BOXES, BOXES[0]], strict=True)):
            left, top, right, bottom = map(float, box)
            category = number % 3
            self.add_object(number, 0, category, 0.5, left, top, right - left, bottom - top, mask)
        self.forward_input_image(0, 0)
        self.end_task_run()


def test_objects_of_an_instance_segmentation_are_one_box_each(run, typed, caplog):
    outputs = run(Segmenter(), instance_output=True)
    assert warnings_of(caplog) == []
    assert [found.label for found in outputs[2].get_objects()] == ["truck", "wheel", "object", "truck"]
    expected = typed(input_box=[*BOXES, BOXES[0]])
    for mask, other in zip(masks(outputs), masks(expected), strict=True):
        assert np.array_equal(mask.get_mask(), other.get_mask())


def test_rotated_detections_keep_their_label(run, caplog):
    detections = dataprocess.CObjectDetectionIO()
    detections.init("detector", 0)
    for label in ("ship", "dock"):
        detections.add_object(0, label, 0.5, 60.0, 50.0, 40.0, 30.0, 15.0, [255, 0, 0])
    task = Drawer(*detections.get_graphics_io().get_items())
    outputs = run(task, instance_output=True)
    assert warnings_of(caplog) == []
    assert [found.label for found in outputs[2].get_objects()] == ["ship", "dock"]


# --- in the engine


def test_segments_are_labeled_with_the_categories_of_their_boxes(small_checkpoint, image):
    predictor = open_predictor(small_checkpoint, cuda=False)
    boxes = [(2 * number, 5, 2 * number + 60, 80) for number in range(20)]  # more than one pass
    categories = [f"category {number % 7}" for number in range(20)]
    for multimask, candidates in ((False, 1), (True, 3)):
        named, plain = (
            predictor.predict(image, GeometricPrompt(boxes, categories=of_boxes), Options(multimask=multimask))
            for of_boxes in (categories, ())
        )
        assert [segment.label for segment in named] == np.repeat(categories, candidates).tolist()
        assert {segment.label for segment in plain} == {"object"}
        assert [segment.score for segment in named] == [segment.score for segment in plain]


def test_a_prompt_lists_the_labels_of_its_objects_and_their_different_names():
    boxes = ((0, 0, 5, 5), (1, 1, 6, 6), (2, 2, 7, 7))
    named = GeometricPrompt(boxes, categories=("wheel", " ", "wheel"))
    assert named.labels == ("wheel", "object", "wheel")
    assert named.names == ("wheel", "object")
    assert fit_prompt(named, 6, 6).prompt.labels == named.labels
    plain = GeometricPrompt(boxes)
    assert (plain.labels, plain.names) == (("object",) * 3, ("object",))
    assert GeometricPrompt(points=((1, 1), (2, 2)), point_labels=(1, 1)).labels == ("object",)
    for blank in ((), ("", "", ""), ("object", "", " ")):
        assert GeometricPrompt(boxes, categories=blank) == plain


@pytest.mark.parametrize(
    ("categories", "reason"),
    [
        (("a", "b"), "2 for 1 box; expected none, or one string per box"),
        ((5,), "'5' is not a string; expected none, or one string per box"),
        ((None,), "'None' is not a string; expected none, or one string per box"),
    ],
)
def test_categories_that_do_not_fit_are_refused(categories, reason):
    with pytest.raises(PromptError) as caught:
        GeometricPrompt(((0, 0, 5, 5),), categories=categories)
    assert (caught.value.argument, caught.value.reason) == ("categories", reason)
    with pytest.raises(TypeError, match="categories = 'truck'"):
        GeometricPrompt(((0, 0, 5, 5),), categories="truck")


def test_skipped_rectangles_take_their_categories_with_them():
    rectangles = ((0.0, 0.0, 5.0, 5.0), (9.0, 9.0, 9.0, 9.0), (1.0, 1.0, 6.0, 6.0))
    drawing = Drawing(rectangles, width=20, height=20, categories=("a", "b", "c"))
    assert PromptStrings().choose(drawing).prompt == GeometricPrompt(rectangles[::2], categories=("a", "c"))
