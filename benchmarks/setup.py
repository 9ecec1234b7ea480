"""What the benchmarks run on: a checkpoint, the engine, and direct use of the sam3 package, on one device."""

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
EVERYTHING_SIDE = 32  # points


class User(Protocol):
    """A user of the plugin in a workflow, or of the engine alone."""

    def segment(self, image: np.ndarray, **parameters: Any) -> object:
        """Segment an image with some of the plugin's parameters, up to masks on the CPU."""

    def forget_answers(self, image: np.ndarray) -> None:
        """Clear the cached answers about an image, but keep its embedding."""


class EngineUser:
    """Uses the engine as the plugin does, without Ikomia."""

    def __init__(self, model: Model) -> None:
        self._predictor = Predictor(model)

    def segment(self, image: np.ndarray, **parameters: Any) -> list[np.ndarray]:
        """Return masks at the size of the image; for a text, one label map."""
        settings = Settings().updated({name: str(value) for name, value in parameters.items()})
        chosen = settings.prompt()
        assert chosen is not None
        segments = self._predictor.predict(image, chosen.prompt, settings.options)
        if isinstance(chosen.prompt, ConceptPrompt):
            return [label_map(segments, image.shape[1], image.shape[0])]
        return list(masks_of(segments))

    def forget_answers(self, image: np.ndarray) -> None:
        """Clear the cached answers about an image, but keep its embedding."""
        self._predictor.encode_image(image).detections.clear()


class Setup:
    """What all measurements use.

    Attributes:
        checkpoint: path of the weights.
        full_size: whether the network has SAM 3's own sizes, the only ones that the package can build.
        device: where both sides run.
        precision: dtype in which the plugin runs.
        precision_name: its name.
        repeat: repetitions of slow measurements, for the median.
        instances: number of instances where many are measured.
        predictor: the engine.
        user: the plugin in a workflow; on a GPU, the engine.
        image: (1200, 1800, 3) uint8, a synthetic scene.
    """

    def __init__(self, checkpoint: Path, full_size: bool, device: torch.device, repeat: int, instances: int) -> None:
        self.checkpoint = checkpoint
        self.full_size = full_size
        self.device = device
        self.repeat = repeat
        self.instances = instances
        model = load_model(checkpoint, device)
        self.precision = model.precision
        self.precision_name = str(model.precision).removeprefix("torch.")
        self.predictor = Predictor(model)
        self.image = draw_scene(np.random.default_rng(0), WIDTH, HEIGHT).image
        # on the CPU both sides use the same network, so that its weights are in memory once
        self._direct_network = model.network if device.type == "cpu" else package_network(checkpoint, device)
        self.user: User = EngineUser(model) if device.type == "cuda" else self._plugin()

    def direct(self, image: np.ndarray, precision: torch.dtype | None = None) -> DirectUse:
        """Encode an image with the package's ``set_image``, by default in the plugin's precision."""
        hole_area = self.predictor.model.architecture.fill_hole_area
        return DirectUse(self._direct_network, precision or self.precision, image, self.device, hole_area)

    def unseen_images(self) -> Iterator[np.ndarray]:
        """Yield images that are not in any cache."""
        return (np.roll(self.image, shift, axis=1) for shift in itertools.count(1))

    def _plugin(self) -> User:
        from testbed.plugin import Plugin

        logging.getLogger("ikomia").setLevel(logging.WARNING)  # Ikomia logs every run
        return Plugin(model_weight_file=self.checkpoint, cuda=False)
