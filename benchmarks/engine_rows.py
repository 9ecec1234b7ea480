"""Rows for loading, encoding and prompting, on any device."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.direct_use import DirectUse
from benchmarks.report import Row, in_megabytes, in_seconds
from benchmarks.setup import BOX, POINT, Setup
from benchmarks.timing import in_turn, last_line_of, seconds_of
from sam3_engine.predictor import Predictor

_PROMPTS = 5  # runs of a prompt. An image remembers the answers for four phrases: of five in turn, none


def encoding_rows(setup: Setup) -> Iterator[Row]:
    """Encoding an image, at the network's own size and at smaller ones."""
    own_size = setup.predictor.resolution
    half, two_thirds = (
        Predictor(setup.predictor.model, input_size=size) for size in (own_size // 2, own_size * 2 // 3)
    )
    unseen = setup.unseen_images()
    setup.predictor.encode_image(next(unseen))  # reads the weights from the file
    seconds = in_turn(
        setup.repeat,
        plugin=lambda: setup.predictor.encode_image(next(unseen)),
        sam3=lambda: setup.direct(next(unseen)),
        float32=lambda: setup.direct(next(unseen), torch.float32),
        two_thirds=lambda: two_thirds.encode_image(next(unseen)),
        half=lambda: half.encode_image(next(unseen)),
    )
    ours = seconds["plugin"]
    yield Row.faster("encode an image", ours, "`set_image` in float32", seconds["float32"], 2)
    yield Row.within("the same", ours, f"`set_image` in {setup.precision_name}", seconds["sam3"], 1.03)
    for predictor, of_size, at_least in ((half, "half", 4), (two_thirds, "two_thirds", 2)):
        measure = f"encode at `model_input_size` {predictor.resolution}"
        yield Row.faster(measure, seconds[of_size], f"at {own_size}", ours, at_least)


def prompt_rows(setup: Setup) -> Iterator[Row]:
    """Prompts on an image that is encoded already; whole runs of the plugin, where there is Ikomia."""
    user, image, direct = setup.user, setup.image, setup.direct(setup.image)
    user.segment(image, input_point=[POINT])  # now it is encoded here, too
    seconds = in_turn(
        _PROMPTS,
        point=lambda: user.segment(image, input_point=[POINT]),
        sam3_point=lambda: direct.geometry(False, point_coords=np.array([POINT]), point_labels=np.array([1])),
        box=lambda: user.segment(image, input_box=[BOX]),
        sam3_box=lambda: direct.geometry(False, box=np.array(BOX)),
    )
    for kind in ("point", "box"):
        ours, theirs = seconds[kind], seconds[f"sam3_{kind}"]
        against, difference = f"`predict_inst`: {in_seconds(theirs)}", f"{1000 * (ours - theirs):+.0f} ms"
        yield Row(f"next {kind}, same image", in_seconds(ours), against, difference, "≤ +100 ms", ours - theirs <= 0.1)
    if setup.full_size:
        yield from _loading_rows(setup, next_point=seconds["point"])
    yield from _text_rows(setup, direct)


def _text_rows(setup: Setup, direct: DirectUse) -> Iterator[Row]:
    user, image = setup.user, setup.image
    phrases = [f"shoe {number}" for number in range(_PROMPTS)]
    ours, theirs = itertools.cycle(phrases), itertools.cycle(phrases)

    def in_turn_by_text() -> dict[str, float]:
        return in_turn(
            _PROMPTS,
            plugin=lambda: user.segment(image, input_text=next(ours), confidence_threshold=1),
            sam3=lambda: direct.concept(next(theirs), 1.0),
        )

    user.segment(image, input_text="hat", confidence_threshold=1)  # reads the text encoder's weights from the file
    new, known = in_turn_by_text(), in_turn_by_text()
    yield Row.within("next phrase, same image", new["plugin"], "`set_text_prompt`", new["sam3"], 1.03)
    yield Row.within("a phrase used before, its answer forgotten", known["plugin"], "the same", known["sam3"], 1)

    thresholds = itertools.cycle((0.99, 1))
    changed = statistics.median(
        seconds_of(lambda: user.segment(image, input_text=phrases[-1], confidence_threshold=next(thresholds)))
        for _ in range(2 * _PROMPTS)
    )
    yield Row.faster("only `confidence_threshold` changed", changed, "the run with the phrase", new["plugin"], 4)


def _loading_rows(setup: Setup, next_point: float) -> Iterator[Row]:
    ours = [_load("plugin", setup) for _ in range(setup.repeat)]
    theirs = _load("sam3", setup)
    seconds, peak = (statistics.median(found[key] for found in ours) for key in ("load", "peak"))
    yield Row.faster("load the checkpoint", seconds, "`build_sam3_image_model`", theirs["load"], 10)
    yield Row(
        "memory of the process, at most, while loading",
        in_megabytes(peak),
        f"the same: {in_megabytes(theirs['peak'])}",
        f"{peak / theirs['peak']:.2f}×",
        "≤ ⅓",
        peak <= theirs["peak"] / 3,
    )
    if setup.device.type == "cuda":
        yield Row("GPU memory of the network", in_megabytes(ours[0]["device"]), in_megabytes(theirs["device"]), "")
    fresh = theirs["load"] + theirs["prompt"]
    yield Row.faster("next point, same image", next_point, "load, `set_image`, `predict_inst`", fresh, 200)


def _load(side: str, setup: Setup) -> dict[str, float]:
    return json.loads(last_line_of("benchmarks.load", side, setup.checkpoint, setup.device.type))
