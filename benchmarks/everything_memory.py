"""Segment everything in an encoded image in a separate process, for :mod:`benchmarks`.

    python -m benchmarks.everything_memory sam3.pt 6000 4000 32    # width, height, points per side

Prints how much the peak memory exceeds what is needed with the embedding, in bytes.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.timing import peak_memory, resident_memory
from sam3_engine.options import Options
from sam3_engine.predictor import open_predictor
from sam3_engine.prompts import EverythingPrompt


def main() -> None:
    """Run the command line."""
    checkpoint, (width, height, side) = sys.argv[1], map(int, sys.argv[2:])
    predictor = open_predictor(checkpoint, cuda=False)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    embedding = predictor.encode_image(image)
    every_mask = Options(predicted_iou_threshold=0, stability_score_threshold=0)
    predictor.segment(embedding, EverythingPrompt(1), every_mask)  # threads and kernels are there
    ballast = np.ones(max(0, peak_memory() - resident_memory()), np.uint8)  # encoding needed more than remains
    before = peak_memory()
    predictor.segment(embedding, EverythingPrompt(side), every_mask)
    print(peak_memory() - before)
    del ballast


if __name__ == "__main__":
    main()
