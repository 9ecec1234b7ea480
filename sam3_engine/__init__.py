"""SAM 3 image segmentation by phrases, example boxes, points and boxes, or of everything.

    from sam3_engine import ConceptPrompt, Options, open_predictor

    predictor = open_predictor()
    segments = predictor.predict(image, ConceptPrompt(("shoe",)), Options(confidence_threshold=0.3))

Importing this package imports neither torch nor sam3: names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedding import ImageEmbedding
    from .errors import CheckpointError, DeviceMemoryError, ImageError, PromptError, WeightFileError, WeightsError
    from .image_files import read_image
    from .options import Options
    from .predictor import Predictor, open_predictor
    from .prompts import ConceptPrompt, EverythingPrompt, GeometricPrompt
    from .segments import Segment, label_map, masks_of

__version__ = "1.0.0"

_MODULES = {
    "CheckpointError": "errors",
    "ConceptPrompt": "prompts",
    "DeviceMemoryError": "errors",
    "EverythingPrompt": "prompts",
    "GeometricPrompt": "prompts",
    "ImageEmbedding": "embedding",
    "ImageError": "errors",
    "Options": "options",
    "Predictor": "predictor",
    "PromptError": "errors",
    "Segment": "segments",
    "WeightFileError": "errors",
    "WeightsError": "errors",
    "label_map": "segments",
    "masks_of": "segments",
    "open_predictor": "predictor",
    "read_image": "image_files",
}

__all__ = [
    "CheckpointError",
    "ConceptPrompt",
    "DeviceMemoryError",
    "EverythingPrompt",
    "GeometricPrompt",
    "ImageEmbedding",
    "ImageError",
    "Options",
    "Predictor",
    "PromptError",
    "Segment",
    "WeightFileError",
    "WeightsError",
    "label_map",
    "masks_of",
    "open_predictor",
    "read_image",
]


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
