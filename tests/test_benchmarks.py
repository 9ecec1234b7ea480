"""The benchmark runs and writes its table. No test depends on the times that it measures."""

import re
import subprocess
import sys

import pytest

from benchmarks import layouts
from benchmarks.__main__ import main
from benchmarks.report import Row
from benchmarks.timing import in_turn, watching
from testbed.plugin import REPOSITORY


def test_a_small_network_fills_every_row_that_does_not_need_full_size(monkeypatch, tmp_path, capsys):
    page = tmp_path / "results.md"
    options = ["--small", "--repeat", "1", "--runs", "20", "--instances", "20", "--output", str(page)]
    monkeypatch.setattr("sys.argv", ["benchmarks", *options])
    main()
    written = page.read_text(encoding="utf-8")
    assert written in capsys.readouterr().out
    for fact in ("Machine: ", "Versions: Python ", "Date: ", "Network: small sizes"):
        assert f"- {fact}" in written
    rows = re.findall(r"^\| (.+?) \| .* \|  \|  \|$", written, re.MULTILINE)  # targets apply only to the full size
    assert len(rows) == len(set(rows)) == 31
    assert "| 0 loads, 1 encoding |" in written
    assert re.search(r"^\| 8 runs with other parameters \| 0 loads \|", written, re.MULTILINE)


def test_the_comparison_of_layouts_says_what_each_file_answers(monkeypatch, tmp_path, capsys):
    page = tmp_path / "layouts.md"
    monkeypatch.setattr(layouts, "_MEASURED", ("sam3, safetensors", "transformers, sharded", "fine-tuned"))
    monkeypatch.setattr("sys.argv", ["layouts", "--small", "--repeat", "1", "--output", str(page)])
    layouts.main()
    written = page.read_text(encoding="utf-8")
    assert written == capsys.readouterr().out
    rows = re.findall(r"^\| ([a-z].*?) \| (.*) \| \d+ MB \| [\d.]+ m?s \| \d+ MB \|$", written, re.MULTILINE)
    identical = "identical | identical"
    assert rows == [
        ("sam3, safetensors", f"{identical} | {identical}"),
        ("transformers, sharded", f"{identical} | {identical}"),
        ("fine-tuned", f"{identical} | no | no"),
    ]


@pytest.mark.parametrize(
    ("row", "result", "met"),
    [
        (Row.faster("x", 2.0, "y", 30.0, 10), "15.0× faster", True),
        (Row.faster("x", 2.0, "y", 18.0, 10), "9.0× faster", False),
        (Row.within("x", 1.02, "y", 1.0, 1.03), "1.02×", True),
        (Row.within("x", 1.05, "y", 1.0, 1.03), "1.05×", False),
    ],
)
def test_a_row_says_whether_it_meets_its_target(row, result, met):
    assert (row.result, row.met) == (result, met)


def test_calls_take_turns():
    order = []
    medians = in_turn(3, first=lambda: order.append(1), second=lambda: order.append(2))
    assert order == [1, 2] * 3
    assert set(medians) == {"first", "second"}


def test_watched_functions_are_restored():
    original = sys.getsizeof
    with watching({"size": (sys, "getsizeof")}) as seconds:
        assert sys.getsizeof([]) > 0
    assert seconds["size"] > 0
    assert sys.getsizeof is original


def test_peak_memory_includes_freed_memory():
    code = """
import numpy as np
from benchmarks.timing import peak_memory, resident_memory
before = peak_memory()
block = np.ones(200_000_000, np.uint8)
del block
print(before, peak_memory(), resident_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    before, peak, after = map(int, done.stdout.split())
    assert peak - before > 150e6
    assert peak - after > 150e6
