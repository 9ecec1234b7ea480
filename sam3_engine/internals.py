"""Names inside sam3 and PyTorch that are not public API.

Only this module uses them. ``tests/test_internals.py`` checks each one, so that an upgrade fails there, with a sentence
that says what moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from sam3.model.sam1_task_predictor import SAM3InteractiveImagePredictor
    from sam3.model.sam3_image import Sam3Image
    from sam3.model.sam3_tracking_predictor import Sam3TrackerPredictor


def torch_library() -> str:
    """Return the path of PyTorch's compiled library."""
    import torch

    return torch._C.__file__


def leave_autocast(tracker: Sam3TrackerPredictor) -> None:
    """Leave the CUDA autocast that the tracker's constructor enters and never leaves."""
    tracker.bf16_context.__exit__(None, None, None)


def set_feature_sizes(predictor: SAM3InteractiveImagePredictor, sizes: Sequence[tuple[int, int]]) -> None:
    """Set the sizes (h, w) of the feature pyramid, finest first; the package writes down those of SAM 3."""
    predictor._bb_feat_sizes = list(sizes)


def mask_logits_side(network: Sam3Image) -> int:
    """Return the side of the click head's mask logits, in logits."""
    return network.inst_interactive_predictor.model.low_res_mask_size


def empty_geometric_prompt(network: Sam3Image) -> Any:
    """Return a detector prompt without boxes, to which ``append_boxes`` adds."""
    return network._get_dummy_prompt()


def position_table(network: Sam3Image, feature_map: torch.Tensor) -> torch.Tensor:
    """Return the position table that the image encoder gives with a feature map."""
    return network.backbone.vision_backbone.position_encoding(feature_map).to(feature_map.dtype)


def forget_image(network: Sam3Image) -> None:
    """Drop the image features that the click head keeps when a prediction fails."""
    network.inst_interactive_predictor.reset_predictor()


def encoder_layers(network: Sam3Image) -> Iterator[torch.nn.Module]:
    """Yield the modules of the image encoder's trunk and of the text encoder, if there is one."""
    yield from network.backbone.vision_backbone.trunk.modules()
    if network.backbone.language_backbone is not None:
        yield from network.backbone.language_backbone.modules()


def build_causal_mask(network: Sam3Image, device: torch.device) -> None:
    """Fill the text encoder's causal mask, which the package makes with ``torch.empty`` although it is no weight."""
    transformer = network.backbone.language_backbone.encoder
    transformer.attn_mask = transformer.build_causal_mask().to(device)


def phrase_read(network: Sam3Image, phrase: str, most_tokens: int) -> str | None:
    """Return what the text encoder reads of a phrase that is too long for it, or None if it reads all of it."""
    if len(phrase) <= most_tokens and phrase.isascii() and "&" not in phrase:  # "&" may be an HTML entity
        return None  # a token is at least one character
    tokenizer = network.backbone.language_backbone.tokenizer
    tokens = tokenizer.encode(phrase)
    return None if len(tokens) <= most_tokens else tokenizer.decode(tokens[:most_tokens]).strip()
