"""The plugin's parameters: typed, checked, and as the strings in which they travel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .parsing import quote
from .prompts import GeometricPrompt, Prompt, choose_prompt
from .runtime import cuda_present


@dataclass(frozen=True)
class Settings:
    """The plugin's parameters.

    Attributes:
        cuda: run on CUDA if there is one.
        input_size_percent: 1..100, the image is shrunk to this before inference.
        confidence_threshold: 0..1, text and example boxes only: instances scoring strictly above it are kept.
        iou_threshold: 0..1, text and example boxes only: instances that overlap a better one more are dropped.
        input_text: noun phrase, or several as typed, ``["shoe", "person"]``.
        input_box: boxes as typed, ``[[x1, y1, x2, y2], ...]`` in source-image pixels.
        input_box_label: labels as typed, one per box, which make examples of the boxes: 1 what to find, 0 what not.
        input_point: points as typed, ``[[x, y], ...]`` in source-image pixels.
        input_point_label: labels as typed, one per point, 1 foreground, 0 background.
        multimask_output: points and boxes only, three candidate masks for each object.
        instance_output: one more output with every segment as an object: label, score, box, mask.
        model_input_size: side of the network's square input in pixels, 112..2016; 0 for the checkpoint's own.
        model_weight_file: path of a local checkpoint; blank for the published weights.
    """

    cuda: bool = field(default_factory=cuda_present)
    input_size_percent: int = 100
    confidence_threshold: float = 0.5
    iou_threshold: float = 1.0
    input_text: str = ""
    input_box: str = ""
    input_box_label: str = ""
    input_point: str = ""
    input_point_label: str = ""
    multimask_output: bool = False
    instance_output: bool = False
    model_input_size: int = 0
    model_weight_file: str = ""

    def updated(self, strings: Mapping[str, str]) -> Settings:
        """These settings with those in ``strings`` replaced; unknown names are ignored.

        Numbers and booleans are checked here; prompts are kept as typed and checked by :meth:`prompt`.

        Raises:
            ValueError: a value is not what its parameter expects.
        """
        return replace(self, **{name: read(name, strings[name]) for name, read in _READERS.items() if name in strings})

    def to_strings(self) -> dict[str, str]:
        """All parameters as strings, the inverse of :meth:`updated`."""
        return {name: str(value) for name, value in asdict(self).items()}

    def prompt(self, drawn: GeometricPrompt | None = None) -> Prompt | None:
        """The prompt that counts, see :func:`~sam3_engine.prompts.choose_prompt`."""
        return choose_prompt(
            self.input_text, self.input_box, self.input_box_label, self.input_point, self.input_point_label, drawn
        )


def _read_bool(name: str, text: str) -> bool:
    if text.strip().lower() in ("true", "1", "yes", "on"):
        return True
    if text.strip().lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{name} = {quote(text)}: expected True or False.")


def _read_percent(name: str, text: str) -> int:
    percent = _read_number(text)
    if not (1 <= percent <= 100 and percent == int(percent)):
        raise ValueError(f"{name} = {quote(text)}: expected a whole number from 1 to 100.")
    return int(percent)


def _read_model_input_size(name: str, text: str) -> int:
    size = _read_number(text)
    if not (size == 0 or (112 <= size <= 2016 and size == int(size))):
        raise ValueError(f"{name} = {quote(text)}: expected 0, or a whole number from 112 to 2016.")
    return int(size)


def _read_fraction(name: str, text: str) -> float:
    fraction = _read_number(text)
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name} = {quote(text)}: expected a number from 0 to 1.")
    return fraction


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # within no range


def _read_text(name: str, text: str) -> str:
    return text


_READERS: dict[str, Callable[[str, str], Any]] = {
    "cuda": _read_bool,
    "input_size_percent": _read_percent,
    "confidence_threshold": _read_fraction,
    "iou_threshold": _read_fraction,
    "input_text": _read_text,
    "input_box": _read_text,
    "input_box_label": _read_text,
    "input_point": _read_text,
    "input_point_label": _read_text,
    "multimask_output": _read_bool,
    "instance_output": _read_bool,
    "model_input_size": _read_model_input_size,
    "model_weight_file": _read_text,
}
