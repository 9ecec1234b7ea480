"""What the benchmark found, as a table for people, with all that one has to know about where it was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_PACKAGES = ("torch", "sam3", "ikomia", "numpy")
_HEADINGS = ("measure", "plugin", "against", "result", "target", "met")


@dataclass(frozen=True)
class Row:
    """One measure.

    Attributes:
        measure: what was done.
        plugin: what the plugin took.
        against: what that is compared with, and took.
        result: the one over the other.
        target: what the result is to be.
        met: whether it is; None if there is no target.
    """

    measure: str
    plugin: str
    against: str
    result: str
    target: str = ""
    met: bool | None = None

    @classmethod
    def faster(cls, measure: str, seconds: float, against: str, theirs: float, at_least: float) -> Row:
        """A row for what is to take so many times less than what it is compared with."""
        ratio = theirs / seconds
        shown = f"{ratio:,.0f}× faster" if ratio >= 20 else f"{ratio:.1f}× faster"
        target = f"≥ {at_least:g}× faster"
        return cls(measure, in_seconds(seconds), f"{against}: {in_seconds(theirs)}", shown, target, ratio >= at_least)

    @classmethod
    def within(cls, measure: str, seconds: float, against: str, theirs: float, at_most: float) -> Row:
        """A row for what is to take at most so many times of what it is compared with."""
        ratio = seconds / theirs
        shown, target = f"{ratio:.2g}×" if ratio < 0.1 else f"{ratio:.2f}×", f"≤ {at_most:g}×"
        return cls(measure, in_seconds(seconds), f"{against}: {in_seconds(theirs)}", shown, target, ratio <= at_most)

    def __str__(self) -> str:
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        return _line((self.measure, self.plugin, self.against, self.result, self.target, met))


HEADER = "\n".join((f"| {' | '.join(_HEADINGS)} |", "|---" * len(_HEADINGS) + "|"))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def in_seconds(seconds: float) -> str:
    """Seconds as people read them."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def in_megabytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:,.0f} MB"


def circumstances(device: torch.device) -> list[str]:
    """The machine, the versions and the date, a line each."""
    memory = psutil.virtual_memory().total / 2**30
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES if _installed(name)]
    machine = f"{_processor()}, {torch.get_num_threads()} threads, {memory:.0f} GiB, {platform.system()}"
    if device.type == "cuda":
        machine += f"; {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return [
        f"- Machine: {machine}",
        f"- Versions: Python {platform.python_version()}, {', '.join(versions)}",
        f"- Date: {datetime.datetime.now(datetime.UTC).date()}",
    ]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
