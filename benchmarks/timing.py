"""How the benchmark measures: seconds in turn, seconds of parts, memory, a process of its own."""

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
    """How long a call takes, whatever it has started on a GPU included."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(repeat: int, **calls: Callable[[], object]) -> dict[str, float]:
    """The median seconds of each call; they take turns, so that what slows the machine for a while slows them all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call))
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def watching(places: Mapping[str, tuple[object, str]]) -> Iterator[dict[str, float]]:
    """Meanwhile, how many seconds are spent in each of ``places``: an owner and the name of its function."""
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
    """What a module prints last when it is run in a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def resident_memory() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """The most bytes that this process has had in memory since it began."""
    status = Path("/proc/self/status")  # resource.getrusage() would reckon in the process that started this one
    if status.exists():
        (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(kilobytes) * 1024
    return int(psutil.Process().memory_info().peak_wset)  # Windows
