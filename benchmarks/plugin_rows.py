"""Rows about the plugin around the network, in Ikomia workflows on the CPU."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow

from benchmarks.discs import answering_discs, discs
from benchmarks.report import Row, in_megabytes, in_seconds
from benchmarks.setup import BOX, EVERYTHING_SIDE, HEIGHT, POINT, WIDTH, Setup
from benchmarks.soak import Soaked
from benchmarks.timing import in_turn, last_line_of, seconds_of, watching
from sam3_engine.nms import drop_duplicates
from sam3_engine.segments import Segment
from testbed.plugin import PLUGIN, Plugin

_RUNS_OF_A_MEASURE = 15


def reuse_rows(setup: Setup) -> Iterator[Row]:
    """Count how often the model is loaded and an image is encoded."""
    plugin = Plugin(model_weight_file=setup.checkpoint, cuda=False)
    plugin.load()
    changes: list[dict[str, Any]] = [
        {"input_point": [POINT]},
        {"input_point": [POINT], "multimask_output": True},
        {"input_box": [BOX]},
        {"input_text": "shoe", "confidence_threshold": 1},
        {"input_text": "hat", "confidence_threshold": 0.99, "iou_threshold": 0.5},
        {"input_point": [POINT], "input_size_percent": 50, "model_input_size": 224},
        {"input_point": [POINT], "input_size_percent": 100, "model_input_size": 0},
        {"input_point": [POINT], "cuda": not torch.cuda.is_available()},  # requested, but unavailable
    ]
    shared_models = sys.modules[f"{PLUGIN}.sam3_engine.shared_models"]
    with mock.patch.object(shared_models, "load_model", wraps=shared_models.load_model) as load:
        for change in changes:
            plugin.segment(setup.image, **change)
        yield Row(
            f"{len(changes)} runs with other parameters", f"{load.call_count} loads", "", "", "0", not load.called
        )

        workflow = Workflow()
        tasks = [workflow.add_task(name=PLUGIN, auto_connect=True) for _ in range(2)]
        for task in tasks:
            task.set_parameters(plugin.algorithm.get_parameters())
        backbone = plugin.algorithm._predictor.model.network.backbone
        with mock.patch.object(backbone, "forward_image", wraps=backbone.forward_image) as encode:
            unseen = np.roll(setup.image, 5, axis=1)
            workflow.run_on(array=unseen)
            plugin.segment(unseen, input_point=[POINT])
        yield Row(
            "two tasks and a second workflow, one image",
            f"{load.call_count} loads, {encode.call_count} encoding",
            "",
            "",
            "0 and 1",
            not load.called and encode.call_count == 1,
        )


def outside_rows(setup: Setup) -> Iterator[Row]:
    """Measure what the plugin needs around the network, with discs in place of the network's masks."""
    plugin, image = Plugin(model_weight_file=setup.checkpoint, cuda=False), setup.image
    plugin.segment(image, input_point=[POINT])  # encodes the image
    predictor, outputs = sys.modules[f"{PLUGIN}.sam3_engine.predictor"], plugin.algorithm._outputs
    with answering_discs():
        places = {
            "hash of the image": (predictor, "content_digest"),
            "mask at the image's size": (sys.modules[f"{PLUGIN}.sam3_engine.segments"], "label_map"),
            "output with its polygons": (outputs, "_fill"),
        }
        runs = []
        for _ in range(_RUNS_OF_A_MEASURE):
            with watching(places) as seconds, watching({"run": (plugin, "segment")}) as whole:
                plugin.segment(image, input_text="1 disc")
            runs.append({**seconds, "rest": whole["run"] - sum(seconds.values()), **whole})
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        run = medians.pop("run")
        parts = ", ".join(f"{name} {in_seconds(seconds)}" for name, seconds in medians.items())
        yield Row("outside the network, one mask", in_seconds(run), parts, "", "< 60 ms", run < 0.06)

        # also a size that shares no factor with that of the mask logits
        odd = image[:-1, :-1]
        plugin.segment(odd, input_point=[POINT])
        for of_size in (image, odd):
            yield _many_row(setup, plugin, of_size)
        yield _classes_row(setup)

    overlapping = _overlapping(setup.instances)
    duplicates = statistics.median(seconds_of(lambda: drop_duplicates(overlapping, 0.5)) for _ in range(5))
    yield Row(f"duplicates dropped from {setup.instances} instances", in_seconds(duplicates), "", "")


def _many_row(setup: Setup, plugin: Plugin, image: np.ndarray) -> Row:
    phrase = f"{setup.instances} discs"
    (output,) = plugin.segment(image, input_text=phrase)
    label_map, names, colors = output.get_mask(), output.get_class_names(), output.get_colors()

    def set_mask() -> None:
        bare = dataprocess.CSemanticSegmentationIO()
        bare.set_class_names(names)
        bare.set_class_colors(colors)
        bare.set_mask(label_map)

    taken = in_turn(setup.repeat, plugin=lambda: plugin.segment(image, input_text=phrase), set_mask=set_mask)
    measure = f"outside the network, {setup.instances} instances, {image.shape[1]}×{image.shape[0]}"
    return Row.within(measure, taken["plugin"], "`set_mask`", taken["set_mask"], 1.3)


def _classes_row(setup: Setup) -> Row:
    """Compare a mask of classes with one of instances, on 24 megapixels."""
    plugin = Plugin(model_weight_file=setup.checkpoint, cuda=False, model_input_size=112)  # encodes faster
    image = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
    thirds = [setup.instances // 3, setup.instances // 3, setup.instances - setup.instances // 3 * 2]
    phrases = [f"{count} discs, third {number}" for number, count in enumerate(thirds, 1)]

    def segment(mask_output: str) -> None:
        plugin.segment(image, input_text=phrases, mask_output=mask_output)

    segment("classes")  # encodes the image
    taken = in_turn(setup.repeat, classes=lambda: segment("classes"), instances=lambda: segment("instances"))
    measure = f"`mask_output` `classes`, {setup.instances} instances of 3 phrases, 6000×4000"
    return Row.faster(measure, taken["classes"], "`instances`", taken["instances"], 3)


def _overlapping(count: int) -> list[Segment]:
    return [
        Segment(logits.roll(number % 7, 0), WIDTH, HEIGHT, number / count, "disc")
        for number, logits in enumerate(discs(count))
    ]


def memory_rows(setup: Setup) -> Iterator[Row]:
    """Measure how much more memory a large image needs."""
    sizes = ((WIDTH, HEIGHT), (6000, 4000))
    peaks = [int(last_line_of("benchmarks.memory", setup.checkpoint, *size, setup.instances)) for size in sizes]
    needed = 4 * (6000 * 4000 - WIDTH * HEIGHT)  # per pixel, three bytes of the image and one of the label map
    more = peaks[1] - peaks[0] - needed
    yield Row(
        f"peak memory, {setup.instances} instances at 6000×4000",
        in_megabytes(peaks[1]),
        f"at {WIDTH}×{HEIGHT}: {in_megabytes(peaks[0])}; image and label map are {in_megabytes(needed)} larger",
        f"{more / 1e6:+,.0f} MB",
        "< +500 MB",
        more < 500e6,
    )


def tile_memory_row(setup: Setup) -> Row:
    """Measure how much memory tiles need, on the shapes network."""
    width, height, count = (6000, 4000, 300) if setup.full_size else (1400, 1000, 20)
    found, peak, kept = json.loads(last_line_of("benchmarks.tile_memory", width, height, count))
    more = peak - kept
    return Row(
        f"peak memory, {found} instances in tiles of 672, {width}×{height}, shapes network",
        in_megabytes(peak),
        f"embeddings that are kept: {in_megabytes(kept)}",
        f"{more / 1e6:+,.0f} MB",
        "< +500 MB",
        more < 500e6,
    )


def first_mask_row(setup: Setup) -> Row:
    """Compare the first mask of a process whose image another process has encoded with encoding it again."""

    def first_mask(folder: str) -> float:
        return float(last_line_of("benchmarks.first_mask", setup.checkpoint, folder))

    with tempfile.TemporaryDirectory() as folder:
        first_mask(folder)  # fills it
        seconds = [(first_mask(folder), first_mask("")) for _ in range(setup.repeat)]
    kept, encoded = (statistics.median(times) for times in zip(*seconds, strict=True))
    measure = "load, and a point on an image that another process encoded, with `embedding_cache_folder`"
    return Row.faster(measure, kept, "without", encoded, 10)


def everything_memory_row(setup: Setup) -> Row:
    """Measure how much memory it takes to segment everything, if all candidates pass the thresholds."""
    width, height, side = (6000, 4000, EVERYTHING_SIDE) if setup.full_size else (600, 400, 8)
    grown = int(last_line_of("benchmarks.everything_memory", setup.checkpoint, width, height, side))
    return Row(
        f"peak memory, segment everything by {side**2:,} points, {width}×{height}",
        in_megabytes(grown),
        "the embedding alone",
        f"{grown / 1e6:+,.0f} MB",
        "< +1,000 MB",
        grown < 1e9,
    )


def long_series_rows(runs: int) -> Iterator[Row]:
    """Measure memory over many runs with changing prompts and images, on a small network."""
    soaked = Soaked(**json.loads(last_line_of("benchmarks.soak", "--runs", runs, "--json")))
    yield Row(
        f"{runs:,} runs, small network",
        in_megabytes(soaked.memory[-1]),
        f"second tenth of the runs: {in_megabytes(soaked.memory[-1] - soaked.growth)}",
        f"{soaked.growth / 1e6:+.0f} MB",
        "≤ +20 MB",
        soaked.growth <= 20e6,
    )
