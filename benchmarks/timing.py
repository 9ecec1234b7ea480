"""Measure times and memory."""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import psutil
import torch


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes, including its work on a GPU."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(repeat: int, **calls: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds of each call; calls alternate, so that a slow phase of the machine affects them all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call))
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def watching(places: Mapping[str, tuple[object, str]]) -> Iterator[dict[str, float]]:
    """Measure how many seconds are spent in functions, given by name as pairs of an owner and an attribute."""
    seconds = dict.fromkeys(places, 0.0)
    with contextlib.ExitStack() as patches:
        for name, (owner, function) in places.items():
            patches.enter_context(mock.patch.object(owner, function, _timed(getattr(owner, function), seconds, name)))
        yield seconds


def _timed(function: Callable[..., object], seconds: dict[str, float], name: str) -> Callable[..., object]:
    def timed(*arguments: object, **options: object) -> object:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] += time.perf_counter() - start

    return timed


def last_line_of(module: str, *arguments: object) -> str:
    """Run a module in a separate process and return the last line that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def resident_memory() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")  # resource.getrusage() would include the process that started this one
    if status.exists():
        (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
        return int(kilobytes) * 1024
    return int(psutil.Process().memory_info().peak_wset)  # Windows
