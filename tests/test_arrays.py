"""Prompts as detectors return them: NumPy arrays, PyTorch tensors, and lists of these."""

import json
import types

import numpy as np
import pytest
import torch

from sam3_engine.arrays import to_plain
from testbed.plugin import Plugin

BOXES = [[60.0, 80.0, 300.0, 330.0], [350.5, 100.25, 520.0, 390.0]]
POINTS = [[210.0, 150.0], [500.0, 300.0]]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.array(BOXES), BOXES),
        (np.array(BOXES, np.float32), BOXES),
        (torch.tensor(BOXES), BOXES),
        (torch.tensor(BOXES, requires_grad=True), BOXES),
        (list(np.array(BOXES)), BOXES),
        (list(torch.tensor(BOXES)), BOXES),
        (tuple(np.array(BOXES)), tuple(BOXES)),
        ([tuple(np.float32(number) for number in box) for box in BOXES], [tuple(box) for box in BOXES]),
        (np.array([np.array(BOXES[0]), None], dtype=object), [BOXES[0], None]),
        (np.array([True, False]), [True, False]),
        ([np.True_, torch.tensor(False)], [True, False]),
        (np.array(["shoe", "red hat"]), ["shoe", "red hat"]),
        ([np.str_("shoe")], ["shoe"]),
        (np.float32(0.5), 0.5),
        (np.zeros((0, 4)), []),
        ("shoe", "shoe"),
        ({"shoe": np.array(0.5), "hat": torch.tensor(1), "coat": 0.3}, {"shoe": 0.5, "hat": 1, "coat": 0.3}),
        (types.MappingProxyType({"shoe": [np.float32(0.25)]}), {"shoe": [0.25]}),
        (np.ndarray, np.ndarray),
        (None, None),
    ],
    ids=repr,
)
def test_arrays_and_tensors_become_lists_of_plain_values(value, plain):
    converted = to_plain(value)
    assert converted == plain
    assert repr(converted) == repr(plain)  # no NumPy scalars are left


CONVERSIONS = {
    "an array": np.array,
    "a float32 array": lambda value: np.array(value, np.float32),
    "a tensor": torch.tensor,
    "a list of arrays": lambda value: [np.array(item) for item in value],
    "a list of tensors": lambda value: [torch.tensor(item) for item in value],
    "a tuple of tuples of NumPy scalars": lambda value: tuple(tuple(map(np.float32, item)) for item in value),
}


@pytest.fixture(scope="module")
def plugin(small_checkpoint):
    return Plugin(model_weight_file=small_checkpoint, cuda=False)


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("name", ["input_box", "input_point"])
def test_arrays_set_a_parameter_as_their_lists_do(plugin, name, conversion):
    value = {"input_box": BOXES, "input_point": POINTS}[name]
    plugin.algorithm.set_parameters({name: CONVERSIONS[conversion](value)})
    stored = plugin.algorithm.get_parameters()[name]
    assert json.loads(stored.replace("(", "[").replace(")", "]")) == value


@pytest.mark.parametrize("convert", [float, np.float32, np.array, torch.tensor])
def test_a_dictionary_of_thresholds_is_stored_as_its_plain_numbers(plugin, convert):
    given = {"shoe": convert(0.25), "driver's seat": convert(0.5)}
    plugin.algorithm.set_parameters({"input_text": given})
    assert plugin.algorithm.get_parameters()["input_text"] == str({"shoe": 0.25, "driver's seat": 0.5})


@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_arrays_of_more_than_1000_numbers_are_stored_in_full(plugin, convert):
    boxes = [[x, 5, x + 20, 400] for x in range(600)]
    plugin.algorithm.set_parameters({"input_box": convert(boxes)})
    assert plugin.algorithm.get_parameters()["input_box"] == str(boxes)


def test_a_run_with_arrays_gives_the_masks_of_their_lists(plugin, photograph):
    def masks(**prompt):
        plugin.algorithm.set_parameters({"confidence_threshold": 0, **prompt})
        typed = {name: plugin.algorithm.get_parameters()[name] for name in prompt}
        return [(output.get_mask(), output.description) for output in plugin.segment(photograph, **typed)]

    for listed, given in (
        ({"input_box": BOXES}, {"input_box": torch.tensor(BOXES)}),
        (
            {"input_point": POINTS, "input_point_label": [1, 0]},
            {"input_point": np.array(POINTS), "input_point_label": np.array([True, False])},
        ),
        (
            {"input_box": BOXES, "input_box_label": [1, 0]},
            {"input_box": list(np.array(BOXES)), "input_box_label": torch.tensor([True, False])},
        ),
        ({"input_text": ["shoe", "hat"]}, {"input_text": np.array(["shoe", "hat"])}),
        ({"input_text": "shoe"}, {"input_text": np.str_("shoe")}),
    ):
        for (mask, description), (wanted, told) in zip(masks(**given), masks(**listed), strict=True):
            assert np.array_equal(mask, wanted)
            assert description == told


def test_numbers_keep_their_shortest_spelling(plugin):
    plugin.algorithm.set_parameters({"confidence_threshold": np.float32(0.3), "multimask_output": np.True_})
    values = plugin.algorithm.get_parameters()
    assert (values["confidence_threshold"], values["multimask_output"]) == ("0.3", "True")
    plugin.algorithm.set_parameters({"confidence_threshold": torch.tensor(0.5)})
    assert plugin.algorithm.get_parameters()["confidence_threshold"] == "0.5"


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), torch.zeros((0, 4))])
def test_a_detector_that_found_nothing_gives_no_prompt(plugin, photograph, boxes):
    plugin.algorithm.set_parameters({"input_box": boxes})
    (output,) = plugin.segment(photograph, input_box=plugin.algorithm.get_parameters()["input_box"])
    assert output.description == "nothing to segment: no prompt"
