"""Discs in the place of what a network of random weights finds, whose masks are specks all over the image."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from unittest import mock

import torch

from testbed.plugin import PLUGIN

MANY = 200  # as many as SAM 3 has queries


@contextlib.contextmanager
def answering_discs() -> Iterator[None]:
    """Meanwhile the plugin, once it has a network, answers "20 discs" with so many, and does not ask the network."""
    predictor = sys.modules[f"{PLUGIN}.sam3_engine.predictor"]

    def detect(_predictor: object, _embedding: object, phrase: str, _examples: object) -> object:
        logits = discs(int(phrase.split()[0]))
        return predictor._Instances([0.9] * len(logits), [(0.0, 0.0, 1.0, 1.0)] * len(logits), logits)

    with mock.patch.object(predictor.Predictor, "_detect", detect):
        yield


def discs(count: int) -> torch.Tensor:
    """(count, 288, 288) mask logits in bfloat16 of discs side by side."""
    columns, rows = 20, 10
    y, x = torch.meshgrid(torch.arange(288), torch.arange(288), indexing="ij")
    centres = [
        ((number % columns + 0.5) * 288 / columns, (number // columns + 0.5) * 288 / rows) for number in range(count)
    ]
    return torch.stack([6 - ((x - left) ** 2 + (y - top) ** 2).sqrt() for left, top in centres]).bfloat16()
