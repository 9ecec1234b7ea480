"""Segment a large scene in tiles in a separate process, for :mod:`benchmarks`.

    python -m benchmarks.tile_memory 6000 4000 300    # width, height, number of shapes

Prints the number of instances, the peak memory beyond what is needed without an image, and what of it are embeddings
that are kept for the next phrase, in bytes, as JSON.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from benchmarks.timing import peak_memory, resident_memory
from sam3_engine.options import Options
from sam3_engine.predictor import open_predictor
from sam3_engine.prompts import ConceptPrompt
from testbed.plugin import REPOSITORY
from testbed.scenes import KINDS
from training.large_scenes import STYLES, draw_large_scene

_TILE = 672


def main() -> None:
    """Run the command line."""
    width, height, count = map(int, sys.argv[1:])
    predictor = open_predictor(REPOSITORY / "demo" / "sam3_shapes.pt", cuda=False)
    prompt, options = ConceptPrompt(KINDS), Options(tile_size=_TILE)
    predictor.predict(np.zeros((_TILE, _TILE, 3), np.uint8), prompt, options)  # threads and kernels are there
    image = draw_large_scene(np.random.default_rng(0), width, height, count, next(iter(STYLES)), smallest=80).image
    ballast = np.ones(max(0, peak_memory() - resident_memory()), np.uint8)  # drawing needed more than remains
    before, kept = peak_memory(), predictor.model.budget.used
    found = predictor.predict(image, prompt, options)
    grown = peak_memory() - before
    print(json.dumps([len(found), grown, predictor.model.budget.used - kept]))
    del ballast


if __name__ == "__main__":
    main()
