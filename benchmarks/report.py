"""The table of results, and a description of the machine."""

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
    """One measurement.

    Attributes:
        measure: what was measured.
        plugin: result of the plugin.
        against: what it is compared with, and its result.
        result: the comparison.
        target: what the comparison should be.
        met: whether the target is met; None if there is no target.
    """

    measure: str
    plugin: str
    against: str
    result: str
    target: str = ""
    met: bool | None = None

    @classmethod
    def faster(cls, measure: str, seconds: float, against: str, theirs: float, at_least: float) -> Row:
        """Return a row whose target is to be at least ``at_least`` times faster."""
        ratio = theirs / seconds
        shown = f"{ratio:,.0f}× faster" if ratio >= 20 else f"{ratio:.1f}× faster"
        target = f"≥ {at_least:g}× faster"
        return cls(measure, in_seconds(seconds), f"{against}: {in_seconds(theirs)}", shown, target, ratio >= at_least)

    @classmethod
    def within(cls, measure: str, seconds: float, against: str, theirs: float, at_most: float) -> Row:
        """Return a row whose target is to take at most ``at_most`` times as long."""
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
    """Format seconds."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def in_megabytes(size: float) -> str:
    """Format bytes as megabytes."""
    return f"{size / 1e6:,.0f} MB"


def circumstances(device: torch.device) -> list[str]:
    """Return a line each about the machine, the versions and the date."""
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
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
