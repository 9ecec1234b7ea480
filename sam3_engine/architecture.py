"""The sizes of a SAM 3 network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .errors import quote

# no SAM 3 network is larger than this, and building one might take all memory
_LARGEST_SIZES = {
    "resolution": 4096,
    "vit_pretrain_resolution": 4096,
    "text_vocabulary": 2**20,
    "queries": 255,  # a label map numbers them in 8 bits
    "vit_depth": 128,
    "encoder_layers": 64,
    "decoder_layers": 64,
    "geometry_layers": 64,
    "text_layers": 128,
    "mask_decoder_depth": 16,
    "memory_layers": 64,
    "memory_fuser_layers": 16,
}
# recognized from a checkpoint's tensors, so not saved with them
_RECOGNIZED = ("detector", "click_head", "iou_prediction_use_sigmoid", "dynamic_multimask_via_stability")
_MULTIPLES = {
    "resolution": "patch_size",
    "vit_pretrain_resolution": "patch_size",
    "vit_width": "vit_heads",
    "width": "heads",
    "text_width": "text_heads",
}


@dataclass(frozen=True)
class Architecture:
    """Sizes and parts of a network for :func:`~.network.build_network`; the defaults are SAM 3's own.

    Attributes:
        resolution: side of the square network input, in pixels; a multiple of ``patch_size``.
        patch_size: side of an image patch (one token), in pixels.
        vit_pretrain_resolution: input side of the ViT's position tables, in pixels.
        vit_width, vit_depth, vit_heads, vit_mlp_ratio: of the image encoder's transformer.
        vit_window: side of its attention windows, in tokens.
        vit_global_blocks: blocks that attend to the whole image instead.
        width, heads, ffn_width: of every transformer after the image encoder.
        encoder_layers, decoder_layers, geometry_layers: of the detector.
        queries: the maximum number of instances that a concept can have.
        pixel_decoder_stages: upsampling stages of the detector's mask head.
        text_width, text_heads, text_layers, text_context, text_vocabulary: of the text encoder; context in tokens.
        mask_decoder_depth, mask_decoder_heads, mask_decoder_ffn_width, iou_head_width: of the SAM mask decoder.
        mask_decoder_downsample: factor by which its cross attentions are narrower than ``width``.
        fill_hole_area: holes of point and box masks up to this area are filled, in mask logits.
        memory_width, memory_layers, memory_fuser_layers: of the video memory, which images do not use.
        detector: whether the network has the detector, which answers phrases and example boxes.
        click_head: whether the network has the click head, which answers points and boxes.
        iou_prediction_use_sigmoid: squash the click head's scores to 0..1. SAM 3.1 returns them as they are.
        dynamic_multimask_via_stability: if the click head's mask is unstable, return its best candidate instead, which
            SAM 3.1 does not do.
    """

    resolution: int = 1008
    patch_size: int = 14
    vit_pretrain_resolution: int = 336
    vit_width: int = 1024
    vit_depth: int = 32
    vit_heads: int = 16
    vit_mlp_ratio: float = 4.625
    vit_window: int = 24
    vit_global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    width: int = 256
    heads: int = 8
    ffn_width: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    geometry_layers: int = 3
    queries: int = 200
    pixel_decoder_stages: int = 3
    text_width: int = 1024
    text_heads: int = 16
    text_layers: int = 24
    text_context: int = 32
    text_vocabulary: int = 49408
    mask_decoder_depth: int = 2
    mask_decoder_heads: int = 8
    mask_decoder_ffn_width: int = 2048
    mask_decoder_downsample: int = 2
    iou_head_width: int = 256
    fill_hole_area: int = 256
    memory_width: int = 64
    memory_layers: int = 4
    memory_fuser_layers: int = 2
    detector: bool = True
    click_head: bool = True
    iou_prediction_use_sigmoid: bool = True
    dynamic_multimask_via_stability: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "vit_global_blocks":
                valid = all(type(block) is int and 0 <= block < self.vit_depth for block in value)
            elif name == "vit_mlp_ratio":
                valid = isinstance(value, int | float) and 0 < value <= 16
            elif name == "fill_hole_area":
                valid = type(value) is int and value >= 0
            elif name in _RECOGNIZED:
                valid = type(value) is bool
            else:
                valid = type(value) is int and 0 < value <= _LARGEST_SIZES.get(name, 2**14)
            if not valid:
                raise ValueError(f"{name} = {quote(value)} is not a valid size for a SAM 3 network")
        for whole, part in _MULTIPLES.items():
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole} {getattr(self, whole)} is not a multiple of {part} {getattr(self, part)}")

    @property
    def grid(self) -> int:
        """Side of the image embedding, in tokens."""
        return self.resolution // self.patch_size

    def resized(self, resolution: int) -> Architecture:
        """Return the architecture at another input size. Holes that are filled keep their share of the image."""
        hole_area = round(self.fill_hole_area * (resolution / self.resolution) ** 2)
        return replace(self, resolution=resolution, fill_hole_area=hole_area)

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes as plain values, to save with a checkpoint's tensors."""
        return {name: value for name, value in asdict(self).items() if name not in _RECOGNIZED}

    @classmethod
    def from_dict(cls, sizes: object) -> Architecture:
        """Create an architecture from the result of :meth:`to_dict`, with all parts.

        Raises:
            ValueError: a size is missing, unknown or impossible.
        """
        if not isinstance(sizes, Mapping) or set(sizes) != {field.name for field in fields(cls)} - set(_RECOGNIZED):
            raise ValueError("it does not contain the sizes that this version expects")
        values: dict[str, Any] = {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
        return cls(**values)
