"""The engine without Ikomia: one embedding serves many prompts, and masks stay small until requested."""

import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import pytest
import torch

from sam3_engine.errors import ImageError, PromptError
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from testbed.plugin import REPOSITORY

CPU = torch.device("cpu")
BOX = (60.0, 80.0, 300.0, 330.0)
BOXES = (BOX, (5.0, 5.0, 635.0, 420.0), (350.0, 100.0, 520.0, 390.0))


@pytest.fixture(scope="module")
def predictor(small_checkpoint):
    return Predictor(load_model(small_checkpoint, CPU, torch.float32))


@pytest.fixture(scope="module")
def embedding(predictor, photograph):
    return predictor.encode_image(photograph)


def test_an_embedding_serves_any_number_of_prompts(predictor, embedding, photograph):
    prompts = [GeometricPrompt(boxes=BOXES), ConceptPrompt(("shoe",)), GeometricPrompt(boxes=(BOX,))]
    fresh = [predictor.segment(predictor.encode_image(photograph), prompt)[:1] for prompt in prompts]
    for prompt, wanted in zip([*prompts, *prompts], [*fresh, *fresh], strict=True):
        found = predictor.segment(embedding, prompt)[:1]
        assert [segment.score for segment in found] == [segment.score for segment in wanted]
        assert all(torch.equal(a.mask_logits, b.mask_logits) for a, b in zip(found, wanted, strict=True))


def test_a_prompt_does_not_run_the_image_encoder_again(predictor, embedding, monkeypatch):
    monkeypatch.setattr(predictor.model.network.backbone, "forward_image", None)
    assert predictor.segment(embedding, GeometricPrompt(boxes=BOXES), Options(multimask=True))
    predictor.segment(embedding, ConceptPrompt(("shoe",)))


@pytest.mark.parametrize(
    ("prompt", "argument"),
    [
        (GeometricPrompt(boxes=((0.2, 0.3, 0.6, 0.9),)), "boxes"),
        (GeometricPrompt(points=((0.5, 0.5),), point_labels=(1,)), "points"),
        (ConceptPrompt(boxes=((0, 0, 1, 1),), box_labels=(1,)), "boxes"),
    ],
)
def test_fractions_of_the_image_cause_one_warning_that_names_the_argument(
    predictor, photograph, caplog, prompt, argument
):
    predictor.predict(photograph, prompt)
    assert [message.partition(" = ")[0] for message in caplog.messages if "not fractions" in message] == [argument]


def test_a_pil_image_is_the_same_as_its_array(predictor, embedding, photograph):
    picture = PIL.Image.fromarray(photograph)
    same = predictor.encode_image(picture)
    assert (same.width, same.height) == picture.size == (embedding.width, embedding.height)
    for level, wanted in zip(same.features["backbone_fpn"], embedding.features["backbone_fpn"], strict=True):
        assert torch.equal(level, wanted)
    palette = predictor.encode_image(picture.convert("P"))
    assert (palette.width, palette.height) == picture.size


def test_an_image_without_pixels_is_refused(predictor):
    with pytest.raises(ImageError):
        predictor.encode_image(np.zeros((0, 5, 3), np.uint8))


def test_boxes_beyond_one_pass_keep_their_order(predictor, embedding):
    boxes = tuple((10.0 * k, 5.0, 10.0 * k + 200, 300.0) for k in range(40))
    together = predictor.segment(embedding, GeometricPrompt(boxes=boxes), Options(multimask=True))
    assert len(together) == 3 * len(boxes)
    for k in (0, 15, 16, 31, 39):
        alone = predictor.segment(embedding, GeometricPrompt(boxes=(boxes[k],)), Options(multimask=True))
        found = together[3 * k : 3 * k + 3]
        assert [segment.score for segment in found] == pytest.approx([segment.score for segment in alone], abs=1e-3)
        assert all(np.mean(a.mask == b.mask) > 0.999 for a, b in zip(found, alone, strict=True))


def test_a_box_partly_outside_the_image_is_clipped(predictor, embedding):
    (outside,) = predictor.segment(embedding, GeometricPrompt(boxes=((-50.0, -20.0, 300.0, 330.0),)))
    (clipped,) = predictor.segment(embedding, GeometricPrompt(boxes=((0.0, 0.0, 300.0, 330.0),)))
    assert torch.equal(outside.mask_logits, clipped.mask_logits)
    with pytest.raises(PromptError, match="outside the image"):
        predictor.segment(embedding, GeometricPrompt(boxes=((-50.0, -20.0, -1.0, 330.0),)))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (GeometricPrompt(points=((1e6, 5.0),), point_labels=(1,)), "points = .*: the point is outside the image"),
        (GeometricPrompt(boxes=((1e6, 5.0, 1e7, 9.0),)), "boxes = .*: the box is outside the image"),
    ],
)
def test_a_prompt_outside_the_image_is_refused_before_the_image_encoder_runs(
    predictor, embedding, photograph, monkeypatch, prompt, message
):
    with pytest.raises(PromptError, match=message):
        predictor.segment(embedding, prompt)
    predictor.model.embeddings.clear()
    monkeypatch.setattr(predictor.model.network.backbone, "forward_image", None)
    with pytest.raises(PromptError, match=message):
        predictor.predict(photograph, prompt)


def test_an_embedding_with_another_input_size_is_refused(predictor, photograph):
    other = Predictor(predictor.model, 168)
    for prompt in (ConceptPrompt(("shoe",)), GeometricPrompt(boxes=((60, 80, 300, 330),))):
        with pytest.raises(ValueError, match="made at an input size of 168; this predictor's is 112"):
            predictor.segment(other.encode_image(photograph), prompt)


@pytest.mark.parametrize("percent", [0, -5, 101])
def test_a_size_out_of_range_is_refused(predictor, photograph, percent):
    with pytest.raises(ValueError, match=f"size_percent = {percent}: expected a number from 1 to 100"):
        predictor.encode_image(photograph, percent)


def test_the_threshold_is_exclusive_and_keeps_the_order(predictor, embedding):
    every = predictor.segment(embedding, ConceptPrompt(("shoe",)), Options(confidence_threshold=0.0))
    scores = [segment.score for segment in every]
    assert scores == sorted(scores, reverse=True)
    middle = scores[len(scores) // 2]
    kept = predictor.segment(embedding, ConceptPrompt(("shoe",)), Options(confidence_threshold=middle))
    assert [segment.score for segment in kept] == [score for score in scores if score > middle]
    assert 0 < len(kept) < len(every)


def test_instance_boxes_lie_inside_the_image_and_outline_boxes_bound_their_mask(predictor, embedding):
    for segment in predictor.segment(embedding, ConceptPrompt(("shoe",)), Options(confidence_threshold=0.0)):
        x1, y1, x2, y2 = segment.box
        assert 0 <= x1 < x2 <= embedding.width
        assert 0 <= y1 < y2 <= embedding.height
    (segment,) = predictor.segment(embedding, GeometricPrompt(boxes=(BOX,)))
    x1, y1, x2, y2 = (int(coordinate) for coordinate in segment.box)
    assert segment.mask[y1:y2, x1:x2].sum() == segment.mask.sum() > 0
    for edge in (segment.mask[y1], segment.mask[y2 - 1], segment.mask[:, x1], segment.mask[:, x2 - 1]):
        assert edge.any()


def test_threads_that_share_a_model_get_the_same_results_as_one_thread(predictor, photograph):
    prompts = [GeometricPrompt(boxes=(box,)) for box in BOXES] + [ConceptPrompt(("shoe",))]
    embeddings = [predictor.encode_image(image) for image in (photograph, photograph[:, ::-1])]
    wanted = {
        (e, p): predictor.segment(embeddings[e], prompt, Options(confidence_threshold=0))[0].mask
        for e in range(2)
        for p, prompt in enumerate(prompts)
    }
    wrong = []

    def work(start):
        for step in range(8):
            e, p = (start + step) % 2, (start + 3 * step) % len(prompts)
            found = predictor.segment(embeddings[e], prompts[p], Options(confidence_threshold=0))[0].mask
            if not np.array_equal(found, wanted[e, p]):
                wrong.append((e, p))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


def test_the_engine_runs_without_ikomia(small_checkpoint):
    code = f"""
import sys
sys.modules["ikomia"] = None  # importing it fails
from pathlib import Path
import numpy as np
from sam3_engine.settings import Settings
settings = Settings().updated({{"input_box": "[5, 5, 50, 50]", "model_weight_file": {str(small_checkpoint)!r}}})
predictor = settings.open_predictor(Path("nowhere"))
(segment,) = predictor.predict(np.zeros((60, 80), np.uint16), settings.prompt().fit(80, 60), settings.options)
assert segment.mask.shape == (60, 80)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_network_sizes_are_not_hard_coded():
    files = ("predictor.py", "detector.py", "click_head.py", "segments.py")
    source = " ".join((REPOSITORY / "sam3_engine" / name).read_text() for name in files)
    assert not {"1008", "288", "144", "72"} & set(source.replace("(", " ").replace(",", " ").split())
