"""Segment many images with random prompts, valid and invalid, and check that nothing grows.

    python -m benchmarks.soak                          # 2,000 runs on a small network with random weights
    python -m benchmarks.soak --runs 500 --json        # for the benchmark

Exits with 1 if memory grows by more than 20 MB after the warm-up, if there are more open files or threads, or if runs
become slower. Run it in a separate process: if the process used more memory earlier, a leak can hide in the memory that
it freed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.timing import resident_memory
from sam3_engine.random_weights import SMALL, write_random_checkpoint
from testbed.plugin import Plugin

_SIDES = (100, 800)  # of the images
_BOXES = [[5, 5, 50, 50], [8, 8, 60, 60], [3, 3, 40, 40]]
_GOOD: list[dict[str, Any]] = [
    {"input_text": "shoe"},
    {"input_text": ["shoe", "hat"], "instance_output": True},
    {"input_box": _BOXES, "input_box_label": [1, 0, 1]},
    {"input_point": [[5, 5]]},
    {"input_point": [[5, 5], [60, 60]], "input_point_label": [1, 0], "instance_output": True},
    {"input_box": _BOXES[0], "multimask_output": True},
    {"input_box": _BOXES, "multimask_output": True},
    {"input_box": _BOXES},
]
_BAD: list[dict[str, Any]] = [
    {"input_box": "[[1, 2, 3"},
    {"input_point": [[-5, 5]]},
    {"input_point": [[5, 5]], "input_point_label": [1, 1]},
    {"input_text": '["shoe", 5]'},
]
_SHARE_OF_BAD = 0.1
_MOST_GROWTH, _MOST_SLOWDOWN = 20e6, 1.5


@dataclass(frozen=True)
class Soaked:
    """The state of the process after each run.

    Attributes:
        memory: resident memory in bytes.
        files: number of open files.
        threads: number of threads.
        seconds: duration of the run.
        refused: number of runs that the plugin rejected, as it should.
    """

    memory: list[int]
    files: list[int]
    threads: list[int]
    seconds: list[float]
    refused: int

    @property
    def growth(self) -> float:
        """Growth of memory in bytes: median of the last tenth of the runs minus median of the second tenth."""
        tenth = max(1, len(self.memory) // 10)
        return statistics.median(self.memory[-tenth:]) - statistics.median(self.memory[tenth : 2 * tenth])

    @property
    def slowdown(self) -> float:
        """Median duration of the last tenth of the runs, relative to the second tenth."""
        tenth = max(1, len(self.seconds) // 10)
        return statistics.median(self.seconds[-tenth:]) / statistics.median(self.seconds[tenth : 2 * tenth])

    def faults(self) -> list[str]:
        """Return a description of each value that grew too much."""
        tenth = max(1, len(self.memory) // 10)
        faults = []
        if self.growth > _MOST_GROWTH:
            faults.append(f"memory grew by {self.growth / 1e6:.0f} MB")
        for name, counts in (("open files", self.files), ("threads", self.threads)):
            if max(counts[-tenth:]) > max(counts[tenth : 2 * tenth]):
                faults.append(f"{name} increased from {max(counts[tenth : 2 * tenth])} to {max(counts[-tenth:])}")
        if self.slowdown > _MOST_SLOWDOWN:
            faults.append(f"runs take {self.slowdown:.1f} times as long")
        return faults

    def __str__(self) -> str:
        tenth = max(1, len(self.memory) // 10)
        rows = [f"{'runs':>13}  {'MB':>6}  files  threads  ms a run"]
        for start in range(0, len(self.memory), tenth):
            part = slice(start, start + tenth)
            megabytes, milliseconds = (
                statistics.median(self.memory[part]) / 1e6,
                1000 * statistics.median(self.seconds[part]),
            )
            rows.append(
                f"{start + 1:>6}-{min(start + tenth, len(self.memory)):<6}  {megabytes:>6.0f}  "
                f"{max(self.files[part]):>5}  {max(self.threads[part]):>7}  {milliseconds:>8.0f}"
            )
        return "\n".join([*rows, f"{self.refused} runs had an invalid prompt and were rejected, as they should be."])


def soak(checkpoint: Path, runs: int, seed: int = 0) -> Soaked:
    """Run the plugin many times in one Ikomia workflow.

    Args:
        checkpoint: path of a small network.
        runs: number of runs.
        seed: of the images and prompts.
    """
    plugin, random = Plugin(model_weight_file=checkpoint, cuda=False), np.random.default_rng(seed)
    process = psutil.Process()
    soaked = Soaked([], [], [], [], 0)
    refused = 0
    for run in range(runs):
        image = random.integers(0, 256, (*random.integers(*_SIDES, 2), 3), np.uint8)
        bad = random.random() < _SHARE_OF_BAD
        prompts = _BAD if bad else _GOOD
        prompt = prompts[random.integers(len(prompts))]
        if prompt.get("input_text") == "shoe":
            prompt = {"input_text": f"shoe {run}"}  # not in the cache
        start = time.perf_counter()
        try:
            plugin.segment(image, **prompt)
        except RuntimeError:
            if not bad:
                raise
            refused += 1
        soaked.seconds.append(time.perf_counter() - start)
        gc.collect()
        soaked.memory.append(resident_memory())
        soaked.files.append(len(process.open_files()))
        soaked.threads.append(process.num_threads())
    return dataclasses.replace(soaked, refused=refused)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON, without a verdict")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "small_random.pt"
        write_random_checkpoint(checkpoint, SMALL, seed=47)
        soaked = soak(checkpoint, arguments.runs)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(soaked)))
        return
    print(soaked)
    if faults := soaked.faults():
        raise SystemExit("; ".join(faults))


if __name__ == "__main__":
    main()
