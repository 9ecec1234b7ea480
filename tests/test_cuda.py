"""On CUDA, every prompt has the CPU's answer, and the CPU rarely waits for the device.

The tests run on the machine's GPU if there is one (``pytest -m cuda`` runs only these), else on emulated ones.
"""

import collections
import contextlib
import dataclasses
import functools
import sys
import warnings

import numpy as np
import pytest
import torch

from sam3_engine import ConceptPrompt, EverythingPrompt, GeometricPrompt, Options
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.regions import remove_small_regions
from sam3_engine.segments import areas_of, label_map, masks_of
from testbed.plugin import Plugin
from testbed.scenes import draw_scene, iou
from tests.support import emulated_cuda as emulation

pytestmark = pytest.mark.cuda

LEAST_AGREEMENT = 0.998  # of the pixels of a mask; a shape covers about 2 % of the scene
LEAST_IOU = 0.9  # of small masks: a pixel or two differ
MOST_SCORE_DIFFERENCE = 0.01

WIDTH, HEIGHT = 480, 360
SCENE = draw_scene(np.random.default_rng(7946), WIDTH, HEIGHT)
BOXES = tuple(shape.whole.box for shape in SCENE.shapes)
CENTERS = tuple(((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in BOXES)
TWENTY_BOXES = tuple(BOXES[k % len(BOXES)] for k in range(20))

PROMPTS = {
    "phrase": (ConceptPrompt(("red circle",)), Options()),
    "two phrases, no duplicates": (
        ConceptPrompt(("circle", "red circle", "star")),
        Options(confidence_threshold=0.1, iou_threshold=0.5),
    ),
    "example boxes": (ConceptPrompt((), BOXES[:2], (1, 0)), Options(confidence_threshold=0.3)),
    "phrase and example box": (ConceptPrompt(("circle",), BOXES[:1], (0,)), Options(confidence_threshold=0.3)),
    "point": (GeometricPrompt(points=CENTERS[:1], point_labels=(1,)), Options()),
    "points, three candidates": (GeometricPrompt(points=CENTERS[:2], point_labels=(1, 0)), Options(multimask=True)),
    "box": (GeometricPrompt(boxes=BOXES[:1]), Options()),
    "box and point, three candidates": (
        GeometricPrompt(boxes=BOXES[1:2], points=CENTERS[1:2], point_labels=(0,)),
        Options(multimask=True),
    ),
    "20 boxes, three candidates": (GeometricPrompt(boxes=TWENTY_BOXES), Options(multimask=True)),
    "boxes, small regions removed": (GeometricPrompt(boxes=BOXES), Options(multimask=True, min_region_percent=10)),
}
IN_TILES = {
    "two phrases in tiles": (ConceptPrompt(("circle", "star")), Options(confidence_threshold=0.3, tile_size=300)),
    "example box in tiles": (ConceptPrompt((), BOXES[:1], (1,)), Options(confidence_threshold=0.3, tile_size=300)),
    "boxes in windows": (GeometricPrompt(boxes=BOXES), Options(multimask=True, tile_size=200)),
}
INPUT_SIZES = (0, 224)  # the checkpoint's own, and a smaller one
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cuda():
    """Provide CUDA during the tests of this file; the current device is 0."""
    with contextlib.ExitStack() as exits:
        if not torch.cuda.is_available():
            if reason := emulation.unavailable():
                pytest.skip(f"CUDA cannot be emulated: {reason}")
            exits.enter_context(emulation.EmulatedCuda())
        yield


@pytest.fixture(params=[0, 1], ids=["the current device", "another device"])
def device(request):
    if request.param >= torch.cuda.device_count():
        pytest.skip("there is one GPU")
    return torch.device("cuda", request.param)


@pytest.fixture(scope="module")
def checkpoint(shapes_checkpoint, tmp_path_factory):
    """Write the shapes network with holes filled, as in SAM 3."""
    contents = torch.load(shapes_checkpoint, weights_only=True)
    contents["architecture"]["fill_hole_area"] = 400
    path = tmp_path_factory.mktemp("weights") / "shapes.pt"
    torch.save(contents, path)
    return path


@pytest.fixture(scope="module")
def predictor_on(checkpoint):
    """Return a function of device, precision and input size that returns a predictor."""
    load = functools.cache(lambda device, precision: load_model(checkpoint, device, precision))
    return functools.cache(lambda device, precision, input_size=0: Predictor(load(device, precision), input_size))


@pytest.fixture(scope="module")
def cpu_answer(predictor_on):
    """Return a function of a prompt's name, precision and input size that returns what the CPU answers."""
    return functools.cache(lambda name, *run: answer(predictor_on(CPU, *run), name))


def answer(predictor, name):
    """Return the scores, labels, masks and label map for one of the prompts."""
    prompt, options = {**PROMPTS, **IN_TILES}[name]
    segments = predictor.predict(SCENE.image, prompt, options)
    scores, labels = [segment.score for segment in segments], [segment.label for segment in segments]
    return scores, labels, list(masks_of(segments)), label_map(segments, WIDTH, HEIGHT)


@pytest.mark.parametrize("input_size", INPUT_SIZES)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_has_the_cpus_answer(predictor_on, cpu_answer, device, name, precision, input_size):
    check_answer(predictor_on, cpu_answer, device, name, precision, input_size)


@pytest.mark.parametrize("name", IN_TILES)
def test_tiles_have_the_cpus_answer(predictor_on, cpu_answer, name):
    last = torch.device("cuda", torch.cuda.device_count() - 1)  # not the current one, if there are several
    check_answer(predictor_on, cpu_answer, last, name, torch.bfloat16, 112)


@pytest.mark.parametrize("tile_size", [0, 300])
def test_everything_has_the_cpus_answer(predictor_on, tile_size):
    """Masks at a threshold may be on the other side of it, so a few may differ."""
    options = Options(stability_score_threshold=0.75, tile_size=tile_size)
    found, wanted = (
        list(masks_of(predictor_on(device, torch.bfloat16, 0).predict(SCENE.image, EverythingPrompt(6), options)))
        for device in (torch.device("cuda", 0), CPU)
    )
    assert len(wanted) >= 4
    for masks, others in ((found, wanted), (wanted, found)):
        agreeing = sum(max(iou(mask > 0, other > 0) for other in others) > LEAST_IOU for mask in masks)
        assert agreeing >= 0.8 * len(masks)


def check_answer(predictor_on, cpu_answer, device, name, precision, input_size):
    wanted_scores, wanted_labels, wanted_masks, wanted_map = cpu_answer(name, precision, input_size)
    assert len(wanted_scores) > 0
    scores, labels, masks, painted = answer(predictor_on(device, precision, input_size), name)
    assert labels == wanted_labels
    np.testing.assert_allclose(scores, wanted_scores, atol=MOST_SCORE_DIFFERENCE)
    for mask, wanted in zip(masks, wanted_masks, strict=True):
        assert np.mean(mask == wanted) > LEAST_AGREEMENT
        assert iou(mask > 0, wanted > 0) > LEAST_IOU
    assert np.mean(painted == wanted_map) > LEAST_AGREEMENT


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_a_model_is_on_its_device_and_in_its_precision(predictor_on, device, precision):
    predictor = predictor_on(device, precision)
    network = predictor.model.network
    assert {tensor.device for tensor in (*network.parameters(), *network.buffers())} == {device}
    encoders = (network.backbone.vision_backbone.trunk, network.backbone.language_backbone)
    linear = [layer for encoder in encoders for layer in encoder.modules() if isinstance(layer, torch.nn.Linear)]
    assert {layer.weight.dtype for layer in linear} == {precision}
    features = predictor.encode_image(SCENE.image).features
    assert {level.device for level in (*features["backbone_fpn"], *features["vision_pos_enc"])} == {device}


def test_a_model_on_another_device_leaves_the_current_one_alone(checkpoint):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)
    predictor = Predictor(load_model(checkpoint, torch.device("cuda", 1)))
    for name in PROMPTS:
        answer(predictor, name)
    assert torch.cuda.max_memory_allocated(0) == before
    assert torch.cuda.current_device() == 0


def test_the_plugin_has_the_cpus_answer(checkpoint):
    prompts = (
        {"input_text": "circle"},
        {"input_box": [BOXES[0], BOXES[2]], "multimask_output": True},
        {"input_point": [CENTERS[0]]},
    )
    answers = {}
    for cuda in (False, True):
        plugin = Plugin(model_weight_file=checkpoint, cuda=cuda, confidence_threshold=0.3)
        answers[cuda] = [
            [output.get_mask().copy() for output in plugin.segment(SCENE.image, **prompt)] for prompt in prompts
        ]
        assert plugin.algorithm._predictor.model.device.type == ("cuda" if cuda else "cpu")
    for wanted, found in zip(answers[False], answers[True], strict=True):
        assert [mask.max() for mask in found] == [mask.max() for mask in wanted]
        # the numbers of two instances may change places: they follow the scores, and the CPU may run in float32
        assert all(np.mean((a > 0) == (b > 0)) > LEAST_AGREEMENT for a, b in zip(found, wanted, strict=True))


# --- synchronizations: every one makes the CPU wait for all that the device still has to do ---


@pytest.fixture
def predictor(predictor_on):
    return predictor_on(torch.device("cuda", 0), torch.bfloat16)


@pytest.fixture
def embedding(predictor):
    return predictor.encode_image(SCENE.image)


@pytest.fixture
def segments(predictor, embedding):
    """Return as many segments as the network has queries."""
    return predictor.segment(embedding, ConceptPrompt(("shape",)), Options(confidence_threshold=0))


def test_encoding_waits_only_to_copy_the_image_and_the_constants_that_normalize_it(predictor):
    image = SCENE.image[::-1]  # not encoded yet
    assert synchronizations(lambda: predictor.encode_image(image)) == {"sam3": 3}


@pytest.mark.parametrize("confidence_threshold", [0, 1], ids=["all instances", "no instance"])
def test_a_phrase_waits_a_fixed_number_of_times(predictor, embedding, confidence_threshold):
    options = Options(confidence_threshold=confidence_threshold)
    prompt = ConceptPrompt((f"a phrase that is new, for {confidence_threshold}",))
    decoder_layers = predictor.model.architecture.decoder_layers
    # one in the text encoder, one in the encoder, seven in each layer of the decoder
    expected = {"sam3": 2 + 7 * decoder_layers, "sam3_engine": 4}
    assert synchronizations(lambda: predictor.segment(embedding, prompt, options)) == expected


def test_another_threshold_waits_for_nothing(predictor, embedding, segments):
    some = Options(confidence_threshold=float(np.median([segment.score for segment in segments])))
    assert synchronizations(lambda: predictor.segment(embedding, ConceptPrompt(("shape",)), some)) == {}


@pytest.mark.parametrize("count", [1, 3])
def test_an_example_box_waits_for_its_two_tensors(predictor, embedding, count):
    names = [f"phrase {count}, {other} boxes" for other in (0, count)]
    plain = ConceptPrompt(names[:1])
    with_boxes = ConceptPrompt(names[1:], BOXES[:count], (1,) * count)
    expected = collections.Counter(synchronizations(lambda: predictor.segment(embedding, plain)))
    expected["sam3_engine"] += 2 * count
    assert synchronizations(lambda: predictor.segment(embedding, with_boxes)) == expected


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize(("count", "passes"), [(1, 1), (16, 1), (17, 2), (64, 4)])
def test_boxes_wait_as_often_as_there_are_passes(predictor, embedding, count, passes, multimask):
    prompt = GeometricPrompt(boxes=tuple(BOXES[k % len(BOXES)] for k in range(count)))
    found = synchronizations(lambda: predictor.segment(embedding, prompt, Options(multimask=multimask)))
    assert found == {"sam3": 5 * passes, "sam3_engine": passes}


def test_a_point_waits_as_often_as_a_box(predictor, embedding):
    prompt = GeometricPrompt(points=CENTERS[:1], point_labels=(1,))
    assert synchronizations(lambda: predictor.segment(embedding, prompt)) == {"sam3": 5, "sam3_engine": 1}


@pytest.mark.parametrize("count", [1, None], ids=["one segment", "all segments"])
def test_painting_waits_for_the_bounds_and_the_result(segments, count):
    some = segments[:count]
    assert synchronizations(lambda: label_map(some, WIDTH, HEIGHT)) == {"sam3_engine": 2}
    assert synchronizations(lambda: list(masks_of(some))) == {"sam3_engine": 2}


@pytest.mark.parametrize("count", [1, None], ids=["one segment", "all segments"])
def test_measuring_areas_waits_for_the_bounds_and_the_areas(segments, count):
    assert synchronizations(lambda: areas_of(segments[:count])) == {"sam3_engine": 2}


def test_duplicates_wait_once_however_many_there_are(predictor, embedding, segments):
    options = Options(confidence_threshold=0, iou_threshold=0.5)
    assert 2 < len(predictor.segment(embedding, ConceptPrompt(("shape",)), options)) < len(segments)
    found = synchronizations(lambda: predictor.segment(embedding, ConceptPrompt(("shape",)), options))
    assert found == {"sam3_engine": 1}


@pytest.mark.parametrize("count", [1, None], ids=["one segment", "all segments"])
def test_removing_small_regions_waits_for_the_masks_and_the_changes(segments, count):
    spotted = [dataclasses.replace(one, mask_logits=with_a_spot(one.mask_logits)) for one in segments[:count]]
    cleaned = []
    found = synchronizations(lambda: cleaned.extend(remove_small_regions(spotted, 20)))
    assert found == {"sam3_engine": 2}
    assert [int((one.mask_logits > 0).sum()) for one in cleaned] == [36] * len(spotted)


def with_a_spot(logits):
    """Return the logits of a square mask of 36 pixels with a stray one."""
    spotted = torch.full_like(logits, -1)
    spotted[2:8, 2:8] = spotted[-1, -1] = 1
    return spotted


def synchronizations(call):
    """Return how often the CPU waits for a device during ``call()``, by the package whose code causes it."""
    found = collections.Counter()

    def note(message, *_, **__):
        if emulation.SYNCHRONIZES in str(message):
            found[innermost_package()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def innermost_package():
    """Return which of sam3 and sam3_engine the running code is in, or was called from."""
    frame = sys._getframe()
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in ("sam3", "sam3_engine"):
            return package
        frame = frame.f_back
    return "neither"
