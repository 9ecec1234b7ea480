"""Segment noise into many discs in a separate process, for :mod:`benchmarks`.

    python -m benchmarks.memory sam3.pt 1800 1200 200    # width, height, discs; prints the peak memory in bytes

The network runs at its smallest input size, so that its own memory does not hide what depends on the size of the image.
The logits of the discs have the size of SAM 3's own.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.discs import answering_discs
from benchmarks.timing import peak_memory
from testbed.plugin import Plugin


def main() -> None:
    """Run the command line."""
    checkpoint, (width, height, count) = sys.argv[1], map(int, sys.argv[2:])
    plugin = Plugin(model_weight_file=checkpoint, cuda=False, model_input_size=112)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    plugin.load()
    with answering_discs():
        plugin.segment(image, input_text=f"{count} discs")
    print(peak_memory())


if __name__ == "__main__":
    main()
