"""Load a checkpoint in a separate process, for :mod:`benchmarks`; print time and memory as JSON.

python -m benchmarks.load plugin sam3.pt cpu
python -m benchmarks.load sam3 sam3.pt cpu     # also encodes an image and segments with a point
python -m benchmarks.load transformers folder cpu
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.setup import HEIGHT, POINT, WIDTH
from benchmarks.timing import peak_memory, seconds_of
from sam3_engine.devices import choose_precision
from sam3_engine.model import Sam3Image, load_model
from testbed.direct_use import DirectUse, package_network


def main() -> None:
    """Run the command line."""
    side, checkpoint, device = sys.argv[1], Path(sys.argv[2]), torch.device(sys.argv[3])
    networks: list[Any] = []

    def load() -> None:
        if side == "transformers":
            networks.extend(load_transformers(checkpoint, device, choose_precision(device)))
        elif side == "plugin":
            networks.append(load_model(checkpoint, device).network)
        else:
            networks.append(package_network(checkpoint, device))

    if side == "transformers":  # imported before the time is taken, as torch and sam3 are
        from benchmarks.peer_rows import load_transformers

    found = {"load": seconds_of(load), "peak": peak_memory()}
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated()
    if side == "sam3":
        found["prompt"] = seconds_of(lambda: _prompt(networks[0], device))
    print(json.dumps(found))


def _prompt(network: Sam3Image, device: torch.device) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    DirectUse(network, choose_precision(device), image, device).geometry(
        False, point_coords=np.array([POINT]), point_labels=np.array([1])
    )


if __name__ == "__main__":
    main()
