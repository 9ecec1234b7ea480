"""What a run has done so far, and messages about it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import pyarrow as pa

_SHORTEST_INTERVAL = 1.0  # seconds between two messages, at the start of a run
_LONGEST_INTERVAL = 60.0


@dataclass(frozen=True)
class Progress:
    """Counts of a run.

    Attributes:
        images: images that got a row.
        failures: images whose row contains an error.
        instances: instances found.
        remaining: images that have no row yet.
    """

    images: int = 0
    failures: int = 0
    instances: int = 0
    remaining: int = 0

    def after(self, rows: pa.Table) -> Progress:
        """Return the counts after more rows were added."""
        return Progress(
            images=self.images + len(rows),
            failures=self.failures + sum(status == "error" for status in rows["status"].to_pylist()),
            instances=self.instances + sum(len(found) for found in rows["instances"] if found.is_valid),
            remaining=self.remaining - len(rows),
        )

    def describe(self, seconds: float) -> str:
        """Describe what was found, and the speed of a run that has taken ``seconds``."""
        return f"{self.instances} instances, {self.failures} failures, {self.images / seconds:.1f} images per second"


class Reporter:
    """Prints the progress of a run, often at its start and less often later."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()

    def report(self, progress: Progress) -> None:
        """Print the progress, unless the last message is recent."""
        now = time.monotonic()
        seconds = now - self._start
        if now - self._last < min(max(_SHORTEST_INTERVAL, seconds / 20), _LONGEST_INTERVAL):
            return
        self._last = now
        total = progress.images + progress.remaining
        remaining = format_duration(progress.remaining * seconds / progress.images)
        print_message(f"{progress.images} of {total} images, {progress.describe(seconds)}, {remaining} left")


def format_duration(seconds: float) -> str:
    """Return a duration in hours and minutes, or in minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def print_message(line: str) -> None:
    """Print a line to stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)
