"""Segment a point in a process of its own, for :mod:`benchmarks`.

    python -m benchmarks.first_mask sam3.pt cache    # a checkpoint, and a folder for embeddings or ""

Prints the seconds from opening the predictor to the first mask; importing PyTorch and sam3 comes before.
"""

from __future__ import annotations

import sys

import numpy as np

import sam3_engine.predictor  # noqa: F401 - imports torch and sam3
from benchmarks.setup import HEIGHT, POINT, WIDTH
from benchmarks.timing import seconds_of
from sam3_engine import GeometricPrompt, open_predictor
from testbed.scenes import draw_scene


def main() -> None:
    """Run the command line."""
    checkpoint, folder = sys.argv[1:]
    image = draw_scene(np.random.default_rng(0), WIDTH, HEIGHT).image
    prompt = GeometricPrompt(points=(POINT,), point_labels=(1,))

    def segment() -> None:
        predictor = open_predictor(checkpoint, cuda=False, embedding_cache_folder=folder)
        (found,) = predictor.predict(image, prompt)
        assert found.mask.shape == image.shape[:2]

    print(seconds_of(segment))


if __name__ == "__main__":
    main()
