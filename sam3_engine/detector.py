"""Concepts: every instance of a phrase, or of what example boxes show.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from .areas import drop_by_area
from .contexts import importing_sam3
from .embedding import Detections, ImageEmbedding
from .errors import quote
from .fitting import FittedPrompt
from .internals import empty_geometric_prompt, phrase_read
from .model import Model, NotFiniteError, Sam3Image
from .nms import drop_duplicates
from .options import Options
from .prompts import PHRASES_EXPECTED, POSITIVE, Box, ConceptPrompt, is_plain_phrase
from .regions import remove_small_regions
from .segments import Segment, best
from .weight_precision import to_precision

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor

logger = logging.getLogger(__name__)

_NO_PHRASE = "visual"  # the text that SAM 3 was trained with where only example boxes say what to find

_OUTPUTS = ("presence_logit_dec", "pred_logits", "pred_boxes_xyxy", "pred_masks")  # of the network

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

    def segment(
        self, embedding: ImageEmbedding, fitted: FittedPrompt, options: Options, on_step: Callable[[], None]
    ) -> list[Segment]:
        """Return the instances of a :class:`~.prompts.ConceptPrompt`, phrase by phrase, each by descending score.

        ``on_step`` is called before each phrase.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """
        prompt = fitted.prompt
        assert isinstance(prompt, ConceptPrompt)
        examples = tuple(zip(fitted.relative_boxes, prompt.box_labels, strict=True))
        phrases = dict(zip(prompt.names, prompt.phrases or (_NO_PHRASE,), strict=True))
        # cached answers first: the rest of a long list would evict them
        cached_first = sorted(phrases, key=lambda name: (phrases[name], examples) not in embedding.detections)
        thresholds = _thresholds(prompt, options.confidence_threshold)
        found = {}
        for name in cached_first:
            on_step()
            found[name] = self._instances(embedding, name, phrases[name], examples, thresholds[name])
        self._warn_of_limits(prompt, found, thresholds)
        segments = [segment for name in prompt.names for segment in found[name]]
        segments = remove_small_regions(segments, options.min_region_percent)
        segments = drop_duplicates(segments, options.iou_threshold)
        segments = drop_by_area(segments, options.min_area_percent, options.max_area_percent)
        return [segments[index] for index in best(segments, options.max_detections or len(segments))]

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

    def _warn_of_limits(
        self, prompt: ConceptPrompt, found: Mapping[str, Sequence[Segment]], thresholds: Mapping[str, float]
    ) -> None:
        """Log what the network cannot read, may not show, or did not find and is not a plain noun phrase."""
        architecture = self._model.architecture
        most_tokens = architecture.text_context - 2  # without the start and the end token
        read = [text for phrase in prompt.phrases if (text := phrase_read(self._network, phrase, most_tokens))]
        if read:
            logger.warning(
                "The network reads the first %d tokens (words or parts of words) of a phrase, and ignores the rest. "
                "It reads: %s.",
                most_tokens,
                _shortened(read),
            )
        crowded = [name for name in prompt.names if len(found[name]) == architecture.queries]
        if crowded:
            logger.warning(
                "All %d instances that the network can return for a concept score above %s: there may be more. "
                "Crop the image or name something more specific; to keep only the best, raise the threshold. "
                "Concepts: %s.",
                architecture.queries,
                " or ".join(dict.fromkeys(f"{thresholds[name]:g}" for name in crowded)),
                _shortened(crowded),
            )
        unusual = [phrase for phrase in prompt.phrases if not found[phrase] and not is_plain_phrase(phrase)]
        if unusual:
            logger.warning("Nothing was found for %s; %s.", _shortened(unusual), PHRASES_EXPECTED)

    def detect(self, embedding: ImageEmbedding, phrase: str, examples: Sequence[_Example]) -> Detections:
        """Run the detector, and the text encoder unless the phrase is cached.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """
        network, device = self._network, self._model.device
        geometric_prompt = empty_geometric_prompt(network)
        for (x1, y1, x2, y2), label in examples:
            box = torch.tensor([[[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]]], device=device)
            geometric_prompt.append_boxes(box, torch.tensor([[label == POSITIVE]], device=device))
        outputs = network.forward_grounding(
            backbone_out={
                **to_precision(embedding.features, self._model.precision),
                **self._model.phrases.get(phrase, lambda: network.backbone.forward_text([phrase], device=device)),
            },
            find_input=self._find_stage,
            geometric_prompt=geometric_prompt,
            find_target=None,
        )
        # scores as in Sam3Processor; in float32, because PyTorch would round the threshold to bfloat16
        presence = outputs["presence_logit_dec"].sigmoid().unsqueeze(1)
        scores = (outputs["pred_logits"].sigmoid() * presence)[0, :, 0].float()
        extremes = [bound.float() for name in _OUTPUTS for bound in outputs[name].aminmax()]
        if not torch.stack(extremes).isfinite().all():
            raise NotFiniteError
        order = scores.argsort(descending=True, stable=True)
        size = torch.tensor([embedding.width, embedding.height] * 2, device=device)
        boxes = outputs["pred_boxes_xyxy"][0, order].float().clamp(0, 1) * size
        return Detections(
            scores[order].tolist(), [tuple(box) for box in boxes.tolist()], outputs["pred_masks"][0, order]
        )


def _thresholds(prompt: ConceptPrompt, default: float) -> dict[str, float]:
    """Return the threshold of each concept, by name."""
    given = prompt.confidence_thresholds or (None,) * len(prompt.names)
    return {
        name: default if threshold is None else threshold for name, threshold in zip(prompt.names, given, strict=True)
    }


def _shortened(texts: Sequence[str]) -> str:
    """Return texts in quotes, the first three of a longer list."""
    quoted = ", ".join(quote(text, limit=1000) for text in texts[:3])
    return quoted if len(texts) <= 3 else f"{quoted} and {len(texts) - 3} more"
