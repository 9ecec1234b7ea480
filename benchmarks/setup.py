"""What the benchmark measures on: a checkpoint, the engine, and the package used directly, on one device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sam3_engine.model import Model, load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt
from sam3_engine.segments import label_map, masks_of
from sam3_engine.settings import Settings
from testbed.direct_use import DirectUse, package_network
from testbed.scenes import draw_scene

WIDTH, HEIGHT = 1800, 1200
POINT = (520.0, 375.0)
BOX = (425.0, 600.0, 700.0, 875.0)


class User(Protocol):
    """Someone who asks for masks: the whole plugin in a workflow, or the engine alone."""

    def segment(self, image: np.ndarray, **parameters: Any) -> object:
        """Segment ``image`` as the plugin's parameters say, up to masks on the CPU."""

    def forget_answers(self, image: np.ndarray) -> None:
        """Forget what the network answered about ``image``, but not its embedding."""


class EngineUser:
    """The engine used as the plugin uses it, where there is no Ikomia."""

    def __init__(self, model: Model) -> None:
        self._predictor = Predictor(model)

    def segment(self, image: np.ndarray, **parameters: Any) -> list[np.ndarray]:
        """Masks, or for a text a label map, of the image's size."""
        settings = Settings().updated({name: str(value) for name, value in parameters.items()})
        prompt = settings.prompt()
        assert prompt is not None
        segments = self._predictor.segment(
            self._predictor.encode_image(image),
            prompt,
            confidence_threshold=settings.confidence_threshold,
            iou_threshold=settings.iou_threshold,
            multimask=settings.multimask_output,
        )
        if isinstance(prompt, ConceptPrompt):
            return [label_map(segments, image.shape[1], image.shape[0])]
        return list(masks_of(segments))

    def forget_answers(self, image: np.ndarray) -> None:
        """Forget what the network answered about ``image``, but not its embedding."""
        self._predictor.encode_image(image).answers.clear()


class Setup:
    """What the rows are measured on.

    Attributes:
        checkpoint: the file of weights.
        full_size: whether it has SAM 3's own sizes, the only ones that the package can build.
        device, precision, precision_name: where and in what the plugin runs.
        repeat: of how many runs the median counts.
        predictor: the engine.
        user: who asks for masks.
        image: (1200, 1800, 3) uint8, a drawn scene.
    """

    def __init__(self, checkpoint: Path, full_size: bool, device: torch.device, repeat: int) -> None:
        self.checkpoint = checkpoint
        self.full_size = full_size
        self.device = device
        self.repeat = repeat
        model = load_model(checkpoint, device)
        self.precision = model.precision
        self.precision_name = str(model.precision).removeprefix("torch.")
        self.predictor = Predictor(model)
        self.image = draw_scene(np.random.default_rng(0), WIDTH, HEIGHT).image
        # on a CPU both sides use the same network, which has its weights in the same memory
        self._direct_network = model.network if device.type == "cpu" else package_network(checkpoint, device)
        self.user: User = EngineUser(model) if device.type == "cuda" else self._plugin()

    def direct(self, image: np.ndarray, precision: torch.dtype | None = None) -> DirectUse:
        """The package's own ``set_image``, by default in the plugin's precision."""
        return DirectUse(self._direct_network, precision or self.precision, image, self.device)

    def unseen_images(self) -> Iterator[np.ndarray]:
        """Images that no one has seen before."""
        return (np.roll(self.image, shift, axis=1) for shift in itertools.count(1))

    def _plugin(self) -> User:
        from testbed.plugin import Plugin

        logging.getLogger("ikomia").setLevel(logging.WARNING)  # else it tells of every run
        return Plugin(model_weight_file=self.checkpoint, cuda=False)
