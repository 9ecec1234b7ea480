"""Faults around the network end in a clear error, and the plugin still works afterwards."""

import dataclasses
import multiprocessing
import os
import sys
import threading

import numpy as np
import pytest
import torch

from sam3_engine import interpolation
from sam3_engine.errors import CheckpointError, DeviceMemoryError
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.segments import label_map, masks_of
from sam3_engine.shared_models import shared_model
from testbed.plugin import Plugin

CPU = torch.device("cpu")
PROMPTS = {
    "phrase": ConceptPrompt(("shoe",)),
    "examples": ConceptPrompt(boxes=((60.0, 80.0, 300.0, 330.0),), box_labels=(1,)),
    "box": GeometricPrompt(boxes=((60.0, 80.0, 300.0, 330.0),)),
}
OUT_OF_MEMORY = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."
    ),
    "numpy": MemoryError("Unable to allocate 2.00 GiB for an array"),
}


@pytest.fixture
def predictor(small_checkpoint):
    return Predictor(load_model(small_checkpoint, CPU))


def answer(predictor, prompt, image):
    found = predictor.segment(predictor.encode_image(image), prompt, Options(confidence_threshold=0))
    return [(segment.score, segment.mask.tobytes()) for segment in found]


def failing(times, error, original):
    """Wrap ``original`` so that its first calls raise ``error``."""
    calls = []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) <= times:
            raise error
        return original(*arguments, **options)

    call.calls = calls
    return call


@pytest.fixture
def places(predictor):
    """The places that raise errors: the encoder and the two heads."""
    network = predictor.model.network
    return {
        "encoder": (network.backbone, "forward_image"),
        "detector": (network, "forward_grounding"),
        "mask decoder": (network.inst_interactive_predictor.model.sam_mask_decoder, "forward"),
    }


# --- memory


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
@pytest.mark.parametrize(("place", "prompt"), [("encoder", "box"), ("detector", "phrase"), ("mask decoder", "box")])
def test_if_memory_runs_out_cached_images_are_dropped(
    predictor, places, photograph, monkeypatch, place, prompt, device
):
    wanted = answer(predictor, PROMPTS[prompt], photograph)
    others = [photograph[::-1], photograph[:, ::-1]]
    for image in others:
        predictor.encode_image(image)
    part, method = places[place]
    call = failing(1, OUT_OF_MEMORY[device], getattr(part, method))
    with monkeypatch.context() as patched:
        patched.setattr(part, method, call)
        assert answer(predictor, PROMPTS[prompt], photograph) == wanted
    assert len(call.calls) == 2
    encoded = failing(0, None, predictor.model.network.backbone.forward_image)
    monkeypatch.setattr(predictor.model.network.backbone, "forward_image", encoded)
    predictor.encode_image(others[1])
    assert len(encoded.calls) == 1  # it had been dropped


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
@pytest.mark.parametrize(("place", "prompt"), [("encoder", "box"), ("detector", "phrase"), ("mask decoder", "box")])
def test_if_memory_runs_out_again_the_error_says_how_to_use_less(
    predictor, places, photograph, monkeypatch, place, prompt, device
):
    wanted = answer(predictor, PROMPTS[prompt], photograph)
    predictor.model.embeddings.clear()
    part, method = places[place]
    call = failing(99, OUT_OF_MEMORY[device], getattr(part, method))
    with monkeypatch.context() as patched:
        patched.setattr(part, method, call)
        with pytest.raises(DeviceMemoryError, match="Not enough memory on cpu. Use a smaller model input size"):
            answer(predictor, PROMPTS[prompt], photograph)
    assert len(call.calls) == 2
    assert answer(predictor, PROMPTS[prompt], photograph) == wanted


PAINTINGS = {
    "mask": lambda segments: segments[0].mask.tobytes(),
    "box": lambda segments: dataclasses.replace(segments[0], detected_box=None).box,
    "masks_of": lambda segments: [mask.tobytes() for mask in masks_of(segments)],
    "label_map": lambda segments: label_map(segments, segments[0].width, segments[0].height).tobytes(),
}


def paint_everything(segments):
    return [paint(segments) for paint in PAINTINGS.values()]


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
@pytest.mark.parametrize("painting", PAINTINGS)
def test_if_memory_runs_out_while_painting_cached_images_are_dropped(
    predictor, photograph, monkeypatch, painting, device
):
    segments = predictor.predict(photograph, PROMPTS["phrase"], Options(confidence_threshold=0))
    budget, paint = predictor.model.budget, PAINTINGS[painting]
    wanted = paint(segments)
    for times in (1, 2):
        assert predictor.encode_image(photograph)
        assert budget.used > 0
        call = failing(times, OUT_OF_MEMORY[device], interpolation._interpolate)
        with monkeypatch.context() as patched:
            patched.setattr(interpolation, "_interpolate", call)
            if times == 1:
                assert paint(segments) == wanted
            else:
                with pytest.raises(DeviceMemoryError, match="Not enough memory on cpu"):
                    paint(segments)
        assert budget.used == 0
    assert paint(segments) == wanted


EVERYTHING = (
    PROMPTS["examples"],
    Options(confidence_threshold=0, iou_threshold=0.9, min_region_percent=5),
)  # the image encoder, the text encoder, the detector, small regions, duplicates


def run_everything(predictor, image):
    """Return the answers of both heads and all that is painted from them, with nothing cached before."""
    predictor.model.budget.clear()
    found = predictor.predict(image, *EVERYTHING)
    objects = predictor.predict(image, PROMPTS["box"], Options(multimask=True, min_region_percent=5))
    return [[segment.score for segment in segments] + paint_everything(segments) for segments in (found, objects)]


@pytest.fixture
def small_image(photograph):
    """Return a part of the photograph whose masks are smaller than what is cached of it."""
    return photograph[100:200, 200:300]


def test_an_operation_that_runs_out_of_gpu_memory_is_retried_wherever_it_is(
    emulated_cuda, small_checkpoint, small_image
):
    predictor = Predictor(load_model(small_checkpoint, torch.device("cuda", 1)))
    before = emulated_cuda.operations
    wanted = run_everything(predictor, small_image)
    operations = emulated_cuda.operations - before
    for part in range(7):
        place = operations * part // 7
        with emulated_cuda.failing(OUT_OF_MEMORY["GPU"], after=place):
            assert run_everything(predictor, small_image) == wanted
        with (
            emulated_cuda.failing(OUT_OF_MEMORY["GPU"], after=place, times=2),  # the second one in the retry
            pytest.raises(DeviceMemoryError, match="Not enough memory on cuda:1"),
        ):
            run_everything(predictor, small_image)


def test_a_full_gpu_has_room_for_a_run_when_the_caches_are_cleared(emulated_cuda, small_checkpoint, small_image):
    gpu, device = emulated_cuda.gpus[0], torch.device("cuda", 0)
    prompt, options = PROMPTS["phrase"], Options(confidence_threshold=0)
    predictor = Predictor(load_model(small_checkpoint, device))
    other = Predictor(load_model(small_checkpoint, device))
    wanted = paint_everything(predictor.predict(small_image, prompt, options))

    def fill_caches():
        for image in (small_image[::-1], small_image[:, ::-1]):
            other.predict(image, prompt, options)

    fill_caches()  # the networks keep tables of their own from their first run on
    predictor.model.budget.clear()
    torch.cuda.reset_peak_memory_stats(device)
    assert paint_everything(predictor.predict(small_image, prompt, options)) == wanted
    most = torch.cuda.max_memory_allocated(device)  # enough for this run, with nothing of another
    fill_caches()
    gpu.memory = most
    assert paint_everything(predictor.predict(small_image, prompt, options)) == wanted

    gpu.memory = 2**34
    found = predictor.predict(small_image, prompt, options)
    fill_caches()
    gpu.memory = emulated_cuda.allocated(0)  # for one more byte, something must go
    assert paint_everything(found) == wanted

    del found
    gpu.memory = emulated_cuda.allocated(0) + 10_000
    with pytest.raises(DeviceMemoryError, match="Not enough memory on cuda:0"):
        predictor.predict(small_image, prompt, options)
    assert emulated_cuda.allocated(0) <= gpu.memory  # nothing is left of the attempts
    gpu.memory = 2**34
    assert paint_everything(predictor.predict(small_image, prompt, options)) == wanted


def test_the_second_attempt_caches_nothing(predictor, photograph, monkeypatch):
    """What the first phrases leave in the caches would take the memory of the last again."""
    prompt, options = ConceptPrompt(("shoe", "hat", "coat")), Options(confidence_threshold=0)
    wanted = paint_everything(predictor.predict(photograph, prompt, options))
    budget, network = predictor.model.budget, predictor.model.network
    kept = budget.used
    budget.clear()
    embedding = predictor.encode_image(photograph)
    call = failing(1, OUT_OF_MEMORY["GPU"], network.forward_grounding)
    with monkeypatch.context() as patched:
        patched.setattr(network, "forward_grounding", call)
        assert paint_everything(predictor.segment(embedding, prompt, options)) == wanted
    assert len(call.calls) == 4
    assert budget.used == 0
    assert paint_everything(predictor.predict(photograph, prompt, options)) == wanted
    assert budget.used == kept


def test_if_a_machine_runs_out_of_memory_the_gpu_is_not_blamed(emulated_cuda, small_checkpoint, small_image):
    predictor = Predictor(load_model(small_checkpoint, torch.device("cuda", 0)))
    with (
        emulated_cuda.failing(OUT_OF_MEMORY["CPU"], times=2),
        pytest.raises(DeviceMemoryError, match="Not enough memory on cpu"),
    ):
        predictor.predict(small_image, PROMPTS["box"])


def test_other_errors_are_not_retried(predictor, places, photograph, monkeypatch):
    part, method = places["encoder"]
    call = failing(99, RuntimeError("something else"), getattr(part, method))
    monkeypatch.setattr(part, method, call)
    with pytest.raises(RuntimeError, match="something else"):
        predictor.encode_image(photograph)
    assert len(call.calls) == 1


# --- interruptions and errors within the network


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), ZeroDivisionError("within the network")])
@pytest.mark.parametrize(("place", "prompt"), [("encoder", "box"), ("detector", "examples"), ("mask decoder", "box")])
def test_an_interrupted_run_leaves_the_model_usable_by_every_thread(
    predictor, places, photograph, monkeypatch, place, prompt, error
):
    wanted = answer(predictor, PROMPTS[prompt], photograph)
    predictor.model.embeddings.clear()
    part, method = places[place]
    with monkeypatch.context() as patched:
        patched.setattr(part, method, failing(99, error, getattr(part, method)))
        with pytest.raises(type(error)):
            answer(predictor, PROMPTS[prompt], photograph)
    found = []
    thread = threading.Thread(target=lambda: found.append(answer(predictor, PROMPTS[prompt], photograph)))
    thread.start()
    thread.join(60)
    assert found == [wanted]


def test_an_interrupted_run_of_the_plugin_leaves_no_mask(small_checkpoint, photograph, monkeypatch):
    plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
    boxes = [[60, 80, 300, 330], [5, 5, 635, 420]]
    wanted = [output.get_mask() for output in plugin.segment(photograph, input_box=boxes)]
    outputs = plugin.algorithm._outputs
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "_fill", failing(1, KeyboardInterrupt(), outputs._fill))
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            plugin.segment(photograph, input_box=boxes, instance_output=True)
    assert not any(output.is_data_available() for output in plugin.algorithm.get_outputs()[1:])
    again = [output.get_mask() for output in plugin.segment(photograph, input_box=boxes)]
    assert all(np.array_equal(mask, one) for mask, one in zip(again, wanted, strict=True))


# --- invalid weights


@pytest.mark.parametrize(
    ("tensor", "prompts"),
    [
        ("detector.backbone.vision_backbone.trunk.patch_embed.proj.weight", ["phrase", "examples", "box"]),
        ("detector.backbone.language_backbone.resizer.weight", ["phrase"]),
        ("detector.geometry_encoder.label_embed.weight", ["examples"]),
        ("tracker.sam_prompt_encoder.point_embeddings.2.weight", ["box"]),
        ("tracker.sam_mask_decoder.iou_prediction_head.layers.2.bias", ["box"]),
    ],
)
def test_nan_in_the_weights_is_an_error_not_an_empty_mask(small_checkpoint, photograph, tmp_path, tensor, prompts):
    contents = torch.load(small_checkpoint, weights_only=True)
    spoilt = contents["model"][tensor].clone()
    spoilt.view(-1)[-1] = torch.nan
    path = tmp_path / "spoilt.pt"
    torch.save({**contents, "model": {**contents["model"], tensor: spoilt}}, path)
    predictor = Predictor(load_model(path, CPU))
    for prompt in prompts:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="spoilt.pt .* returns NaN"):
                answer(predictor, PROMPTS[prompt], photograph)


def test_a_checkpoint_replaced_while_in_use_is_loaded_again(small_checkpoint, photograph, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(small_checkpoint.read_bytes())
    plugin = Plugin(model_weight_file=path, cuda=False)
    before = plugin.segment(photograph, input_point=[[210, 150]])[0].description
    contents = torch.load(small_checkpoint, weights_only=True)
    head = "tracker.sam_mask_decoder.iou_prediction_head.layers.2.bias"
    other = {**contents["model"], head: contents["model"][head] + 0.5}
    torch.save({**contents, "model": other}, tmp_path / "other.pt")
    os.replace(tmp_path / "other.pt", path)  # noqa: PTH105
    after = plugin.segment(photograph[::-1], input_point=[[210, 150]])[0].description
    alone = Plugin(model_weight_file=path, cuda=False).segment(photograph[::-1], input_point=[[210, 150]])
    assert after == alone[0].description
    assert before != after


# --- processes


def _segment_in_child(predictor, checkpoint, image, answers):
    for attempt in (
        lambda: answer(predictor, PROMPTS["box"], image),
        lambda: shared_model(checkpoint, CPU),
    ):
        try:
            attempt()
        except RuntimeError as error:
            answers.put(str(error))
        else:
            answers.put("")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_says_why_it_does_not_work(predictor, small_checkpoint, photograph):
    answer(predictor, PROMPTS["box"], photograph)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_segment_in_child, args=(predictor, small_checkpoint, photograph, answers))
    child.start()
    said = [answers.get(timeout=60) for _ in range(2)]
    child.join(60)
    assert child.exitcode == 0
    assert all("forked" in text and "spawn" in text for text in said)
    assert answer(predictor, PROMPTS["box"], photograph)
