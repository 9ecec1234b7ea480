"""Concepts: every instance of a phrase, or of what example boxes show.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .contexts import importing_sam3
from .embedding import Detections, ImageEmbedding
from .errors import CheckpointError
from .fitting import FittedPrompt
from .internals import empty_geometric_prompt
from .model import Model, Sam3Image
from .nms import drop_duplicates
from .options import Options
from .prompts import POSITIVE, Box, ConceptPrompt
from .segments import Segment

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor

_NO_PHRASE = "visual"  # the text that SAM 3 was trained with where only example boxes say what to find

_Example = tuple[Box, int]  # in fractions of the image's width and height; its label


class Detector:
    """SAM 3's detector at one input size.

    Call its methods inside :meth:`~.model.Model.infer`.

    Args:
        model: the model; its text encoder's outputs are cached.
        network: the network of ``model`` at the input size of the embeddings.
        processor: the processor of the sam3 package for ``network``.
    """

    def __init__(self, model: Model, network: Sam3Image, processor: Sam3Processor) -> None:
        self._model = model
        self._network = network
        self._find_stage = processor.find_stage

    def segment(self, embedding: ImageEmbedding, fitted: FittedPrompt, options: Options) -> list[Segment]:
        """Return the instances of a :class:`~.prompts.ConceptPrompt`, phrase by phrase, each by descending score.

        Raises:
            CheckpointError: the network returns NaN.
        """
        prompt = fitted.prompt
        assert isinstance(prompt, ConceptPrompt)
        examples = tuple(zip(fitted.relative_boxes, prompt.box_labels, strict=True))
        phrases = dict(zip(prompt.names, prompt.phrases or (_NO_PHRASE,), strict=True))
        # cached answers first: the rest of a long list would evict them
        cached_first = sorted(phrases, key=lambda name: (phrases[name], examples) not in embedding.detections)
        found = {
            name: self._instances(embedding, name, phrases[name], examples, options.confidence_threshold)
            for name in cached_first
        }
        return drop_duplicates([segment for name in prompt.names for segment in found[name]], options.iou_threshold)

    def _instances(
        self, embedding: ImageEmbedding, name: str, phrase: str, examples: tuple[_Example, ...], threshold: float
    ) -> list[Segment]:
        detections = embedding.detections.get((phrase, examples), lambda: self.detect(embedding, phrase, examples))
        kept = sum(score > threshold for score in detections.scores)
        # a copy: views would keep the masks of all queries in memory
        mask_logits = detections.mask_logits[:kept].clone()
        return [
            Segment(logits, embedding.width, embedding.height, score, name, box)
            for logits, score, box in zip(mask_logits, detections.scores, detections.boxes, strict=False)
        ]

    def detect(self, embedding: ImageEmbedding, phrase: str, examples: Sequence[_Example]) -> Detections:
        """Run the detector, and the text encoder unless the phrase is cached.

        Raises:
            CheckpointError: the network returns NaN.
        """
        network, device = self._network, self._model.device
        geometric_prompt = empty_geometric_prompt(network)
        for (x1, y1, x2, y2), label in examples:
            box = torch.tensor([[[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]]], device=device)
            geometric_prompt.append_boxes(box, torch.tensor([[label == POSITIVE]], device=device))
        outputs = network.forward_grounding(
            backbone_out={
                **embedding.features,
                **self._model.phrases.get(phrase, lambda: network.backbone.forward_text([phrase], device=device)),
            },
            find_input=self._find_stage,
            geometric_prompt=geometric_prompt,
            find_target=None,
        )
        # scores as in Sam3Processor; in float32, because PyTorch would round the threshold to bfloat16
        presence = outputs["presence_logit_dec"].sigmoid().unsqueeze(1)
        scores = (outputs["pred_logits"].sigmoid() * presence)[0, :, 0].float()
        if scores.isnan().any() or outputs["pred_masks"].isnan().any():
            raise CheckpointError(self._model.checkpoint, "the network returns NaN: its weights are damaged")
        order = scores.argsort(descending=True, stable=True)
        size = torch.tensor([embedding.width, embedding.height] * 2, device=device)
        boxes = outputs["pred_boxes_xyxy"][0, order].float().clamp(0, 1) * size
        return Detections(
            scores[order].tolist(), [tuple(box) for box in boxes.tolist()], outputs["pred_masks"][0, order]
        )
