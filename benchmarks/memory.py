"""Segment noise into all the instances that a network can give, in a process of its own, for :mod:`benchmarks`.

    python -m benchmarks.memory sam3.pt 1800 1200    # prints the most bytes that the process had in memory

The network runs at its smallest input, so that what depends on the image's size is not lost in what does not.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.timing import PeakMemory
from demo.plugin import Plugin


def main() -> None:
    """Segment as the command line says."""
    checkpoint, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    plugin = Plugin(model_weight_file=checkpoint, cuda=False, model_input_size=112, confidence_threshold=0)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    with PeakMemory() as memory:
        plugin.segment(image, input_text="shoe")
    print(memory.peak)


if __name__ == "__main__":
    main()
