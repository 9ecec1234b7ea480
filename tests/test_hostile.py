"""Wrong prompts, values, images and checkpoints in an Ikomia workflow give a clear error and leave no results."""

import itertools
import os
import pickle
import re

import numpy as np
import pytest
import torch
from support.intruder import Intruder

from sam3_engine.errors import quote
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import GeometricPrompt
from sam3_engine.shared_models import shared_model
from testbed.plugin import Plugin

HEIGHT, WIDTH = 60, 80
GOOD = {"input_box": [[5, 5, 40, 50]], "instance_output": True}
LONG = 100_000

NOT_LISTS = [
    "[[1, 2",
    "shoe",
    "{}",
    "null",
    "true",
    "NaN",
    "[[1, 2], [3",
    "\x00",
    "[[\x00]]",
    "[" * 5000,
    "1e999",
    "🙂",
]
NOT_NUMBERS = ["true", "null", '"5"', "NaN", "Infinity", "1e999", "[1]", "{}", "9" * 400, "0x10", "١٢"]

WRONG_BOXES = [
    *NOT_LISTS,
    *(f"[[1, 2, 3, {item}]]" for item in NOT_NUMBERS),
    *("[[1, 2, 3]]", "[[1, 2, 3, 4, 5]]", "[[[1, 2, 3, 4]]]", "[1, [2], 3, 4]", "[[], [1, 2, 3, 4]]", "5", "[5]"),
    *("[[40, 5, 5, 50]]", "[[5, 50, 40, 5]]", "[[5, 5, 5, 50]]", "[[5, 5, 40, 5]]", "[[0, 0, 0, 0]]"),
    *("[[80, 0, 90, 10]]", "[[0, 60, 10, 70]]", "[[-9, -9, 0, 0]]", "[[1e300, 1e300, 1.5e300, 1.5e300]]"),
    "[" + "[1, 2, 3, 4], " * 5000 + "[1, 2, 3]]",
    "[[1, 2, 3, 4], " * 5000,
]
WRONG_POINTS = [
    *NOT_LISTS,
    *(f"[[1, {item}]]" for item in NOT_NUMBERS),
    *("[[1]]", "[[1, 2, 3]]", "[[[1, 2]]]", "[1, [2]]", "5", "[5]", "[[], [1, 2]]"),
    *("[[80, 5]]", "[[5, 60]]", "[[-1, 5]]", "[[5, -0.5]]", "[[1e300, 5]]", "[[5, 5], [5, 500]]"),
]
WRONG_POINT_LABELS = [
    *(text for text in NOT_LISTS if text not in ("[]", "true")),
    *(f"[{item}]" for item in NOT_NUMBERS if item not in ("[1]", "true")),
    *("2", "[2]", "[-1]", "[0.5]", "[1, 1]", "[[1]]", "[" + "1, " * 5000 + "1]"),
]
WRONG_TEXTS = [
    "x" * 1001,
    "x " * LONG,
    *("[shoe]", '["shoe"', '["shoe", 5]', '["shoe", ""]', '["shoe", null]', '[["shoe"]]', "[1, 2]", "['a', b'b']"),
    *("['a' if 1else 2]", "['a' # x\n'b']", "['a'\r'b']", '["\\ud83d"]', '["shoe", "\\udc00"]'),
    *("[" * LONG, str(["x" * 1001]), "[\x00]", "(1, 2)", "('a', 5)"),
]
WRONG_PROMPTS = [
    *({"input_box": text} for text in WRONG_BOXES),
    *({"input_point": text} for text in WRONG_POINTS),
    *({"input_point_label": text, "input_point": "[[5, 5]]"} for text in WRONG_POINT_LABELS),
    *({"input_box_label": text, "input_box": "[[5, 5, 40, 50]]"} for text in WRONG_POINT_LABELS),
    *({"input_text": text} for text in WRONG_TEXTS),
]
WRONG_VALUES = [
    *({"input_size_percent": text} for text in ("0", "101", "-5", "12.5", "", "x", "nan", "inf", "1e9", "50 %")),
    *({"confidence_threshold": text} for text in ("-0.1", "1.1", "", "x", "nan", "inf", "0,5", "[0.5]")),
    *({"iou_threshold": text} for text in ("-0.1", "1.1", "", "x", "nan", "inf", "0,5")),
    *({"tile_size": text} for text in ("-1", "63", "64.5", "", "x", "nan", "inf", "6 72")),
    *({"tile_overlap": text} for text in ("-0.1", "0.95", "", "x", "nan", "inf", "0,2", "20 %")),
    *({"points_per_side": text} for text in ("-1", "65", "3.5", "", "x", "nan", "inf", "8x8")),
    *({"predicted_iou_threshold": text} for text in ("-0.1", "1.1", "", "x", "nan", "inf", "0,5")),
    *({"stability_score_threshold": text} for text in ("-0.1", "1.1", "", "x", "nan", "inf", "0,5")),
    *({"min_region_percent": text} for text in ("-0.1", "100.1", "", "x", "nan", "inf", "0,5", "5 %")),
    *({"model_input_size": text} for text in ("-14", "1", "111", "2017", "504.5", "", "x", "nan", "1e9")),
    *({name: text} for name in ("cuda", "multimask_output", "instance_output") for text in ("", "2", "maybe", "None")),
]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def plugin(small_checkpoint):
    return Plugin(model_weight_file=small_checkpoint, cuda=False)


def digest(outputs):
    *masks, objects = outputs
    return [mask.get_mask().tobytes() for mask in masks], [found.mask.tobytes() for found in objects.get_objects()]


@pytest.fixture(scope="module")
def wanted(plugin, image):
    return digest(plugin.segment(image, **GOOD))


@pytest.fixture
def is_refused(plugin, image, wanted):
    """Return a function that checks that a run is refused and leaves no results, its own or those of the run before."""

    def check(picture=image, **parameters):
        with pytest.raises(RuntimeError) as caught:
            plugin.segment(picture, **parameters)
        message = str(caught.value)
        outputs = plugin.algorithm.get_outputs()[1:]
        assert [output.is_data_available() for output in outputs] == [False]
        assert digest(plugin.segment(image, **GOOD)) == wanted
        assert "\n" not in message
        assert len(message) < 700
        return message

    return check


def test_there_are_many_wrong_prompts_and_values():
    assert len(WRONG_PROMPTS) + len(WRONG_VALUES) > 150


@pytest.mark.parametrize("number", range(len(WRONG_PROMPTS)))
def test_a_wrong_prompt_is_refused(is_refused, number):
    prompt = WRONG_PROMPTS[number]
    parameter, text = next(iter(prompt.items()))
    message = is_refused(**prompt)
    assert re.match(rf"{parameter} = ['\"]", message)
    # the value itself or, for several boxes or points, the invalid one
    assert quote(text[:40])[1:-1] in message or re.search(r"\[[-0-9.e+, ]+\]", message)
    assert "expected" in message


@pytest.mark.parametrize("number", range(len(WRONG_VALUES)))
def test_a_wrong_value_changes_nothing(plugin, image, wanted, number):
    ((parameter, text),) = WRONG_VALUES[number].items()
    before = plugin.algorithm.get_parameters()
    with pytest.raises(RuntimeError, match=rf"^{parameter} = '{re.escape(text)}': expected ") as caught:
        plugin.segment(image, input_text="hat", **{parameter: text})
    assert "\n" not in str(caught.value)
    assert plugin.algorithm.get_parameters() == before
    assert digest(plugin.segment(image, **GOOD)) == wanted


IMAGES = {
    "NaN": np.full((6, 8, 3), np.nan, np.float32),
    "infinity": np.where(np.arange(48).reshape(6, 8) == 40, np.inf, 0.5),
    "no rows": np.zeros((0, 8, 3), np.uint8),
    "no columns": np.zeros((6, 0, 3), np.uint8),
    "five channels": np.zeros((6, 8, 5), np.uint8),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("prompt", [{"input_text": "shoe"}, {"input_box": [1, 1, 5, 5]}])
def test_a_wrong_image_is_refused(plugin, image, wanted, kind, prompt):
    with pytest.raises(RuntimeError, match="image|Image"):
        plugin.segment(IMAGES[kind], **prompt)
    assert not any(output.is_data_available() for output in plugin.algorithm.get_outputs()[1:])
    assert digest(plugin.segment(image, **GOOD)) == wanted


def variants(image):
    """Yield the same pixels with other memory layouts and dtypes."""
    yield np.asfortranarray(image)
    yield np.pad(image, ((2, 2), (3, 3), (0, 0)))[2:-2, 3:-3]
    yield image[::-1][::-1]
    read_only = image.copy()
    read_only.setflags(write=False)
    yield read_only
    yield image.astype(np.float64)
    yield image.astype(np.uint16) * 257
    yield np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])


def test_the_same_pixels_in_any_layout_give_the_same_mask(plugin, image, wanted):
    for variant in variants(image):
        before = variant.copy()
        assert digest(plugin.segment(variant, **GOOD)) == wanted
        assert np.array_equal(variant, before)


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (3, 7)])
def test_images_of_extreme_shapes_are_segmented(plugin, shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    for prompt in ({"input_text": "shoe"}, {"input_point": [[0, 0]]}, {"input_box": [0, 0, shape[1], shape[0]]}):
        (mask,) = plugin.segment(picture, **prompt)
        assert mask.get_mask().shape == shape


def test_an_image_of_100_megapixels_is_segmented(plugin):
    picture = np.zeros((10_000, 10_000, 3), np.uint8)
    picture[2000:5000, 3000:7000] = 200
    mask, objects = plugin.segment(picture, input_box=[3000, 2000, 7000, 5000], instance_output=True)
    assert mask.get_mask().shape == (10_000, 10_000)
    assert objects.get_object_count() == 1


def test_thousands_of_boxes_are_segmented(plugin, image, small_checkpoint):
    boxes = [[x % 40, x % 30, x % 40 + 20, x % 30 + 20] for x in range(5000)]
    predictor = Predictor(shared_model(small_checkpoint, torch.device("cpu")))
    segments = predictor.segment(predictor.encode_image(image), GeometricPrompt(boxes=tuple(map(tuple, boxes))))
    assert len(segments) == 5000
    assert np.array_equal(segments[0].mask, segments[4920].mask)  # the same box

    outputs = plugin.segment(image, input_box=boxes[:300])  # Ikomia takes 9 ms for each new output
    assert len(outputs) == 300
    assert np.array_equal(outputs[299].get_mask(), segments[299].mask)
    assert len(plugin.segment(image, input_point=[[5, 5]])) == 1


ODD_PHRASES = [
    "🙂",
    "shoe\x00hat",
    "ሰላም",
    "<b>shoe</b>",
    "'; drop table",
    "\u202eeohs",
    "shoe {0}",
    "%s %d",
    "a" * 1000,
]


@pytest.mark.parametrize("phrase", ODD_PHRASES, ids=ascii)
def test_unusual_phrases_are_accepted(plugin, image, phrase):
    (mask,) = plugin.segment(image, input_text=phrase, confidence_threshold=0)
    assert mask.get_class_names()[1].endswith(" 1")
    assert mask.get_class_names()[1].startswith(phrase.split("\x00")[0])
    plugin.segment(image, confidence_threshold=0.5)


def test_results_do_not_depend_on_the_random_seed(plugin, image):
    prompts = [{"input_text": "shoe"}, {"input_point": [[5, 5]], "multimask_output": True}, GOOD]
    results = []
    for seed, prompt in itertools.product((1, 2), prompts):
        torch.manual_seed(seed)
        plugin.forget_answers(image)
        results.append([output.description for output in plugin.segment(image, **prompt)])
    assert results[:3] == results[3:]


def spoilt_tensors(spoil):
    """Return a function that writes the good checkpoint after ``spoil`` has changed its dictionary of tensors."""

    def write(path, good):
        contents = torch.load(good, weights_only=True)
        spoil(contents["model"])
        torch.save(contents, path)

    return write


def reshape_one(tensors):
    name = next(name for name in tensors if "bias" in name)
    tensors[name] = torch.zeros(len(tensors[name]) + 1)


def put_nan(tensors):
    for name in tensors:
        if "mask_decoder.transformer.layers.0" in name:
            tensors[name] = torch.full_like(tensors[name], float("nan"))


def only_the_start(share):
    return lambda path, good: path.write_bytes(good.read_bytes()[: int(share * good.stat().st_size)])


CHECKPOINTS = {
    "missing": lambda path, good: None,
    "a folder": lambda path, good: path.mkdir(),
    "a link to nothing": lambda path, good: path.symlink_to("nowhere"),
    **{
        kind: lambda path, good, data=data: path.write_bytes(data)
        for kind, data in {
            "empty": b"",
            "a text": b"these are no weights",
            "a picture": b"\x89PNG\r\n\x1a\n" + bytes(1000),
            "the start of a zip": b"PK\x03\x04" + bytes(1000),
            "a web page": b"<!DOCTYPE html><html><body>Log in</body></html>",
        }.items()
    },
    **{f"only {share:.1%} of it": only_the_start(share) for share in (0.001, 0.3, 0.9, 0.999)},
    "code in a pickle": lambda path, good: path.write_bytes(pickle.dumps(Intruder(path.with_name("evidence")))),
    "code in torch's format": lambda path, good: torch.save({"model": Intruder(path.with_name("evidence"))}, path),
    "numbers": lambda path, good: torch.save([1, 2, 3], path),
    "another network": lambda path, good: torch.save({"layer1.weight": torch.zeros(3)}, path),
    "a part of the tensors": spoilt_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors)[::7]]),
    "a tensor of another shape": spoilt_tensors(reshape_one),
    "NaN among the weights": spoilt_tensors(put_nan),
    "one tensor of SAM 3.1": lambda path, good: torch.save(
        {"tracker.model.interactive_sam.weight": torch.zeros(3)}, path
    ),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_wrong_checkpoint_is_refused(image, small_checkpoint, tmp_path, kind):
    plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
    good = digest(plugin.segment(image, **GOOD))
    path = tmp_path / "wrong.pt"
    CHECKPOINTS[kind](path, small_checkpoint)
    with pytest.raises(RuntimeError) as caught:
        plugin.segment(image, **GOOD, model_weight_file=path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.startswith("model_weight_file = ")
    assert not (tmp_path / "evidence").exists()
    assert not any(output.is_data_available() for output in plugin.algorithm.get_outputs()[1:])
    assert digest(plugin.segment(image, **GOOD, model_weight_file=small_checkpoint)) == good


def test_a_checkpoint_without_read_permission_is_refused(image, small_checkpoint, tmp_path):
    plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
    good = digest(plugin.segment(image, **GOOD))
    path = tmp_path / "locked.pt"
    path.write_bytes(small_checkpoint.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user can read every file, like root on Linux or any user on Windows")
    with pytest.raises(RuntimeError, match="^model_weight_file = .*locked.pt.*Permission denied"):
        plugin.segment(image, **GOOD, model_weight_file=path)
    assert digest(plugin.segment(image, **GOOD, model_weight_file=small_checkpoint)) == good
