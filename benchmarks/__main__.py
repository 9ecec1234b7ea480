"""Compare the plugin with direct use of the sam3 package.

    python -m benchmarks            # full-size network with random weights, on the CPU: a quarter of an hour
    python -m benchmarks --cuda     # the engine without Ikomia, on a GPU
    python -m benchmarks --small    # a small network, to try out the benchmark itself

Prints a table of medians; --output also writes it to a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.engine_rows import encoding_rows, everything_row, prompt_rows, tile_row
from benchmarks.report import HEADER, Row, circumstances
from benchmarks.setup import HEIGHT, WIDTH, Setup
from sam3_engine.random_weights import SMALL, write_random_checkpoint
from testbed.random_weights import full_size_checkpoint


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--cuda", action="store_true", help="measure the engine alone, on a GPU")
    network.add_argument("--small", action="store_true", help="use a small network")
    parser.add_argument(
        "--repeat", type=int, default=3, help="repetitions of each slow measurement, for the median (default: 3)"
    )
    parser.add_argument("--runs", type=int, default=1000, help="length of the long series of runs (default: 1000)")
    parser.add_argument(
        "--instances", type=int, default=200, help="number of instances where many are measured (default: 200)"
    )
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if arguments.small:
            checkpoint = Path(folder) / "small_random.pt"
            write_random_checkpoint(checkpoint, SMALL, seed=47)
        else:
            checkpoint = full_size_checkpoint()
        _into_file_cache(checkpoint)
        device = torch.device("cuda" if arguments.cuda else "cpu")
        setup = Setup(checkpoint, not arguments.small, device, arguments.repeat, arguments.instances)
        lines = []
        for line in itertools.chain(_heading(setup), map(str, _rows(setup, arguments.runs))):
            print(line, flush=True)
            lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _into_file_cache(checkpoint: Path) -> None:
    """Read the file once, so that neither side waits for the disk."""
    with checkpoint.open("rb") as file:
        while file.read(2**24):
            pass


def _heading(setup: Setup) -> Iterator[str]:
    size = "SAM 3's own sizes" if setup.full_size else "small sizes"
    yield "# Benchmark results\n"
    yield from circumstances(setup.device)
    yield f"- Network: {size}, random weights; the plugin runs it in {setup.precision_name}"
    yield f"- Image: {WIDTH}×{HEIGHT}, a synthetic scene\n"
    yield HEADER


def _rows(setup: Setup, runs: int) -> Iterator[Row]:
    """Yield all rows; targets apply only to SAM 3's own sizes."""
    for row in _measured(setup, runs):
        yield row if setup.full_size else dataclasses.replace(row, target="", met=None)


def _measured(setup: Setup, runs: int) -> Iterator[Row]:
    yield from encoding_rows(setup)
    yield tile_row(setup)
    yield from prompt_rows(setup)
    yield everything_row(setup)
    if importlib.util.find_spec("transformers"):  # a GPU machine may have none
        from benchmarks.peer_rows import peer_rows

        yield from peer_rows(setup)
    if setup.device.type == "cpu":
        from benchmarks.plugin_rows import (
            everything_memory_row,
            first_mask_row,
            long_series_rows,
            memory_rows,
            outside_rows,
            reuse_rows,
            tile_memory_row,
        )

        yield from reuse_rows(setup)
        yield from outside_rows(setup)
        yield from memory_rows(setup)
        yield tile_memory_row(setup)
        yield everything_memory_row(setup)
        yield first_mask_row(setup)
        yield from long_series_rows(runs)


if __name__ == "__main__":
    main()
