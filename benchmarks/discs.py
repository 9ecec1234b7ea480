"""Discs that replace the masks of a network with random weights, which are specks all over the image."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from unittest import mock

import torch

from testbed.plugin import PLUGIN

_COLUMNS, _ROWS = 20, 10


@contextlib.contextmanager
def answering_discs() -> Iterator[None]:
    """Make the plugin answer without the network; load the model before.

    A phrase such as "20 discs" finds 20 discs. With "20 discs, third 2", they are in the second third of the image.
    """
    detector = sys.modules[f"{PLUGIN}.sam3_engine.detector"]

    def detect(_detector: object, _embedding: object, phrase: str, _examples: object) -> object:
        count, *third = map(int, re.findall(r"\d+", phrase))
        logits = discs(count, first=_COLUMNS * _ROWS // 3 * (third[0] - 1) if third else 0)
        return detector.Detections([0.9] * len(logits), [(0.0, 0.0, 1.0, 1.0)] * len(logits), logits)

    with mock.patch.object(detector.Detector, "detect", detect):
        yield


def discs(count: int, first: int = 0) -> torch.Tensor:
    """Return mask logits (count, 288, 288) bfloat16 of discs side by side, from the ``first``-th place on."""
    y, x = torch.meshgrid(torch.arange(288), torch.arange(288), indexing="ij")
    centres = [
        ((number % _COLUMNS + 0.5) * 288 / _COLUMNS, (number // _COLUMNS + 0.5) * 288 / _ROWS)
        for number in range(first, first + count)
    ]
    return torch.stack([6 - ((x - left) ** 2 + (y - top) ** 2).sqrt() for left, top in centres]).bfloat16()
