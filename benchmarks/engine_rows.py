"""Rows about loading, encoding and prompting, on any device."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import statistics
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.report import Row, in_megabytes, in_seconds
from benchmarks.setup import BOX, EVERYTHING_SIDE, POINT, Setup
from benchmarks.timing import in_turn, last_line_of, seconds_of
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, EverythingPrompt
from sam3_engine.tiling import tile_image
from testbed.direct_use import DirectUse

_PROMPTS = 5  # repetitions of a prompt
_SINGLE_POINTS = 16  # of the grid of points, to measure how long one takes


def encoding_rows(setup: Setup) -> Iterator[Row]:
    """Measure encoding an image, at the network's own input size and at smaller ones."""
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
    yield Row.within(
        "encode an image, in the same precision", ours, f"`set_image` in {setup.precision_name}", seconds["sam3"], 1.03
    )
    for predictor, of_size, at_least in ((half, "half", 4), (two_thirds, "two_thirds", 2)):
        measure = f"encode at `model_input_size` {predictor.resolution}"
        yield Row.faster(measure, seconds[of_size], f"at {own_size}", ours, at_least)


def tile_row(setup: Setup) -> Row:
    """Compare a phrase in tiles with as many images of a tile's size."""
    predictor = Predictor(setup.predictor.model, input_size=setup.predictor.resolution // 2)
    unseen, phrase, nothing = setup.unseen_images(), ConceptPrompt(("shoe",)), Options(confidence_threshold=1)
    height, width = setup.image.shape[:2]
    side = height // 2
    tiles = tile_image(width, height, side, nothing.tile_overlap)
    in_tiles = dataclasses.replace(nothing, tile_size=side)

    def segment_one_by_one() -> None:
        image = next(unseen)
        for x1, y1, x2, y2 in [*tiles, (0, 0, width, height)]:
            predictor.predict(image[y1:y2, x1:x2], phrase, nothing)

    predictor.predict(next(unseen), phrase, nothing)  # reads the weights from the file
    seconds = in_turn(
        setup.repeat,
        tiles=lambda: predictor.predict(next(unseen), phrase, in_tiles),
        one_by_one=segment_one_by_one,
    )
    return Row.within(
        f"phrase in {len(tiles)} tiles and the whole image, at `model_input_size` {predictor.resolution}",
        seconds["tiles"],
        "encode and phrase for each",
        seconds["one_by_one"],
        1.05,
    )


def everything_row(setup: Setup) -> Row:
    """Compare segmenting everything with asking for its points one by one, of which a few are measured."""
    image, direct = setup.image, setup.direct(setup.image)
    side = EVERYTHING_SIDE if setup.full_size else 8
    embedding = setup.predictor.encode_image(image)
    height, width = image.shape[:2]
    points = [(x * width, y * height) for row in EverythingPrompt(side).rows for x, y in row]
    some = itertools.cycle(points[:: len(points) // _SINGLE_POINTS])

    def ask_one_by_one() -> None:
        for _ in range(_SINGLE_POINTS):
            direct.geometry(True, point_coords=np.array([next(some)]), point_labels=np.array([1]))

    setup.predictor.segment(embedding, EverythingPrompt(1))  # reads the weights from the file
    seconds = in_turn(
        setup.repeat,
        everything=lambda: setup.predictor.segment(embedding, EverythingPrompt(side)),
        one_by_one=ask_one_by_one,
    )
    return Row.within(
        f"segment everything by {len(points):,} points, on an encoded image",
        seconds["everything"],
        f"as many calls of `predict_inst`, from {_SINGLE_POINTS}",
        seconds["one_by_one"] * len(points) / _SINGLE_POINTS,
        0.5,
    )


def prompt_rows(setup: Setup) -> Iterator[Row]:
    """Measure prompts on an encoded image: whole runs of the plugin, or of the engine on a GPU."""
    user, image, direct = setup.user, setup.image, setup.direct(setup.image)
    user.segment(image, input_point=[POINT])  # encodes the image
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
    nothing = {"confidence_threshold": 1}  # finds nothing, so that only the network is compared
    phrases = [f"shoe {number}" for number in range(3 * _PROMPTS)]
    ours, theirs = itertools.cycle(phrases), itertools.cycle(phrases)

    def some(phrases: Iterator[str], count: int) -> list[str]:
        return list(itertools.islice(phrases, count))

    def asked_again() -> None:
        user.forget_answers(image)
        user.segment(image, input_text=next(ours), **nothing)

    user.segment(image, input_text="hat", **nothing)  # reads the text encoder's weights from the file
    new = in_turn(
        _PROMPTS,
        plugin=lambda: user.segment(image, input_text=next(ours), **nothing),
        sam3=lambda: direct.concept(next(theirs), 1.0),
    )
    yield Row.within("next phrase, same image", new["plugin"], "`set_text_prompt`", new["sam3"], 1.03)
    three = in_turn(
        setup.repeat,
        plugin=lambda: user.segment(image, input_text=some(ours, 3), **nothing),
        sam3=lambda: [direct.concept(phrase, 1.0) for phrase in some(theirs, 3)],
    )
    yield Row.within("three phrases at once", three["plugin"], "`set_text_prompt` three times", three["sam3"], 1.03)
    ours, theirs = itertools.cycle(phrases), itertools.cycle(phrases)
    known = in_turn(_PROMPTS, plugin=asked_again, sam3=lambda: direct.concept(next(theirs), 1.0))
    yield Row.within(
        "a phrase used before, without its cached answer", known["plugin"], "`set_text_prompt`", known["sam3"], 1
    )

    yield from _threshold_rows(setup, phrases[0])


def _threshold_rows(setup: Setup, phrase: str) -> Iterator[Row]:
    embedding = setup.predictor.encode_image(setup.image)
    found = setup.predictor.segment(embedding, ConceptPrompt((phrase,)), Options(confidence_threshold=0))
    scores = [segment.score for segment in found]
    # the two smallest numbers of instances that a threshold can keep: in bfloat16 many scores are equal
    fewest = [count for count in range(1, len(scores)) if scores[count] < scores[count - 1]][:2]
    for instances, thresholds, target in (
        ("nothing found", (0.99, 1.0), 4),
        (" or ".join(map(str, fewest)) + " instances", tuple(scores[count] for count in fewest), None),
    ):
        asked, changed = _seconds_at(setup, phrase, itertools.cycle(thresholds))
        measure = f"only `confidence_threshold` changed, {instances}"
        row = Row.faster(measure, changed, "first run with the phrase", asked, target or 1)
        yield row if target else dataclasses.replace(row, target="", met=None)


def _seconds_at(setup: Setup, phrase: str, thresholds: Iterator[float]) -> tuple[float, float]:
    """Return the median seconds of a phrase, and of the same phrase with another threshold."""
    seconds: dict[str, list[float]] = {"asked": [], "changed": []}
    for _ in range(_PROMPTS):
        setup.user.forget_answers(setup.image)
        for taken in seconds.values():
            run = functools.partial(
                setup.user.segment, setup.image, input_text=phrase, confidence_threshold=next(thresholds)
            )
            taken.append(seconds_of(run))
    return statistics.median(seconds["asked"]), statistics.median(seconds["changed"])


def _loading_rows(setup: Setup, next_point: float) -> Iterator[Row]:
    ours = [_load("plugin", setup) for _ in range(setup.repeat)]
    theirs = _load("sam3", setup)
    seconds, peak = (statistics.median(found[key] for found in ours) for key in ("load", "peak"))
    yield Row.faster("load the checkpoint", seconds, "`build_sam3_image_model`", theirs["load"], 10)
    yield Row(
        "peak memory while loading",
        in_megabytes(peak),
        f"`build_sam3_image_model`: {in_megabytes(theirs['peak'])}",
        f"{peak / theirs['peak']:.2f}×",
        "≤ ⅓",
        peak <= theirs["peak"] / 3,
    )
    if setup.device.type == "cuda":
        yield Row("peak GPU memory while loading", in_megabytes(ours[0]["device"]), in_megabytes(theirs["device"]), "")
    fresh = theirs["load"] + theirs["prompt"]
    yield Row.faster("next point, same image", next_point, "load, `set_image`, `predict_inst`", fresh, 200)


def _load(side: str, setup: Setup) -> dict[str, float]:
    return json.loads(last_line_of("benchmarks.load", side, setup.checkpoint, setup.device.type))
