"""Rows about Hugging Face transformers, with the same weights.

transformers has two models: ``Sam3Model`` answers phrases, ``Sam3TrackerModel`` points and boxes. Each has an image
encoder of its own. They run with the settings that its documentation recommends: half precision where the machine has
it, and PyTorch's attention (``sdpa``).

Importing this module imports transformers.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional
from transformers import Sam3Model, Sam3TrackerModel

from benchmarks.report import Row, in_megabytes
from benchmarks.setup import POINT, Setup
from benchmarks.timing import in_turn, last_line_of
from sam3_engine.architecture import Architecture
from sam3_engine.options import Options
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from testbed.layout_files import as_transformers_video, read_contents, write_safetensors
from testbed.transformers_models import TransformersUse, click_config, load_reference, video_config

_PROMPTS = 5  # repetitions of a prompt


def load_transformers(folder: Path, device: torch.device, precision: torch.dtype) -> tuple[Sam3Model, Sam3TrackerModel]:
    """Load both models from a folder with ``model.safetensors`` and its configuration."""
    architecture = Architecture.from_dict(json.loads((folder / "architecture.json").read_text(encoding="utf-8")))
    options: dict[str, Any] = {"dtype": precision, "attn_implementation": "sdpa"}
    detector = load_reference(Sam3Model, folder, **options)
    click_head = load_reference(Sam3TrackerModel, folder, click_config(architecture), **options)
    return detector.to(device), click_head.to(device)


def peer_rows(setup: Setup) -> Iterator[Row]:
    """Compare loading, encoding and prompts with transformers."""
    with tempfile.TemporaryDirectory(dir=setup.checkpoint.parent) as name:
        folder = Path(name)
        _save(setup, folder)
        yield from _loading_rows(setup, folder)
        yield from _prompt_rows(setup, *load_transformers(folder, setup.device, setup.precision))


def _save(setup: Setup, folder: Path) -> None:
    contents, architecture = read_contents(setup.checkpoint), setup.predictor.model.architecture
    write_safetensors(folder / "model.safetensors", as_transformers_video(contents.tensors), contents.architecture)
    video_config(architecture).save_pretrained(folder)
    (folder / "architecture.json").write_text(json.dumps(architecture.to_dict()), encoding="utf-8")


def _loading_rows(setup: Setup, folder: Path) -> Iterator[Row]:
    found = {
        side: [json.loads(last_line_of("benchmarks.load", side, path, setup.device.type)) for _ in range(setup.repeat)]
        for side, path in (("plugin", setup.checkpoint), ("transformers", folder))
    }
    seconds, peak = (
        {side: statistics.median(one[key] for one in runs) for side, runs in found.items()} for key in ("load", "peak")
    )
    yield Row.faster(
        "load the checkpoint, against transformers",
        seconds["plugin"],
        "both models, `from_pretrained`",
        seconds["transformers"],
        1,
    )
    yield Row(
        "peak memory while loading, against transformers",
        in_megabytes(peak["plugin"]),
        f"both models: {in_megabytes(peak['transformers'])}",
        f"{peak['plugin'] / peak['transformers']:.2f}×",
        "≤ 1×",
        peak["plugin"] <= peak["transformers"],
    )


def _prompt_rows(setup: Setup, detector: Sam3Model, click_head: Sam3TrackerModel) -> Iterator[Row]:
    predictor, side = setup.predictor, setup.predictor.resolution
    height, width = setup.image.shape[:2]
    nothing = Options(confidence_threshold=1)  # finds nothing, so that only the network is compared
    unseen, phrases = setup.unseen_images(), (f"shoe {number}" for number in itertools.count())
    point = GeometricPrompt(points=(POINT,), point_labels=(1,))
    scaled = (POINT[0] * side / width, POINT[1] * side / height)

    def use(image: np.ndarray, *models: Any) -> TransformersUse:
        resized = functional.resize(torch.from_numpy(image).permute(2, 0, 1), [side, side], antialias=True)
        return TransformersUse(np.ascontiguousarray(resized.permute(1, 2, 0).numpy()), *models)

    def click(on_image: TransformersUse) -> np.ndarray:
        logits = torch.from_numpy(on_image.click(False, [scaled], [1]).mask_logits)[None]
        return (torch.nn.functional.interpolate(logits, (height, width), mode="bilinear") > 0).numpy()

    def both_in_engine() -> None:
        image = next(unseen)
        predictor.predict(image, ConceptPrompt((next(phrases),)), nothing)
        _ = predictor.predict(image, point)[0].mask

    def both_in_transformers() -> None:
        on_image = use(next(unseen), detector, click_head)
        on_image.concept(next(phrases), class_token=False)
        click(on_image)

    embedding, on_image = predictor.encode_image(setup.image), use(setup.image, detector, click_head)
    predictor.segment(embedding, ConceptPrompt(("hat",)), nothing)  # reads the weights from the file
    encoding = in_turn(
        setup.repeat,
        engine=lambda: predictor.encode_image(next(unseen)),
        transformers=lambda: use(next(unseen), detector),
        both_in_engine=both_in_engine,
        both_in_transformers=both_in_transformers,
    )
    asking = in_turn(
        _PROMPTS,
        engine=lambda: predictor.segment(embedding, ConceptPrompt((next(phrases),)), nothing),
        transformers=lambda: on_image.concept(next(phrases), class_token=False),
        click_in_engine=lambda: predictor.segment(embedding, point)[0].mask,
        click_in_transformers=lambda: click(on_image),
    )
    for measure, ours, theirs, against in (
        (
            "encode an image",
            encoding["engine"],
            encoding["transformers"],
            "`Sam3Model`, whose embedding answers no clicks",
        ),
        (
            "phrase and point on a new image",
            encoding["both_in_engine"],
            encoding["both_in_transformers"],
            "both models, which encode it twice",
        ),
        ("next phrase, same image", asking["engine"], asking["transformers"], "`Sam3Model`"),
        ("next point, same image", asking["click_in_engine"], asking["click_in_transformers"], "`Sam3TrackerModel`"),
    ):
        yield Row.within(f"{measure}, against transformers", ours, against, theirs, 1)
