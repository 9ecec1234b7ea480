"""Concepts: every instance of a phrase, or of what example boxes show.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .contexts import importing_sam3
from .embedding import Detections, ImageEmbedding
from .errors import quote
from .fitting import FittedPrompt
from .internals import empty_geometric_prompt, phrase_read
from .model import Model, NotFiniteError, Sam3Image
from .options import Options
from .prompts import PHRASES_EXPECTED, POSITIVE, Box, ConceptPrompt, is_plain_phrase
from .segments import Segment
from .selection import select_instances
from .weight_precision import to_precision

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor

logger = logging.getLogger(__name__)

_NO_PHRASE = "visual"  # the text that SAM 3 was trained with where only example boxes say what to find

_OUTPUTS = ("presence_logit_dec", "pred_logits", "pred_boxes_xyxy", "pred_masks")  # of the network


@dataclass(frozen=True)
class Examples:
    """Example boxes.

    Attributes:
        boxes: each in fractions of the width and height of the image that it lies in, and its label.
        source: identifies that image, if it is another one than the detector looks at; or None.
        tokens: what the network's geometry encoder makes of the boxes in that image; or None.
    """

    boxes: tuple[tuple[Box, int], ...] = ()
    source: Hashable = None
    tokens: Any = field(default=None, compare=False, repr=False)


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
        examples = Examples(tuple(zip(fitted.relative_boxes, prompt.box_labels, strict=True)))
        found = self.find(embedding, prompt, prompt.names, examples, options, on_step)
        self.warn_of_limits(prompt, found, self.crowded(found), options)
        return select_instances([segment for name in prompt.names for segment in found[name]], prompt, options)

    def find(
        self,
        embedding: ImageEmbedding,
        prompt: ConceptPrompt,
        names: Iterable[str],
        examples: Examples,
        options: Options,
        on_step: Callable[[], None],
    ) -> dict[str, list[Segment]]:
        """Return all instances above the threshold of some of a prompt's concepts, by name and descending score.

        Args:
            embedding: of the image, or of a part of it.
            prompt: names the concepts; its boxes are not used.
            names: which of them to look for.
            examples: the example boxes.
            options: the threshold.
            on_step: called before each concept.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """
        phrases = dict(zip(prompt.names, prompt.phrases or (_NO_PHRASE,), strict=True))
        thresholds = _thresholds(prompt, options.confidence_threshold)
        # cached answers first: the rest of a long list would evict them
        cached_first = sorted(names, key=lambda name: (phrases[name], examples) not in embedding.detections)
        found = {}
        for name in cached_first:
            on_step()
            found[name] = self._instances(embedding, name, phrases[name], examples, thresholds[name])
        return found

    def crowded(self, found: Mapping[str, Sequence[Segment]]) -> set[str]:
        """Return the concepts with as many instances as the network can return."""
        return {name for name, instances in found.items() if len(instances) == self._model.architecture.queries}

    def _instances(
        self, embedding: ImageEmbedding, name: str, phrase: str, examples: Examples, threshold: float
    ) -> list[Segment]:
        detections = embedding.detections.get((phrase, examples), lambda: self.detect(embedding, phrase, examples))
        kept = sum(score > threshold for score in detections.scores)
        # a copy: views would keep the masks of all queries in memory
        mask_logits = detections.mask_logits[:kept].clone()
        return [
            Segment(logits, embedding.width, embedding.height, score, name, box)
            for logits, score, box in zip(mask_logits, detections.scores, detections.boxes, strict=False)
        ]

    def warn_of_limits(
        self, prompt: ConceptPrompt, found: Mapping[str, Sequence[object]], crowded: Collection[str], options: Options
    ) -> None:
        """Log what the network cannot read, may not show, or did not find and is not a plain noun phrase.

        Args:
            prompt: names the concepts.
            found: their instances.
            crowded: the concepts with as many instances as the network can return.
            options: the threshold.
        """
        architecture, thresholds = self._model.architecture, _thresholds(prompt, options.confidence_threshold)
        most_tokens = architecture.text_context - 2  # without the start and the end token
        read = [text for phrase in prompt.phrases if (text := phrase_read(self._network, phrase, most_tokens))]
        if read:
            logger.warning(
                "The network reads the first %d tokens (words or parts of words) of a phrase, and ignores the rest. "
                "It reads: %s.",
                most_tokens,
                _shortened(read),
            )
        if crowded:
            named = [name for name in prompt.names if name in crowded]
            logger.warning(
                "All %d instances that the network can return for a concept score above %s: there may be more. "
                "Use %s, or name something more specific; to keep only the best, raise the threshold. "
                "Concepts: %s.",
                architecture.queries,
                " or ".join(dict.fromkeys(f"{thresholds[name]:g}" for name in named)),
                "smaller tiles" if options.tile_size else "tiles",
                _shortened(named),
            )
        unusual = [phrase for phrase in prompt.phrases if not found[phrase] and not is_plain_phrase(phrase)]
        if unusual:
            logger.warning("Nothing was found for %s; %s.", _shortened(unusual), PHRASES_EXPECTED)

    def encode_examples(
        self, embedding: ImageEmbedding, prompt: ConceptPrompt, examples: Examples, source: Hashable
    ) -> Examples:
        """Return examples for use with other images than the one that their boxes lie in.

        Args:
            embedding: of the image that the boxes lie in.
            prompt: with its phrase, if it has one.
            examples: the boxes in that image.
            source: identifies that image.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """

        def encode() -> Any:
            tokens: list[Any] = []
            (phrase,) = prompt.phrases or (_NO_PHRASE,)
            with self._network.geometry_encoder.register_forward_hook(lambda _, __, output: tokens.extend(output)):
                self.detect(embedding, phrase, examples)
            return tokens

        return Examples(examples.boxes, source, self._model.phrases.get((source, examples), encode))

    def detect(self, embedding: ImageEmbedding, phrase: str, examples: Examples) -> Detections:
        """Run the detector, and the text encoder unless the phrase is cached.

        Raises:
            NotFiniteError: the network returns NaN or infinity.
        """
        network, device = self._network, self._model.device
        geometric_prompt = empty_geometric_prompt(network)
        for (x1, y1, x2, y2), label in examples.boxes:
            box = torch.tensor([[[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]]], device=device)
            geometric_prompt.append_boxes(box, torch.tensor([[label == POSITIVE]], device=device))
        backbone_out = {
            **to_precision(embedding.features, self._model.precision),
            **self._model.phrases.get(phrase, lambda: network.backbone.forward_text([phrase], device=device)),
        }
        with contextlib.ExitStack() as hooks:
            if examples.tokens is not None:
                tokens = tuple(to_precision(examples.tokens, self._model.precision))
                hooks.enter_context(network.geometry_encoder.register_forward_hook(lambda *_: tokens))
            outputs = network.forward_grounding(
                backbone_out=backbone_out,
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
