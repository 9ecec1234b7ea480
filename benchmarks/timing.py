"""How the benchmark measures: seconds in turn, seconds of parts, memory, a process of its own."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import psutil
import torch

_SECONDS_BETWEEN_SAMPLES = 0.002


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


class PeakMemory:
    """Watches this process's memory for the length of a ``with`` block.

    Attributes:
        before, peak: bytes in memory when it began, and at most since.
    """

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = resident_memory()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(_SECONDS_BETWEEN_SAMPLES):
            self.peak = max(self.peak, resident_memory())
