"""Write a checkpoint of seeded random weights.

    python -m testbed.random_weights sam3_random.pt            # full size, 3.45 GB
    python -m testbed.random_weights small_random.pt --small   # 4 MB

Tests, timings and measurements of memory that need a network of SAM 3's size, but no right masks, use such a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sam3_engine.architecture import Architecture
from sam3_engine.random_weights import SMALL, write_random_checkpoint

FULL_SIZE_FILE = Path(__file__).resolve().parent.parent / ".cache" / "sam3_random.pt"


def full_size_checkpoint() -> Path:
    """Return a checkpoint of SAM 3's own sizes; the first call writes it to ``.cache`` (a minute, 3.45 GB)."""
    if not FULL_SIZE_FILE.exists():
        FULL_SIZE_FILE.parent.mkdir(exist_ok=True)
        unfinished = FULL_SIZE_FILE.with_suffix(".unfinished")
        write_random_checkpoint(unfinished, Architecture(), seed=1)
        unfinished.rename(FULL_SIZE_FILE)
    return FULL_SIZE_FILE


def _main() -> None:
    parser = argparse.ArgumentParser(description="Write a SAM 3 checkpoint of seeded random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--small", action="store_true", help="a network of small sizes instead of SAM 3's own")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_random_checkpoint(arguments.path, SMALL if arguments.small else Architecture(), arguments.seed)


if __name__ == "__main__":
    _main()
