"""An image and a prompt in, segments out.

    predictor = Predictor(shared_model(checkpoint, choose_device(cuda=True)))
    embedding = predictor.encode_image(image)
    segments = predictor.segment(embedding, TextPrompt("shoe"))

Importing this module imports torch and sam3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

from .images import as_rgb8, pixels_of
from .model import Model
from .prompts import Box, GeometricPrompt, Prompt, PromptError, TextPrompt
from .runtime import importing_sam3

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor
    from torchvision.transforms.v2 import functional

_BOXES_PER_PASS = 16  # bounds the memory of the mask decoder


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What the network's image encoder made of an image; good for any number of prompts.

    Attributes:
        features: the feature pyramids of both heads, on the model's device.
        width, height: of the source image, in pixels.
    """

    features: Mapping[str, Any]
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Segment:
    """One segmented object.

    Attributes:
        mask_logits: (h, w) at the network's mask resolution, covering the whole image, in the dtype it came in.
        width, height: of the source image, in pixels.
        score: 0..1. Text: how sure SAM 3 is of the instance. Points and boxes: its estimate of the mask's IoU.
        label: the phrase, or "object".
        detected_box: (x1, y1, x2, y2) in source-image pixels as the network gave it with the instance, cut to the image
            (text only).
    """

    mask_logits: torch.Tensor
    width: int
    height: int
    score: float
    label: str
    detected_box: Box | None = None

    @property
    def mask(self) -> np.ndarray:
        """(height, width) bool, at source size. Computed at every call, so that many segments take little memory."""
        logits = self.mask_logits[None, None]
        size = (self.height, self.width)
        at_source_size = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0]
        # as the package does, in the network's dtype: in bfloat16, logits next to 0 would else change sides
        return (at_source_size.sigmoid_() > 0.5).cpu().numpy()

    @property
    def box(self) -> Box:
        """(x1, y1, x2, y2) in source-image pixels: the detected one, else the bounds of the mask, all 0 if empty."""
        if self.detected_box is not None:
            return self.detected_box
        mask = self.mask
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not columns.size:
            return (0.0, 0.0, 0.0, 0.0)
        return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


class Predictor:
    """SAM 3's two verbs, :meth:`encode_image` and :meth:`segment`, on a loaded model. Safe in several threads."""

    def __init__(self, model: Model) -> None:
        self.model = model
        tracker = model.network.inst_interactive_predictor.model
        self._mask_side = tracker.low_res_mask_size
        with model.running():
            self._processor = Sam3Processor(model.network, resolution=tracker.image_size, device=model.device)

    def encode_image(self, image: np.ndarray | PIL.Image.Image, size_percent: int = 100) -> ImageEmbedding:
        """Run the image encoder, which takes nearly all the time.

        Args:
            image: (H, W) or (H, W, channels) array as :func:`~sam3_engine.images.as_rgb8` takes it, or a PIL image.
            size_percent: 1..100, the image is shrunk to this before.

        Returns:
            The embedding, for prompts in pixels of ``image`` whatever ``size_percent`` is.

        Raises:
            ImageError: the image cannot be segmented.
        """
        array = pixels_of(image) if isinstance(image, PIL.Image.Image) else image
        pixels = torch.from_numpy(as_rgb8(array).copy()).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        with self.model.running():
            if size_percent < 100:
                shrunk = [max(1, round(side * size_percent / 100)) for side in (height, width)]
                pixels = functional.resize(pixels, shrunk, antialias=True)
            features = self._processor.set_image(pixels)["backbone_out"]
        return ImageEmbedding(features, width, height)

    def segment(
        self,
        embedding: ImageEmbedding,
        prompt: Prompt,
        *,
        confidence_threshold: float = 0.5,
        multimask: bool = False,
    ) -> list[Segment]:
        """Segment what ``prompt`` names or outlines.

        Args:
            embedding: of :meth:`encode_image` by the same model.
            prompt: in pixels of the source image.
            confidence_threshold: text only; instances scoring strictly above it are kept.
            multimask: points and boxes only; three candidates for each object instead of one.

        Returns:
            Text: the instances by falling score. Points and boxes: object by object, in the order of the boxes, each
            with its candidates by falling score.

        Raises:
            PromptError: the prompt is empty, or cannot be used on this image: see :meth:`GeometricPrompt.clipped`.
        """
        if not prompt:
            raise PromptError("prompt", prompt, "there is nothing to segment; expected a box or a point")
        with self.model.running():
            if isinstance(prompt, TextPrompt):
                return self._find_instances(embedding, prompt.phrase, confidence_threshold)
            inside = prompt.clipped(embedding.width, embedding.height)
            relative = inside.scaled(1 / embedding.width, 1 / embedding.height)
            return list(self._outline_objects(embedding, relative, multimask))

    def _find_instances(self, embedding: ImageEmbedding, phrase: str, threshold: float) -> list[Segment]:
        network = self.model.network
        text_features = network.backbone.forward_text([phrase], device=self.model.device)
        outputs = network.forward_grounding(
            backbone_out={**embedding.features, **text_features},
            find_input=self._processor.find_stage,
            geometric_prompt=network._get_dummy_prompt(),
            find_target=None,
        )
        # scored as in Sam3Processor, for a batch of one; float32, or torch would round the threshold to bfloat16
        presence = outputs["presence_logit_dec"].sigmoid().unsqueeze(1)
        scores = (outputs["pred_logits"].sigmoid() * presence)[0, :, 0].float()
        by_falling_score = scores.argsort(descending=True, stable=True)
        kept = by_falling_score[scores[by_falling_score] > threshold]
        size = torch.tensor([embedding.width, embedding.height] * 2, device=self.model.device)
        boxes = outputs["pred_boxes_xyxy"][0, kept].float().clamp(0, 1) * size
        return [
            Segment(logits, embedding.width, embedding.height, score, phrase, tuple(box))
            for logits, score, box in zip(
                outputs["pred_masks"][0, kept], scores[kept].tolist(), boxes.tolist(), strict=True
            )
        ]

    def _outline_objects(
        self, embedding: ImageEmbedding, relative: GeometricPrompt, multimask: bool
    ) -> Iterator[Segment]:
        """Segment points and boxes whose coordinates are fractions of the image's width and height."""
        for boxes in _passes(relative.boxes):
            # asked for masks of the mask logits' own size, the package only fills their holes
            mask_logits, scores, _ = self.model.network.predict_inst(
                {
                    "original_height": self._mask_side,
                    "original_width": self._mask_side,
                    "backbone_out": embedding.features,
                },
                point_coords=np.array(relative.points) if relative.points else None,
                point_labels=np.array(relative.point_labels) if relative.points else None,
                box=np.array(boxes) if boxes else None,
                multimask_output=multimask,
                return_logits=True,
                normalize_coords=False,
            )
            objects = max(1, len(boxes))
            candidates = zip(
                torch.from_numpy(mask_logits).reshape(objects, -1, self._mask_side, self._mask_side),
                scores.reshape(objects, -1),
                strict=True,
            )
            for object_logits, object_scores in candidates:
                for candidate in np.argsort(-object_scores, kind="stable"):
                    score = float(object_scores[candidate])
                    yield Segment(object_logits[candidate], embedding.width, embedding.height, score, "object")


def label_map(segments: Sequence[Segment], width: int, height: int) -> np.ndarray:
    """Paint segments into one map: pixel value k for the k-th segment, 0 where there is none.

    Args:
        segments: at most 255, best first; where they overlap the earlier one wins.
        width, height: of the source image, in pixels.

    Returns:
        (height, width) uint8.
    """
    painted = np.zeros((height, width), np.uint8)
    for number, segment in reversed(list(enumerate(segments, start=1))):
        painted[segment.mask] = number
    return painted


def _passes(boxes: tuple[Box, ...]) -> Iterator[tuple[Box, ...]]:
    """The boxes, a few at a time; a single empty pass if there are none."""
    for start in range(0, max(1, len(boxes)), _BOXES_PER_PASS):
        yield boxes[start : start + _BOXES_PER_PASS]
