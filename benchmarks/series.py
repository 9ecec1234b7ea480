"""Segment many pictures with changing prompts in a process of its own, for :mod:`benchmarks`.

    python -m benchmarks.series small.pt 1000    # prints, as JSON, the bytes in memory after each run

A process that has held more before would have memory to spare, in which a leak hides.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
from typing import Any

import numpy as np

from benchmarks.timing import resident_memory
from demo.plugin import Plugin

_SIDES = (100, 800)  # of the pictures
_BOXES = [[5, 5, 50, 50], [8, 8, 60, 60], [3, 3, 40, 40]]
_PROMPTS: list[dict[str, Any]] = [
    {"input_text": "shoe"},
    {"input_point": [[5, 5]]},
    {"input_box": _BOXES[0], "multimask_output": True},
    {"input_box": _BOXES, "multimask_output": True},
    {"input_box": _BOXES},
]


def main() -> None:
    """Segment as the command line says."""
    checkpoint, runs = sys.argv[1], int(sys.argv[2])
    plugin, random = Plugin(model_weight_file=checkpoint, cuda=False), np.random.default_rng(0)
    sizes = []
    for run, prompt in zip(range(runs), itertools.cycle(_PROMPTS)):
        image = random.integers(0, 256, (*random.integers(*_SIDES, 2), 3), np.uint8)
        plugin.segment(
            image, **{name: f"{value} {run}" if name == "input_text" else value for name, value in prompt.items()}
        )
        gc.collect()
        sizes.append(resident_memory())
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
