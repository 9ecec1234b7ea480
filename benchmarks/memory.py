"""Segment noise into many discs in a process of its own, for :mod:`benchmarks`.

    python -m benchmarks.memory sam3.pt 1800 1200    # prints the most bytes that the process had in memory

The network runs at its smallest input, so that what depends on the image's size is not lost in what does not; the discs
that are answered in its place have the size of SAM 3's own mask logits.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.discs import MANY, answering_discs
from benchmarks.timing import peak_memory
from testbed.plugin import Plugin


def main() -> None:
    """Segment as the command line says."""
    checkpoint, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    plugin = Plugin(model_weight_file=checkpoint, cuda=False, model_input_size=112)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    plugin.load()
    with answering_discs():
        plugin.segment(image, input_text=f"{MANY} discs")
    print(peak_memory())


if __name__ == "__main__":
    main()
