"""The settings panel of Ikomia Studio, in real Qt: the values that it shows, marks as malformed and applies."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from sam3_engine.prompt_strings import PromptStrings
from sam3_engine.settings import Settings
from testbed.plugin import REPOSITORY, Plugin

DEFAULTS = Settings(cuda=False).to_strings()
EVERYTHING = {
    "input_size_percent": 50,
    "model_input_size": 504,
    "embedding_cache_folder": "/a/cache",
    "model_weight_file": "/a/b.pt",
    "input_text": "shoe",
    "confidence_threshold": 0.25,
    "iou_threshold": 0.75,
    "max_detections": 7,
    "min_area_percent": 0.25,
    "max_area_percent": 50.5,
    "min_region_percent": 1.25,
    "tile_size": 672,
    "tile_overlap": 0.25,
    "points_per_side": 24,
    "predicted_iou_threshold": 0.625,
    "stability_score_threshold": 0.875,
    "input_box": "[[5, 6, 7, 8]]",
    "input_box_label": "[1]",
    "input_point": "[[1, 2]]",
    "input_point_label": "[0]",
    "multimask_output": True,
    "mask_output": "classes",
    "instance_output": True,
}


class PanelUser:
    """A process that uses the panel, see :mod:`support.panel_user`."""

    def __init__(self, folder: Path):
        self._errors = (folder / "errors.txt").open("w+")
        environment = {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "support" / "panel_user.py")],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __call__(self, **task):
        """Open a panel, perform the task, and return the result."""
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):  # Ikomia also prints to stdout
                return json.loads(line)
        self._errors.seek(0)
        raise AssertionError(self._errors.read())

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0
        self._errors.close()


@pytest.fixture(scope="module")
def use_panel(tmp_path_factory):
    user = PanelUser(tmp_path_factory.mktemp("panel"))
    yield user
    user.close()


@pytest.fixture
def use_panel_in_fresh_process(tmp_path):
    user = PanelUser(tmp_path)
    yield user
    user.close()


def test_a_new_panel_shows_the_defaults_and_marks_nothing(use_panel):
    found = use_panel()
    assert found["opened"]["shown"] == {
        "cuda": False,
        "input_size_percent": "100 %",
        "model_input_size": "as trained",
        "embedding_cache_folder": "",
        "model_weight_file": "",
        "input_text": "",
        "confidence_threshold": "0.500",
        "iou_threshold": "1.000",
        "max_detections": "all",
        "min_area_percent": "0.00 %",
        "max_area_percent": "100.00 %",
        "min_region_percent": "0.00 %",
        "tile_size": "no tiles",
        "tile_overlap": "0.200",
        "points_per_side": "off",
        "predicted_iou_threshold": "0.700",
        "stability_score_threshold": "0.900",
        "input_box": "",
        "input_box_label": "",
        "input_point": "",
        "input_point_label": "",
        "multimask_output": False,
        "mask_output": "instances",
        "instance_output": False,
    }
    assert found["opened"]["marked"] == []
    assert found["opened"]["messages"] == {}
    assert found["applied"] == DEFAULTS


def test_every_field_has_a_label_and_a_tooltip(use_panel):
    opened = use_panel()["opened"]
    for label in ("CUDA", "Text prompt", "Box coord. [[xyxy]]", "Point coord. [[xy]]", "Point label [i]"):
        assert label in opened["labels"]
    assert len(opened["labels"]) == len(opened["tooltips"]) == len(DEFAULTS)
    assert all(len(tooltip) > 20 for tooltip in opened["tooltips"].values())
    for name, example in (("input_box", "[[425, 600, 700, 875]]"), ("input_point", "[[520, 375]]")):
        assert example in opened["tooltips"][name]


@pytest.mark.parametrize("name", EVERYTHING)
def test_only_typed_values_are_applied(use_panel, name):
    found = use_panel(typed={name: EVERYTHING[name]})
    assert found["applied"] == {**DEFAULTS, name: str(EVERYTHING[name])}


def test_a_reopened_panel_shows_the_applied_values(use_panel):
    found = use_panel(typed=EVERYTHING, unfolded=True)
    assert found["typed"]["shown"] != found["opened"]["shown"]
    assert found["opened again"] == found["typed"]


def test_a_field_can_be_cleared_and_a_value_reset(use_panel):
    given = {"input_text": "shoe", "model_input_size": "504", "multimask_output": "True"}
    found = use_panel(given=given, typed={"input_text": "", "model_input_size": 0, "multimask_output": False})
    assert found["applied"] == DEFAULTS


@pytest.mark.parametrize(
    "stored",
    [
        {"cuda": "True"},  # from a workflow made on a machine with a GPU
        {"confidence_threshold": "0.12345"},
        {"min_region_percent": "0.0125"},
        {"input_box": " [[1, 2,\t3, 4]]"},
        {"model_weight_file": "C:\\weights\\sam3.pt "},
        {"model_weight_file": "facebook/sam3"},
        {"model_weight_file": "owner/repository/model.safetensors"},
    ],
)
def test_untouched_fields_keep_their_stored_values(use_panel, stored):
    found = use_panel(given=stored, typed={"input_text": "shoe"})
    assert found["applied"] == {**DEFAULTS, **stored, "input_text": "shoe"}


def test_cuda_cannot_be_selected_without_a_gpu(use_panel):
    found = use_panel(given={"cuda": "True"})
    assert found["opened"]["disabled"] == ["cuda"]
    assert found["opened"]["shown"]["cuda"] is False


def test_the_selected_file_becomes_the_checkpoint(use_panel):
    assert use_panel(chosen_file="/a/b.pt")["applied"]["model_weight_file"] == "/a/b.pt"


def test_canceling_the_file_dialog_keeps_the_checkpoint(use_panel):
    found = use_panel(given={"model_weight_file": "/a/b.pt"}, chosen_file="")
    assert found["applied"]["model_weight_file"] == "/a/b.pt"


@pytest.mark.parametrize("official", ["facebook/sam3", "facebook/sam3.1"])
@pytest.mark.parametrize("stored", ["", "/a/b.pt", "facebook/sam3"])
def test_the_official_weights_can_be_chosen_by_name(use_panel, official, stored):
    found = use_panel(given={"model_weight_file": stored}, chosen={"model_weight_file": official})
    assert found["opened"]["choices"]["model_weight_file"] == ["facebook/sam3", "facebook/sam3.1"]
    assert found["applied"]["model_weight_file"] == official
    assert found["typed"]["choices"] == found["opened"]["choices"]


def test_the_official_weights_can_be_chosen_again_after_typing(use_panel):
    name = "model_weight_file"
    found = use_panel(
        given={name: "facebook/sam3"}, typed={name: "facebook/sam3.1/x.pt"}, chosen={name: "facebook/sam3"}
    )
    assert found["applied"][name] == "facebook/sam3"


@pytest.mark.parametrize("typed", ["f", "FACEBOOK/SAM3", "/a/b c.safetensors", "owner/repository/model.safetensors"])
def test_a_weight_file_is_applied_as_typed(use_panel, typed):
    found = use_panel(typed={"model_weight_file": typed})
    assert found["applied"] == {**DEFAULTS, "model_weight_file": typed}
    assert found["typed"]["choices"] == found["opened"]["choices"]


@pytest.mark.parametrize("stored", ["", "/a/b.pt", "facebook/sam3"])
def test_the_mouse_wheel_does_not_change_the_weight_file(use_panel, stored):
    found = use_panel(given={"model_weight_file": stored}, wheel_over=["model_weight_file"])
    assert found["applied"]["model_weight_file"] == stored


@pytest.mark.parametrize(
    ("typed", "marked"),
    [
        ({"input_box": "[[1, 2, 3"}, {"input_box"}),
        ({"input_box": "[[1, 2, 3]]"}, {"input_box"}),
        ({"input_box": "[[5, 5, 1, 1]]"}, {"input_box"}),
        ({"input_box": "<b>[[1, 2, 3, 4]]</b>"}, {"input_box"}),
        ({"input_point": "[[1, 2"}, {"input_point"}),
        ({"input_point": "[[1, 2]]", "input_point_label": "[2]"}, {"input_point_label"}),
        ({"input_point": "[[1, 2]]", "input_point_label": "[1, 0]"}, {"input_point_label"}),
        (
            {"input_point": "[[1, 2", "input_point_label": "[5]", "input_box": "x"},
            {"input_box", "input_point", "input_point_label"},
        ),
        ({"input_text": "shoe " * 1000}, {"input_text"}),
        ({"input_text": '["shoe", "hat"'}, {"input_text"}),
        ({"input_text": '["shoe", "hat"]', "input_box": "[1, 2, 3, 4]", "input_box_label": "1"}, {"input_text"}),
        ({"input_box": "[1, 2, 3, 4]", "input_box_label": "0"}, {"input_box_label"}),
        ({"input_box_label": "[1, 0]"}, set()),  # for rectangles drawn later
        ({"input_text": "shoe", "input_box": "[1, 2, 3, 4]", "input_point": "(1, 2)", "input_point_label": "1"}, set()),
    ],
)
def test_malformed_fields_are_marked_while_typing_and_unmarked_when_corrected(use_panel, typed, marked):
    found = use_panel(typed=typed, corrected=dict.fromkeys(typed, ""))
    errors = PromptStrings(**typed).errors()
    assert set(errors) == set(found["typed"]["marked"]) == marked
    assert {name: found["typed"]["messages"][name] for name in marked} == errors
    assert found["typed"]["tooltips"] == found["opened"]["tooltips"]
    assert found["opened again"]["marked"] == []
    assert found["opened again"]["messages"] == {}


def test_malformed_stored_values_are_marked_on_opening(use_panel):
    assert use_panel(given={"input_point": "[["})["opened"]["marked"] == ["input_point"]


def test_a_missing_weight_file_is_marked(use_panel, tmp_path):
    name, missing = "model_weight_file", str(tmp_path / "sam3.pt")
    found = use_panel(given={name: missing}, typed={name: "facebook/sam3.1"})
    assert found["opened"]["marked"] == [name]
    assert found["opened"]["messages"][name].startswith(f"{name} = '{missing}': there is no such file")
    assert found["typed"]["marked"] == []


def test_a_weight_file_that_exists_is_not_marked(use_panel, small_checkpoint):
    found = use_panel(chosen_file=str(small_checkpoint))
    assert found["typed"]["messages"] == {}


def test_area_limits_that_exclude_each_other_are_marked(use_panel):
    found = use_panel(typed={"min_area_percent": 60, "max_area_percent": 50}, corrected={"min_area_percent": 40})
    assert found["typed"]["marked"] == ["min_area_percent"]
    assert "a minimum that is not above the maximum" in found["typed"]["messages"]["min_area_percent"]
    assert found["opened again"]["messages"] == {}


@pytest.mark.parametrize(
    ("typed", "notes"),
    [
        (
            {"input_text": "shoe", "input_box": "[1, 2, 3, 4]", "input_point": "[1, 2]"},
            {"input_box": "Ignored: input_text is set.", "input_point": "Ignored: input_text is set."},
        ),
        (
            {"input_box": "[1, 2, 3, 4]", "input_box_label": "1", "input_point": "[1, 2]"},
            {"input_point": "Ignored: input_box_label is set, so boxes are examples."},
        ),
        (
            {"input_box": "[[1, 2, 3, 4], [5, 6, 7, 8]]", "input_point": "[1, 2]"},
            {"input_point": "Ignored: points refine a single box, and there are 2."},
        ),
        ({"input_box": "[1, 2, 3, 4]", "input_point": "[1, 2]", "input_point_label": "[0]"}, {}),
    ],
)
def test_fields_that_are_ignored_say_so(use_panel, typed, notes):
    found = use_panel(typed=typed)
    assert found["typed"]["messages"] == notes
    assert found["typed"]["marked"] == []


def test_return_applies(use_panel):
    keys = {"input_text": "shoe<Return>", "confidence_threshold": "0.25<Enter>", "max_detections": "7<Return>"}
    applied = use_panel(keys=keys, given={"max_detections": "9"})["without Apply"]
    assert applied == {**DEFAULTS, "input_text": "shoe", "confidence_threshold": "0.25", "max_detections": "7"}


@pytest.mark.parametrize(
    ("keys", "applied", "shown"),
    [
        ("0", "0", "as trained"),
        ("100", "112", "112 px"),
        ("500", "504", "504 px"),
        ("3000", "294", "294 px"),  # a field for at most 2016 takes 300
        ("<Up>", "112", "112 px"),
        ("<Up><Up>", "126", "126 px"),
        ("112<Return><Down>", "0", "as trained"),
        ("1000<Return><Down>", "980", "980 px"),
    ],
)
def test_a_model_input_size_can_be_typed(use_panel, keys, applied, shown):
    found = use_panel(keys={"model_input_size": f"{keys}<Return>"}, unfolded=True)
    assert found["without Apply"] == {**DEFAULTS, "model_input_size": applied}
    assert found["typed"]["shown"]["model_input_size"] == shown


@pytest.mark.parametrize(("keys", "applied"), [("0", "0"), ("10", "64"), ("672", "672"), ("<Up>", "112")])
def test_a_tile_size_can_be_typed(use_panel, keys, applied):
    found = use_panel(keys={"tile_size": f"{keys}<Return>"}, unfolded=True)
    assert found["without Apply"] == {**DEFAULTS, "tile_size": applied}


def test_a_stored_model_input_size_stays_when_it_is_only_looked_at(use_panel):
    found = use_panel(given={"model_input_size": "500"}, keys={"model_input_size": "<Return>"})
    assert found["without Apply"]["model_input_size"] == "500"
    assert found["typed"]["shown"]["model_input_size"] == "500 px"


def test_the_mouse_wheel_changes_only_a_number_with_the_focus(use_panel):
    given = {**DEFAULTS, "model_input_size": "504", "max_detections": "9", "mask_output": "classes"}
    found = use_panel(given=given, wheel_over=list(DEFAULTS))
    assert found["applied"] == given
    turned = use_panel(given=given, keys={"max_detections": "<Wheel>", "mask_output": "<Wheel>"})
    assert turned["applied"] == {**given, "max_detections": "7"}


def test_rarely_used_fields_are_folded_until_one_is_used(use_panel):
    folded = set(DEFAULTS) - set(use_panel()["opened"]["visible"])
    assert folded == {
        "iou_threshold",
        "max_detections",
        "min_area_percent",
        "max_area_percent",
        "min_region_percent",
        "tile_size",
        "tile_overlap",
        "predicted_iou_threshold",
        "stability_score_threshold",
        "mask_output",
        "input_size_percent",
        "model_input_size",
        "embedding_cache_folder",
    }
    assert set(use_panel(unfolded=True)["typed"]["visible"]) == set(DEFAULTS)
    assert set(use_panel(given={"iou_threshold": "0.7"})["opened"]["visible"]) == set(DEFAULTS)


def test_opening_and_applying_need_neither_torch_nor_sam3(use_panel_in_fresh_process):
    assert use_panel_in_fresh_process(typed=EVERYTHING)["torch or sam3"] == []


@pytest.mark.parametrize(
    "typed",
    [
        {"input_text": "shoe", "confidence_threshold": 0.1, "input_box": "[[1, 2"},  # incomplete, but ignored
        {"input_box": "[[60, 80, 300, 330], [5, 5, 635, 420]]", "multimask_output": True, "input_size_percent": 50},
        {"input_text": "['shoe', 'hat']", "confidence_threshold": 0.1, "iou_threshold": 0.5},
        {"input_box": "[60, 80, 300, 330]", "input_box_label": "1", "confidence_threshold": 0.1},
        {"input_point": "[[210, 150], [500, 300]]", "input_point_label": "[1, 0]", "model_input_size": 140},
        {"input_point": "[210, 150]", "min_region_percent": 5},
    ],
)
def test_the_applied_values_are_used_by_the_run(use_panel, typed, small_checkpoint, photograph, tmp_path):
    picture = tmp_path / "china.png"
    cv2.imwrite(str(picture), cv2.cvtColor(photograph, cv2.COLOR_RGB2BGR))
    found = use_panel(typed={**typed, "model_weight_file": str(small_checkpoint)}, run_on=str(picture))
    outputs = Plugin(model_weight_file=small_checkpoint, cuda=False).segment(photograph, **typed)
    assert found["masks"] == [[output.description, hashlib.sha256(output.get_mask()).hexdigest()] for output in outputs]
    assert any(output.get_mask().any() for output in outputs)
