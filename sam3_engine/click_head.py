"""Points and boxes: the masks of single objects.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .embedding import ImageEmbedding
from .fitting import FittedPrompt
from .internals import forget_image, mask_logits_side
from .model import Model, NotFiniteError, Sam3Image
from .options import CANDIDATES, Options
from .prompts import FOREGROUND, Box, GeometricPrompt, Point
from .regions import fill_holes, fill_small_holes, remove_small_regions
from .segments import Segment
from .weight_precision import to_precision

_BOXES_PER_PASS = 16  # bounds the memory of the mask decoder
# Of several points, each with three candidates: 4 points on a CPU, and 64 on a GPU, at SAM 3's size. On a CPU, the
# intermediate results of more points do not fit in its caches, and a point takes twice as long.
_LOGITS_PER_PASS = {"cpu": 4 * 3 * 288**2, "cuda": 64 * 3 * 288**2}


class ClickHead:
    """SAM 3's interactive head, which answers points and boxes, at one input size.

    Call its methods inside :meth:`~.model.Model.infer`.

    Args:
        model: the model that made the embeddings.
        network: the network of ``model`` at the input size of the embeddings.
        resolution: that input size, in pixels.

    Attributes:
        points_per_pass: how many points to ask for at once in :meth:`candidates`.
    """

    def __init__(self, model: Model, network: Sam3Image, resolution: int) -> None:
        self._model = model
        self._network = network
        self._max_hole_area = model.architecture.resized(resolution).fill_hole_area
        self._mask_side = mask_logits_side(network)
        self.points_per_pass = max(1, _LOGITS_PER_PASS[model.device.type] // (CANDIDATES * self._mask_side**2))

    def segment(
        self, embedding: ImageEmbedding, fitted: FittedPrompt, options: Options, on_step: Callable[[], None]
    ) -> list[Segment]:
        """Return the objects of a :class:`~.prompts.GeometricPrompt` in the order of its boxes.

        With ``options.multimask``, each has three candidates, by descending score. ``on_step`` is called before each
        pass.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """
        prompt = fitted.prompt
        assert isinstance(prompt, GeometricPrompt)
        points = {
            "point_coords": np.array(fitted.relative_points) if prompt.points else None,
            "point_labels": np.array(prompt.point_labels) if prompt.points else None,
        }
        segments: list[Segment] = []
        for boxes, labels in _split_into_passes(fitted.relative_boxes, prompt.labels):
            on_step()
            segments += self._segment_pass(embedding, boxes, points, labels, options.multimask)
        return remove_small_regions(segments, options.min_region_percent)

    def _segment_pass(
        self,
        embedding: ImageEmbedding,
        boxes: Sequence[Box],
        points: Mapping[str, Any],
        labels: Sequence[str],
        multimask: bool,
    ) -> Iterator[Segment]:
        mask_logits, scores = self._predict(embedding, boxes, points, multimask)
        # the package would leave holes unfilled, without a word, where Triton has no compiler or memory runs out
        logits = self.to_device(fill_small_holes(mask_logits, self._max_hole_area))
        logits = logits.reshape(len(labels), -1, self._mask_side, self._mask_side)
        scores = scores.reshape(len(labels), -1)
        for label, object_logits, object_scores in zip(labels, logits, scores, strict=True):
            for candidate in np.argsort(-object_scores, kind="stable"):
                score = float(object_scores[candidate])
                yield Segment(object_logits[candidate], embedding.width, embedding.height, score, label)

    def candidates(self, embedding: ImageEmbedding, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        """Return three candidates for the object at each of several points.

        Args:
            embedding: of the image.
            points: as fractions of the image's width and height, one for each object.

        Returns:
            Mask logits (3 * points, h, w) and scores (3 * points,), float32. Holes are not filled.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """
        foreground = np.full((len(points), 1), FOREGROUND)
        of_each = {"point_coords": np.array(points)[:, np.newaxis], "point_labels": foreground}
        return self._predict(embedding, (), of_each, multimask=True)

    def fill_holes(self, segments: Sequence[Segment]) -> list[Segment]:
        """Fill the holes of candidates, as :meth:`segment` does."""
        return fill_holes(segments, self._max_hole_area)

    def to_device(self, mask_logits: np.ndarray) -> torch.Tensor:
        """Copy mask logits to the model's device, where masks are computed: logits are smaller than masks."""
        return torch.from_numpy(mask_logits).to(self._model.device)

    def _predict(
        self, embedding: ImageEmbedding, boxes: Sequence[Box], points: Mapping[str, Any], multimask: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mask logits (N, h, w) and scores (N,) of all objects and candidates, in the order of both."""
        # ask for masks at the logits' own size: then the package does not resize them
        state = {
            "original_height": self._mask_side,
            "original_width": self._mask_side,
            "backbone_out": to_precision(embedding.features, self._model.precision),
        }
        try:
            mask_logits, scores, _ = self._network.predict_inst(
                state,
                **points,
                box=np.array(boxes) if boxes else None,
                multimask_output=multimask,
                return_logits=True,
                normalize_coords=False,
            )
        except BaseException:
            forget_image(self._network)
            raise
        if not (np.isfinite(mask_logits).all() and np.isfinite(scores).all()):
            raise NotFiniteError
        return mask_logits.reshape(-1, self._mask_side, self._mask_side), scores.reshape(-1)


def _split_into_passes(
    boxes: tuple[Box, ...], labels: tuple[str, ...]
) -> Iterator[tuple[tuple[Box, ...], tuple[str, ...]]]:
    """Yield a few boxes and their labels at a time; if there are no boxes, one pass for the object of the points."""
    for start in range(0, len(labels), _BOXES_PER_PASS):
        of_pass = slice(start, start + _BOXES_PER_PASS)
        yield boxes[of_pass], labels[of_pass]
