"""SAM 3 used as the sam3 package documents it: the reference that the plugin must agree with."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from sam3_engine.contexts import building_network, importing_sam3, inference
from sam3_engine.model import Sam3Image
from sam3_engine.network import vocabulary_path

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor
    from sam3.model_builder import build_sam3_image_model

CPU = torch.device("cpu")


class DirectUse:
    """The package on one image: ``set_image``, then the calls of its processor or ``predict_inst``.

    Args:
        network: of the package, or of the engine.
        precision: dtype to run in.
        image: (H, W, 3) uint8.
        device: where to run.
        max_hole_area: of the holes that the package fills, in mask logits. The engine's networks fill none by
            themselves.
    """

    def __init__(
        self,
        network: Sam3Image,
        precision: torch.dtype,
        image: np.ndarray,
        device: torch.device = CPU,
        max_hole_area: int = 256,
    ) -> None:
        self._network = network
        self._precision = precision
        self._device = device
        self._max_hole_area = max_hole_area
        self._resolution = network.inst_interactive_predictor.model.image_size
        with inference(device, precision):
            self._state = Sam3Processor(network, self._resolution, device).set_image(PIL.Image.fromarray(image))

    def concept(
        self, phrase: str, threshold: float, boxes: Sequence[Sequence[float]] = (), labels: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Segment every instance of a concept.

        Args:
            phrase: blank if only boxes say what to find.
            threshold: keep instances with a score above it.
            boxes: example boxes (x1, y1, x2, y2) in pixels.
            labels: one per box, 1 for a positive and 0 for a negative example.

        Returns:
            Masks (instances, H, W) bool and scores (instances,), highest score first.
        """
        width, height = self._state["original_width"], self._state["original_height"]
        found = self._state
        with inference(self._device, self._precision):
            processor = Sam3Processor(self._network, self._resolution, self._device, confidence_threshold=threshold)
            processor.reset_all_prompts(found)
            if phrase:
                found = processor.set_text_prompt(phrase, found)
            for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
                found = processor.add_geometric_prompt(box, bool(label), found)
        order = found["scores"].float().argsort(descending=True, stable=True)
        return found["masks"][order, 0].cpu().numpy(), found["scores"][order].float().cpu().numpy()

    def geometry(self, multimask: bool, **prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment objects by points or boxes.

        Args:
            multimask: return three candidates per object instead of one.
            prompt: arguments of ``predict_inst``.

        Returns:
            Masks (objects, candidates, H, W) bool and scores (objects, candidates), best candidate first.
        """
        with inference(self._device, self._precision), self._filling_holes():
            masks, scores, _ = self._network.predict_inst(self._state, multimask_output=multimask, **prompt)
        scores = np.atleast_2d(scores)  # for one object the package omits the first axis
        masks = masks.reshape(*scores.shape, *masks.shape[-2:]).astype(bool)
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(masks, order[:, :, None, None], axis=1), np.take_along_axis(scores, order, axis=1)

    @contextlib.contextmanager
    def _filling_holes(self) -> Iterator[None]:
        transforms = self._network.inst_interactive_predictor._transforms
        own = transforms.max_hole_area
        transforms.max_hole_area = self._max_hole_area
        try:
            yield
        finally:
            transforms.max_hole_area = own


def package_network(checkpoint: Path | None, device: torch.device = CPU) -> Sam3Image:
    """Build the network and load a checkpoint as the package does; without a checkpoint, the network has no weights."""
    with building_network(device, without_weights=checkpoint is None):
        network = build_sam3_image_model(
            bpe_path=str(vocabulary_path()),
            device=device.type,
            checkpoint_path=str(checkpoint) if checkpoint else None,
            load_from_HF=False,
            enable_inst_interactivity=True,
        )
        network.inst_interactive_predictor.model.bf16_context.__exit__(None, None, None)
    return network


def label_map(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Paint masks (instances, H, W) into a map (H, W) uint8: k for the k-th mask.

    Where masks overlap, the higher score wins; of equal scores the earlier.
    """
    painted = np.zeros(masks.shape[-2:], np.uint8)
    for index in reversed(np.argsort(-scores, kind="stable")):
        painted[masks[index]] = index + 1
    return painted
