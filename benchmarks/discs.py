"""Discs that replace the masks of a network with random weights, which are specks all over the image."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from unittest import mock

import torch

from testbed.plugin import PLUGIN


@contextlib.contextmanager
def answering_discs() -> Iterator[None]:
    """Make the plugin answer a phrase such as "20 discs" with 20 discs, without the network; load the model before."""
    detector = sys.modules[f"{PLUGIN}.sam3_engine.detector"]

    def detect(_detector: object, _embedding: object, phrase: str, _examples: object) -> object:
        logits = discs(int(phrase.split()[0]))
        return detector.Detections([0.9] * len(logits), [(0.0, 0.0, 1.0, 1.0)] * len(logits), logits)

    with mock.patch.object(detector.Detector, "detect", detect):
        yield


def discs(count: int) -> torch.Tensor:
    """Return mask logits (count, 288, 288) bfloat16 of discs side by side."""
    columns, rows = 20, 10
    y, x = torch.meshgrid(torch.arange(288), torch.arange(288), indexing="ij")
    centres = [
        ((number % columns + 0.5) * 288 / columns, (number // columns + 0.5) * 288 / rows) for number in range(count)
    ]
    return torch.stack([6 - ((x - left) ** 2 + (y - top) ** 2).sqrt() for left, top in centres]).bfloat16()
