"""Nothing grows over many runs: a short `make soak`, and its checks."""

import json

import pytest

from benchmarks.soak import Soaked
from benchmarks.timing import last_line_of

FLAT = {"memory": [10**9] * 100, "files": [5] * 100, "threads": [9] * 100, "seconds": [0.1] * 100, "refused": 7}


def test_a_hundred_runs_leave_nothing_behind():
    soaked = Soaked(**json.loads(last_line_of("benchmarks.soak", "--runs", 100, "--json")))
    assert len(soaked.memory) == 100
    assert 0 < soaked.refused < 40
    assert [fault for fault in soaked.faults() if "as long" not in fault] == []  # a busy machine may be slow


@pytest.mark.parametrize(
    ("what", "watched", "fault"),
    [
        ("memory", [10**9 + 10**6 * run for run in range(100)], "memory grew by 80 MB"),
        ("files", [5] * 95 + [6] * 5, "open files increased from 5 to 6"),
        ("threads", [9] * 50 + [10] * 50, "threads increased from 9 to 10"),
        ("seconds", [0.1] * 50 + [0.2] * 50, "runs take 2.0 times as long"),
    ],
)
def test_growing_resources_are_reported(what, watched, fault):
    assert Soaked(**FLAT).faults() == []
    soaked = Soaked(**{**FLAT, what: watched})
    assert soaked.faults() == [fault]
    assert "7 runs had an invalid prompt" in str(soaked)
