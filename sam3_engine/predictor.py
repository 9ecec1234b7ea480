"""An image and a prompt in, segments out.

    predictor = Predictor(shared_model(checkpoint, choose_device(cuda=True)))
    embedding = predictor.encode_image(image)
    segments = predictor.segment(embedding, ConceptPrompt(("shoe",)))

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch

from .architecture import Architecture
from .images import as_rgb8, content_digest, pixels_of
from .model import CheckpointError, Model
from .parsing import POSITIVE, Box, PromptError
from .prompts import UNNAMED, ConceptPrompt, GeometricPrompt, Prompt
from .recent import Recent
from .runtime import importing_sam3
from .segments import Segment, without_duplicates

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor
    from torchvision.transforms.v2 import functional

logger = logging.getLogger(__name__)

_BOXES_PER_PASS = 16  # bounds the memory of the mask decoder
_ANSWERS_KEPT = 16  # for each image; at SAM 3's size 33 MB each in bfloat16, 66 in float32
_NO_PHRASE = "visual"  # what SAM 3 was trained to read where only example boxes say what to find


@dataclass(frozen=True, eq=False)
class _Instances:
    """What the detector answered for a concept: all its queries, by falling score.

    Attributes:
        scores: (queries,) 0..1.
        boxes: (x1, y1, x2, y2) in source-image pixels, one per query.
        mask_logits: (queries, h, w), on the model's device.
    """

    scores: Sequence[float]
    boxes: Sequence[Box]
    mask_logits: torch.Tensor


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What the network's image encoder made of an image; good for any number of prompts.

    Attributes:
        features: the feature pyramids of both heads, on the model's device.
        width, height: of the source image, in pixels.
        resolution: the side of the network's input that it was made at, in pixels.
        answers: what the detector answered for the last concepts, so that another threshold is but a filter.
    """

    features: Mapping[str, Any]
    width: int
    height: int
    resolution: int
    answers: Recent[_Instances] = field(default_factory=lambda: Recent(_ANSWERS_KEPT), repr=False)


class Predictor:
    """SAM 3's two verbs, :meth:`encode_image` and :meth:`segment`, on a loaded model. Safe in several threads.

    Args:
        model: see :func:`~sam3_engine.model.shared_model`.
        input_size: side of the network's square input in pixels, rounded to a multiple of the patch size; 0 for the
            checkpoint's own. A smaller one is faster and sees less detail.

    Attributes:
        model, input_size: as given.
        resolution: the side of the network's input, in pixels.
    """

    def __init__(self, model: Model, input_size: int = 0) -> None:
        self.model = model
        self.input_size = input_size
        self.resolution = _resolution(model.architecture, input_size)
        self._network = model.network_at(self.resolution)
        self._mask_side = self._network.inst_interactive_predictor.model.low_res_mask_size
        with model.running():
            self._processor = Sam3Processor(self._network, resolution=self.resolution, device=model.device)

    def encode_image(self, image: np.ndarray | PIL.Image.Image, size_percent: int = 100) -> ImageEmbedding:
        """Run the image encoder, which takes nearly all the time.

        The last images are remembered, by their content and for everyone who uses the model: encoding them again takes
        no time.

        Args:
            image: (H, W) or (H, W, channels) array as :func:`~sam3_engine.images.as_rgb8` takes it, or a PIL image.
            size_percent: 1..100, the image is shrunk to this before.

        Returns:
            The embedding, for prompts in pixels of ``image`` whatever ``size_percent`` is.

        Raises:
            ImageError: the image cannot be segmented.
            ValueError: ``size_percent`` is out of range.
            DeviceMemoryError: there is too little memory.
        """
        if not 1 <= size_percent <= 100:
            raise ValueError(f"size_percent = {size_percent}: expected 1 to 100.")
        # a copy: the caller may write to the image while this waits for the model
        rgb = as_rgb8(pixels_of(image) if isinstance(image, PIL.Image.Image) else image).copy()
        key = (content_digest(rgb), size_percent, self.resolution)
        return self.model.run(lambda: self.model.embeddings.get(key, lambda: self._encode(rgb, size_percent)))

    def _encode(self, rgb: np.ndarray, size_percent: int) -> ImageEmbedding:
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        if size_percent < 100:
            shrunk = [max(1, round(side * size_percent / 100)) for side in (height, width)]
            pixels = functional.resize(pixels, shrunk, antialias=True)
        features = self._processor.set_image(pixels)["backbone_out"]
        # the package copies the same tables for each image and head, more than the features themselves
        tables = self.model.position_tables.get(self.resolution, lambda: features["vision_pos_enc"])
        features["vision_pos_enc"] = features["sam2_backbone_out"]["vision_pos_enc"] = tables
        return ImageEmbedding(features, width, height, self.resolution)

    def segment(
        self,
        embedding: ImageEmbedding,
        prompt: Prompt,
        *,
        confidence_threshold: float = 0.5,
        iou_threshold: float = 1.0,
        multimask: bool = False,
    ) -> list[Segment]:
        """Segment what ``prompt`` names, shows or outlines.

        Args:
            embedding: of :meth:`encode_image` by the same model at the same input size.
            prompt: in pixels of the source image.
            confidence_threshold: concepts only; instances scoring strictly above it are kept.
            iou_threshold: concepts only; see :func:`~sam3_engine.segments.without_duplicates`.
            multimask: points and boxes only; three candidates for each object instead of one.

        Returns:
            Concepts: the instances, phrase by phrase, each by falling score. Points and boxes: object by object, in the
            order of the boxes, each with its candidates by falling score.

        Raises:
            PromptError: the prompt is empty, or cannot be used on this image: see its ``clipped``.
            ValueError: the embedding was made at another input size.
            CheckpointError: the network's answer is not a number.
            DeviceMemoryError: there is too little memory.
        """
        if not prompt:
            raise PromptError("prompt", prompt, "there is nothing to segment; expected a phrase, a box or a point")
        if embedding.resolution != self.resolution:
            raise ValueError(
                f"An embedding made at an input size of {embedding.resolution} cannot be used at {self.resolution}."
            )
        inside = prompt.clipped(embedding.width, embedding.height)
        relative = inside.scaled(1 / embedding.width, 1 / embedding.height)

        def answer() -> list[Segment]:
            if isinstance(relative, GeometricPrompt):
                return list(self._outline_objects(embedding, relative, multimask))
            found = self._find_instances(embedding, relative, confidence_threshold)
            return without_duplicates(found, iou_threshold)

        return self.model.run(answer, embedding.answers)

    def _find_instances(self, embedding: ImageEmbedding, relative: ConceptPrompt, threshold: float) -> list[Segment]:
        """Find the instances of concepts; coordinates are fractions of the image's width and height."""
        examples = tuple(zip(relative.boxes, relative.box_labels, strict=True))
        phrases = dict(zip(relative.names, relative.phrases or (_NO_PHRASE,), strict=True))
        # those whose answers are kept first, lest the others of a long list take their places before they are read
        by_age = sorted(phrases, key=lambda name: (phrases[name], examples) not in embedding.answers)
        found = {name: self._instances_of(embedding, name, phrases[name], examples, threshold) for name in by_age}
        return [segment for name in relative.names for segment in found[name]]

    def _instances_of(
        self,
        embedding: ImageEmbedding,
        name: str,
        phrase: str,
        examples: tuple[tuple[Box, int], ...],
        threshold: float,
    ) -> list[Segment]:
        answer = embedding.answers.get((phrase, examples), lambda: self._detect(embedding, phrase, examples))
        kept = sum(score > threshold for score in answer.scores)
        # copied, lest a few of them keep all the queries of a long list of phrases in memory
        mask_logits = answer.mask_logits[:kept].clone()
        return [
            Segment(logits, embedding.width, embedding.height, score, name, box)
            for logits, score, box in zip(mask_logits, answer.scores, answer.boxes, strict=False)
        ]

    def _detect(self, embedding: ImageEmbedding, phrase: str, examples: Sequence[tuple[Box, int]]) -> _Instances:
        """Run the detector, and the text encoder unless it knows the phrase."""
        network, device = self._network, self.model.device
        shown = network._get_dummy_prompt()
        for (x1, y1, x2, y2), label in examples:
            box = torch.tensor([[[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]]], device=device)
            shown.append_boxes(box, torch.tensor([[label == POSITIVE]], device=device))
        outputs = network.forward_grounding(
            backbone_out={
                **embedding.features,
                **self.model.phrases.get(phrase, lambda: network.backbone.forward_text([phrase], device=device)),
            },
            find_input=self._processor.find_stage,
            geometric_prompt=shown,
            find_target=None,
        )
        # scored as in Sam3Processor, for a batch of one; float32, or torch would round the threshold to bfloat16
        presence = outputs["presence_logit_dec"].sigmoid().unsqueeze(1)
        scores = (outputs["pred_logits"].sigmoid() * presence)[0, :, 0].float()
        self._refuse_nan(scores.isnan().any() or outputs["pred_masks"].isnan().any())
        order = scores.argsort(descending=True, stable=True)
        size = torch.tensor([embedding.width, embedding.height] * 2, device=device)
        boxes = outputs["pred_boxes_xyxy"][0, order].float().clamp(0, 1) * size
        return _Instances(
            scores[order].tolist(), [tuple(box) for box in boxes.tolist()], outputs["pred_masks"][0, order]
        )

    def _refuse_nan(self, found: Any) -> None:
        if found:
            raise CheckpointError(self.model.checkpoint, "the network answers NaN, so its weights are damaged")

    def _outline_objects(
        self, embedding: ImageEmbedding, relative: GeometricPrompt, multimask: bool
    ) -> Iterator[Segment]:
        """Segment points and boxes whose coordinates are fractions of the image's width and height."""
        for boxes in _passes(relative.boxes):
            # asked for masks of the mask logits' own size, the package only fills their holes
            mask_logits, scores, _ = self._predict_inst(
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
            self._refuse_nan(np.isnan(mask_logits).any() or np.isnan(scores).any())
            objects = max(1, len(boxes))
            candidates = zip(
                # back where they came from: they are smaller than the masks that are made of them there
                torch.from_numpy(mask_logits)
                .to(self.model.device)
                .reshape(objects, -1, self._mask_side, self._mask_side),
                scores.reshape(objects, -1),
                strict=True,
            )
            for object_logits, object_scores in candidates:
                for candidate in np.argsort(-object_scores, kind="stable"):
                    score = float(object_scores[candidate])
                    yield Segment(object_logits[candidate], embedding.width, embedding.height, score, UNNAMED)

    def _predict_inst(self, state: Mapping[str, Any], **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        try:
            return self._network.predict_inst(state, **prompt)
        except BaseException:
            self._network.inst_interactive_predictor.reset_predictor()  # else it holds the image's features for good
            raise


def _resolution(architecture: Architecture, input_size: int) -> int:
    if input_size == 0:
        return architecture.resolution
    patch_size = architecture.patch_size
    resolution = patch_size * max(1, round(input_size / patch_size))
    if resolution != input_size:
        logger.warning(
            "model_input_size = %d: rounded to %d, a multiple of the patch size %d.", input_size, resolution, patch_size
        )
    return resolution


def _passes(boxes: tuple[Box, ...]) -> Iterator[tuple[Box, ...]]:
    """The boxes, a few at a time; a single empty pass if there are none."""
    for start in range(0, max(1, len(boxes)), _BOXES_PER_PASS):
        yield boxes[start : start + _BOXES_PER_PASS]
