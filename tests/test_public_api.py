"""The root of the engine: the names that users import, what importing them loads, and `open_predictor`."""

import inspect
import logging
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import sam3_engine
from sam3_engine import (
    CheckpointError,
    ConceptPrompt,
    DeviceMemoryError,
    GeometricPrompt,
    Options,
    Predictor,
    PromptError,
    Segment,
    WeightFileError,
    WeightsError,
    label_map,
    open_predictor,
)
from sam3_engine.fitting import fit_prompt
from testbed.plugin import REPOSITORY

BOX = GeometricPrompt(boxes=((60, 80, 300, 330),))


def in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_at_the_root_and_documented():
    for name in sam3_engine.__all__:
        assert inspect.getdoc(getattr(sam3_engine, name)), name
    assert set(sam3_engine.__all__) <= set(dir(sam3_engine))
    with pytest.raises(AttributeError, match="has no attribute 'Predictr'"):
        sam3_engine.Predictr  # noqa: B018


def test_importing_the_public_names_loads_neither_torch_nor_sam3():
    light = [name for name in sam3_engine.__all__ if name.endswith(("Prompt", "Error", "Options"))]
    said = in_fresh_process(
        f"import sys; from sam3_engine import {', '.join(light)}, __version__; "
        "ConceptPrompt(('shoe',)); print(sorted({'torch', 'sam3', 'ikomia'} & set(sys.modules)))"
    )
    assert said.strip() == "[]"


def test_the_engine_is_typed():
    assert (REPOSITORY / "sam3_engine" / "py.typed").exists()


def test_the_first_lines_of_the_docs_work(small_checkpoint, photograph):
    predictor = open_predictor(small_checkpoint, cuda=False)
    segments = predictor.predict(photograph, ConceptPrompt(("shoe",)), Options(confidence_threshold=0.2))
    assert segments
    assert all(isinstance(segment, Segment) and segment.score > 0.2 for segment in segments)
    height, width = photograph.shape[:2]
    assert label_map(segments, width, height).shape == segments[0].mask.shape == (height, width)


def test_predict_is_encode_image_and_segment(small_checkpoint, photograph):
    predictor = open_predictor(small_checkpoint, cuda=False)
    options = Options(multimask=True, size_percent=60)
    steps = []
    found = predictor.predict(photograph, BOX, options, on_encoded=lambda: steps.append(1))
    wanted = predictor.segment(predictor.encode_image(photograph, size_percent=60), BOX, options)
    assert [(one.score, one.mask.tobytes()) for one in found] == [(one.score, one.mask.tobytes()) for one in wanted]
    assert len(steps) == 1
    fitted = fit_prompt(BOX, photograph.shape[1], photograph.shape[0])
    assert predictor.predict(photograph, fitted, options)[0].score == found[0].score
    with pytest.raises(ValueError, match="was fitted to an image of 640x427 pixels"):
        predictor.predict(photograph[:100], fitted)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"confidence_threshold": 1.5}, "confidence_threshold = 1.5: expected a number from 0 to 1"),
        ({"iou_threshold": float("nan")}, "iou_threshold = nan: expected a number from 0 to 1"),
        ({"predicted_iou_threshold": -0.1}, "predicted_iou_threshold = -0.1: expected a number from 0 to 1"),
        ({"stability_score_threshold": 1.1}, "stability_score_threshold = 1.1: expected a number from 0 to 1"),
        ({"max_detections": -1}, "max_detections = -1: expected 0 or more"),
        ({"min_area_percent": -0.5}, "min_area_percent = -0.5: expected a number from 0 to 100"),
        ({"max_area_percent": float("nan")}, "max_area_percent = nan: expected a number from 0 to 100"),
        (
            {"min_area_percent": 3, "max_area_percent": 2},
            "min_area_percent = 3, max_area_percent = 2: expected a minimum that is not above the maximum",
        ),
        ({"size_percent": 0}, "size_percent = 0: expected a number from 1 to 100"),
        ({"min_region_percent": 100.5}, "min_region_percent = 100.5: expected a number from 0 to 100"),
        ({"tile_size": 63}, "tile_size = 63: expected 0, or 64 or more"),
        ({"tile_size": float("nan")}, "tile_size = nan: expected 0, or 64 or more"),
        ({"tile_overlap": 0.95}, "tile_overlap = 0.95: expected a number from 0 to 0.9"),
        ({"min_region_percent": float("nan")}, "min_region_percent = nan: expected a number from 0 to 100"),
    ],
)
def test_options_out_of_range_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        Options(**value)


def test_an_error_for_a_box_outside_the_image_names_the_engine_argument(small_checkpoint, photograph):
    predictor = open_predictor(small_checkpoint, cuda=False)
    with pytest.raises(PromptError, match=r"^boxes = '\[900, 5, 950, 9\]': the box is outside the image"):
        predictor.predict(photograph, GeometricPrompt(boxes=((900, 5, 950, 9),)))


@pytest.mark.parametrize(
    ("weights", "reason"), [("/no/such/file.pt", "there is no such file"), (REPOSITORY, "this is a folder")]
)
def test_an_error_for_missing_weights_names_the_engine_argument(weights, reason):
    with pytest.raises(WeightFileError, match=f"^weights = '.*': {reason}; expected a SAM 3 checkpoint"):
        open_predictor(weights)


def test_predictors_share_a_model(small_checkpoint):
    first, second = open_predictor(small_checkpoint, cuda=False), open_predictor(small_checkpoint, cuda=False)
    assert first is not second
    assert first.model is second.model


def test_a_matching_predictor_is_reused_and_any_other_releases_its_model_first(small_checkpoint, tmp_path, monkeypatch):
    other = tmp_path / "other.pt"
    other.write_bytes(small_checkpoint.read_bytes())
    first = open_predictor(small_checkpoint, cuda=False)
    assert open_predictor(small_checkpoint, cuda=False, replaces=first) is first

    resized = open_predictor(small_checkpoint, cuda=False, input_size=168, replaces=first)
    assert resized.model is first.model
    assert (resized.resolution, first.closed) == (168, False)

    with pytest.raises(WeightFileError):
        open_predictor("/no/such/file.pt", replaces=resized)
    assert not resized.closed

    model = weakref.ref(resized.model)
    del first
    alive_while_loading = []
    load = sam3_engine.shared_models.load_model
    monkeypatch.setattr(
        "sam3_engine.shared_models.load_model",
        lambda *arguments: alive_while_loading.append(model() is not None) or load(*arguments),
    )
    last = open_predictor(other, cuda=False, replaces=resized)
    assert alive_while_loading == [False]
    assert resized.closed
    assert last.model.checkpoint == other
    assert isinstance(open_predictor(other, cuda=False, replaces=resized), Predictor)  # replacing a closed one works


def test_requesting_unavailable_cuda_gives_one_warning(small_checkpoint, monkeypatch, caplog):
    unusable = mock.Mock(side_effect=RuntimeError("Found no NVIDIA driver on your system.\nInstall one."))
    monkeypatch.setattr("torch.cuda.current_device", unusable)
    with caplog.at_level(logging.WARNING):
        assert open_predictor(small_checkpoint, cuda=True).model.device.type == "cpu"
        open_predictor(small_checkpoint, cuda=True, device=torch.device("cpu"))
        open_predictor(small_checkpoint, cuda=False)
    assert [record.getMessage() for record in caplog.records] == [
        "cuda is True, but PyTorch cannot use a CUDA device (Found no NVIDIA driver on your system.): running on the "
        "CPU."
    ]


def test_a_mask_is_boolean_at_source_size(small_checkpoint, photograph):
    (segment,) = open_predictor(small_checkpoint, cuda=False).predict(photograph, BOX)
    assert segment.mask.dtype == np.bool_
    assert segment.mask.shape == photograph.shape[:2]


@pytest.mark.parametrize(
    "error",
    [
        PromptError("boxes", [1, 2], "this is not a list of 4 numbers"),
        WeightFileError("model_weight_file", "/nowhere.pt", "there is no such file"),
        WeightsError(
            "No access.", Path("weights/sam3.pt"), "model_weight_file", "a.pt from https://huggingface.co/a/b"
        ),
        CheckpointError(Path("sam3.pt"), "it is damaged"),
        DeviceMemoryError(torch.device("cpu")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_closed_predictor_says_so(small_checkpoint, photograph):
    predictor = open_predictor(small_checkpoint, cuda=False)
    embedding = predictor.encode_image(photograph)
    predictor.close()
    predictor.close()
    for use in (lambda: predictor.predict(photograph, BOX), lambda: predictor.segment(embedding, BOX)):
        with pytest.raises(RuntimeError, match="This predictor is closed"):
            use()


@pytest.mark.parametrize("input_size", [-1, 4097, float("nan")])
def test_input_sizes_out_of_range_are_refused(small_checkpoint, input_size):
    with pytest.raises(ValueError, match=f"input_size = {input_size}: expected a number from 0 to 4096"):
        open_predictor(small_checkpoint, cuda=False, input_size=input_size)


def test_only_prompts_are_accepted(small_checkpoint, photograph):
    with pytest.raises(TypeError, match="prompt = 'shoe': expected a ConceptPrompt, a GeometricPrompt or an"):
        open_predictor(small_checkpoint, cuda=False).predict(photograph, "shoe")


def test_type_checkers_see_the_names_at_the_root(tmp_path):
    code = tmp_path / "typo.py"
    code.write_text("from sam3_engine import Predictor, Predictr\n")
    command = [sys.executable, "-m", "mypy", "--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    done = subprocess.run([*command, str(code)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert re.findall('has no attribute "(.*?)"', done.stdout) == ["Predictr"]
