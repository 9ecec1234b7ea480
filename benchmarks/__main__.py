"""Loading and prompting, side by side with direct use of the sam3 package, in one run.

    python -m benchmarks            # full-size network of random weights, on the CPU
    python -m benchmarks --small    # a network of small sizes, to try the benchmark itself

Prints medians and their ratio; both sides run in the precision that the plugin chooses for this processor.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.direct_use import CPU, DirectUse, package_network
from demo.random_weights import SMALL, full_size_checkpoint, write_random_checkpoint
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import GeometricPrompt, TextPrompt
from sam3_engine.runtime import choose_precision

WIDTH, HEIGHT = 1800, 1200
BOX = (425.0, 600.0, 700.0, 875.0)
POINT = (520.0, 375.0)


def main() -> None:
    """Run the benchmark as the command line asks for it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a network of small sizes")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each measure, alternating; the median counts")
    arguments = parser.parse_args()

    precision = choose_precision(CPU)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'small' if arguments.small else 'full-size'} network of random weights, {precision}, {WIDTH}x{HEIGHT}")
    with tempfile.TemporaryDirectory() as folder:
        print(f"\n{'step':<24}{'plugin':>10}{'sam3':>10}{'sam3 / plugin':>15}")
        if arguments.small:  # the package can build only the full size
            checkpoint = Path(folder) / "small.pt"
            write_random_checkpoint(checkpoint, SMALL)
        else:
            checkpoint = full_size_checkpoint()
            report("load", lambda: load_model(checkpoint, CPU), lambda: package_network(checkpoint), 1)
        measure_prompts(checkpoint, precision, arguments.repeat)


def measure_prompts(checkpoint: Path, precision: torch.dtype, repeat: int) -> None:
    """Time an encoded image and prompts on it on both sides, and print a row for each."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    model = load_model(checkpoint, CPU)
    predictor = Predictor(model)
    # images and phrases that were seen before would cost the plugin nothing: it remembers two images
    unseen_images = itertools.cycle([np.roll(image, shift, axis=1) for shift in (1, 2, 3)])
    unseen_phrases = (f"shoe {number}" for number in itertools.count(1))
    # on the same network, so that both sides touch the same memory
    report(
        "encode an image",
        lambda: predictor.encode_image(next(unseen_images)),
        lambda: DirectUse(model.network, precision, image),
        repeat,
    )
    embedding, direct = predictor.encode_image(image), DirectUse(model.network, precision, image)
    point = GeometricPrompt(points=(POINT,), point_labels=(1,))
    report(
        "point, on that image",
        lambda: [segment.mask for segment in predictor.segment(embedding, point)],
        lambda: direct.geometry(False, point_coords=np.array([POINT]), point_labels=np.array([1])),
        repeat,
    )
    report(
        "box, on that image",
        lambda: [segment.mask for segment in predictor.segment(embedding, GeometricPrompt(boxes=(BOX,)))],
        lambda: direct.geometry(False, box=np.array(BOX)),
        repeat,
    )
    report(
        "text, nothing found",
        lambda: predictor.segment(embedding, TextPrompt(next(unseen_phrases)), confidence_threshold=1.0),
        lambda: direct.text("shoe", 1.0),
        repeat,
    )


def report(step: str, plugin: Callable[[], object], sam3: Callable[[], object], repeat: int) -> None:
    """Run both in turn and print the medians of their seconds, and the ratio."""
    seconds: dict[str, list[float]] = {"plugin": [], "sam3": []}
    for _ in range(repeat):
        for side, call in (("plugin", plugin), ("sam3", sam3)):
            start = time.perf_counter()
            call()
            seconds[side].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(seconds[side]) for side in ("plugin", "sam3"))
    print(f"{step:<24}{ours:>9.2f}s{theirs:>9.2f}s{theirs / ours:>14.2f}x", flush=True)


if __name__ == "__main__":
    main()
