"""The layouts of Hugging Face transformers: ``Sam3VideoModel`` and its parts.

transformers keeps the projections of queries, keys and values apart, which sam3 joins, and lacks what only example
points use.

Importing this module imports torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import torch

from .layout import CLICK_HEAD, Conversion, Head, Layout, Rule, only


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the projections of queries, keys and values."""
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError("their shapes differ")
    return torch.cat(list(tensors))


def _equal(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return a tensor that a file holds twice."""
    first, second = tensors
    if first.shape != second.shape or not (first.is_meta or torch.equal(first, second)):
        raise ValueError("they should be equal")
    return first


def _with_class_row(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put a row for the class token in front of a position table; sam3 drops it before use."""
    table = only(tensors)
    return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)


def _row(number: int, rows: int) -> Conversion:
    """Return a conversion that takes one row of a table of ``rows``."""

    def row(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        table = only(tensors)
        if table.shape[0] != rows:
            raise ValueError(f"it has {table.shape[0]} rows, expected {rows}")
        return table[number : number + 1]

    return row


_CLICK_HEAD = re.escape(CLICK_HEAD)
_POINT_LABELS = 4


def _attention(ours: str, theirs: str, output: str = "o_proj") -> tuple[Rule, ...]:
    """Return rules for an attention whose projections of queries, keys and values sam3 joins."""
    group = re.compile(ours).groups + 1
    parts = tuple(rf"{theirs}.{part}_proj.\{group}" for part in "qkv")
    return (
        Rule(rf"{ours}\.in_proj_(weight|bias)", parts, _joined),
        Rule(rf"{ours}\.out_proj\.(weight|bias)", (rf"{theirs}.{output}.\{group}",)),
    )


def _renamed(prefix: tuple[str, str], names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return rules that rename modules or tensors; what follows a module's name stays."""
    ours, theirs = prefix
    rules = []
    for old, new in names.items():
        group = re.compile(ours + old).groups + 1
        rules.append(Rule(rf"{ours}{old}(\.(?:weight|bias)|)", (rf"{theirs}{new}\{group}",)))
    return tuple(rules)


def _layers(ours: str, theirs: str, numbers: Mapping[int, str]) -> dict[str, str]:
    """Return the names of the layers of an MLP."""
    return {rf"{ours}\.{number}": f"{theirs}{name}" for number, name in numbers.items()}


def _fusion_layers(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for the layers of the detector's and of the geometry encoder's transformer."""
    return (
        *_attention(rf"{ours}\.(\d+)\.self_attn", rf"{theirs}.\1.self_attn"),
        *_attention(rf"{ours}\.(\d+)\.cross_attn_image", rf"{theirs}.\1.cross_attn"),
        *_renamed((rf"{ours}\.(\d+)\.", rf"{theirs}.\1."), {r"linear(\d)": r"mlp.fc\2", r"norm(\d)": r"layer_norm\2"}),
    )


def _neck(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for a feature pyramid."""
    return _renamed(
        (rf"backbone\.vision_backbone\.{ours}\.(\d)\.", rf"{theirs}.fpn_layers.\1."),
        {
            r"dconv_2x2(?:_0)?": "scale_layers.0",
            r"dconv_2x2_1": "scale_layers.2",
            r"conv_1x1": "proj1",
            r"conv_3x3": "proj2",
        },
    )


_FROM_1 = {0: "1", 1: "2", 2: "3"}  # transformers counts these layers from 1
_IN_TO_OUT = {0: "proj_in", 1: "layers.0", 2: "proj_out"}

_VIT = (
    Rule(
        r"backbone\.vision_backbone\.trunk\.pos_embed",
        ("detector_model.vision_encoder.backbone.embeddings.position_embeddings",),
        _with_class_row,
    ),
    Rule(
        r"backbone\.vision_backbone\.trunk\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)",
        tuple(rf"detector_model.vision_encoder.backbone.layers.\1.attention.{part}_proj.\2" for part in "qkv"),
        _joined,
    ),
    *_renamed(
        (r"backbone\.vision_backbone\.trunk\.", "detector_model.vision_encoder.backbone."),
        {
            r"patch_embed\.proj": "embeddings.patch_embeddings.projection",
            r"ln_pre": "layer_norm",
            r"blocks\.(\d+)\.norm(\d)": r"layers.\1.layer_norm\2",
            r"blocks\.(\d+)\.attn\.proj": r"layers.\1.attention.o_proj",
            r"blocks\.(\d+)\.mlp\.fc(\d)": r"layers.\1.mlp.fc\2",
        },
    ),
)
_TEXT = (
    *_attention(
        r"backbone\.language_backbone\.encoder\.transformer\.resblocks\.(\d+)\.attn",
        r"detector_model.text_encoder.text_model.encoder.layers.\1.self_attn",
        "out_proj",
    ),
    *_renamed(
        (r"backbone\.language_backbone\.encoder\.", "detector_model.text_encoder.text_model."),
        {
            r"positional_embedding": "embeddings.position_embedding.weight",
            r"token_embedding": "embeddings.token_embedding",
            r"transformer\.resblocks\.(\d+)\.ln_(\d)": r"encoder.layers.\1.layer_norm\2",
            r"transformer\.resblocks\.(\d+)\.mlp\.c_fc": r"encoder.layers.\1.mlp.fc1",
            r"transformer\.resblocks\.(\d+)\.mlp\.c_proj": r"encoder.layers.\1.mlp.fc2",
            r"ln_final": "final_layer_norm",
        },
    ),
    *_renamed((r"backbone\.language_backbone\.", "detector_model."), {r"resizer": "text_projection"}),
)
_GEOMETRY = (
    *_fusion_layers(r"geometry_encoder\.encode", "detector_model.geometry_encoder.layers"),
    *_renamed(
        (r"geometry_encoder\.", "detector_model.geometry_encoder."),
        {
            r"(label_embed|cls_embed|boxes_\w+_project|final_proj)": r"\1",
            r"norm": "prompt_layer_norm",
            r"img_pre_norm": "vision_layer_norm",
            r"encode_norm": "output_layer_norm",
        },
    ),
)
_DECODER_LAYER = (r"transformer\.decoder\.layers\.(\d+)\.", r"detector_model.detr_decoder.layers.\1.")
_DETECTOR = (
    *_fusion_layers(r"transformer\.encoder\.layers", "detector_model.detr_encoder.layers"),
    *(
        rule
        for ours, theirs in (
            ("cross_attn", "vision_cross_attn"),
            ("ca_text", "text_cross_attn"),
            ("self_attn", "self_attn"),
        )
        for rule in _attention(_DECODER_LAYER[0] + ours, _DECODER_LAYER[1] + theirs)
    ),
    *_renamed(
        _DECODER_LAYER,
        {
            r"norm1": "vision_cross_attn_layer_norm",
            r"catext_norm": "text_cross_attn_layer_norm",
            r"norm2": "self_attn_layer_norm",
            r"linear(\d)": r"mlp.fc\2",
            r"norm3": "mlp_layer_norm",
        },
    ),
    *_renamed(
        (r"transformer\.decoder\.", "detector_model.detr_decoder."),
        {
            r"(query_embed|reference_points|presence_token)": r"\1",
            r"norm": "output_layer_norm",
            r"presence_token_out_norm": "presence_layer_norm",
            **_layers(r"bbox_embed\.layers", "box_head.layer", _FROM_1),
            **_layers(r"presence_token_head\.layers", "presence_head.layer", _FROM_1),
            **_layers(r"ref_point_head\.layers", "ref_point_head.layer", _FROM_1),
            **_layers(r"boxRPB_embed_([xy])\.layers", r"box_rpb_embed_\1.layer", _FROM_1),
        },
    ),
    *_renamed(
        (r"dot_prod_scoring\.", "detector_model.dot_product_scoring."),
        {
            **_layers(r"prompt_mlp\.layers", "text_mlp.layer", _FROM_1),
            r"prompt_mlp\.out_norm": "text_mlp_out_norm",
            r"prompt_proj": "text_proj",
            r"hs_proj": "query_proj",
        },
    ),
)
_MASK_HEAD = (
    *_attention(r"segmentation_head\.cross_attend_prompt", "detector_model.mask_decoder.prompt_cross_attn"),
    *_renamed(
        (r"segmentation_head\.", "detector_model.mask_decoder."),
        {
            r"pixel_decoder\.(conv_layers|norms)\.(\d)": r"pixel_decoder.\1.\2",
            r"mask_predictor\.mask_embed\.layers\.(\d)": r"mask_embedder.layers.\1",
            r"cross_attn_norm": "prompt_cross_attn_norm",
            r"semantic_seg_head": "semantic_projection",
            r"instance_seg_head": "instance_projection",
        },
    ),
)
_PROMPT_ENCODER = (rf"{_CLICK_HEAD}sam_prompt_encoder\.", "tracker_model.prompt_encoder.")
_MASK_DECODER = (rf"{_CLICK_HEAD}sam_mask_decoder\.", "tracker_model.mask_decoder.")
_CLICKS = (
    Rule(rf"{_CLICK_HEAD}no_mem_embed", ("tracker_model.no_memory_embedding",)),
    Rule(
        rf"{_PROMPT_ENCODER[0]}pe_layer\.positional_encoding_gaussian_matrix",
        (
            "tracker_model.prompt_encoder.shared_embedding.positional_embedding",
            "tracker_model.shared_image_embedding.positional_embedding",
        ),
        _equal,
    ),
    *(
        Rule(
            rf"{_PROMPT_ENCODER[0]}point_embeddings\.{number}\.weight",
            ("tracker_model.prompt_encoder.point_embed.weight",),
            _row(number, _POINT_LABELS),
        )
        for number in range(_POINT_LABELS)
    ),
    *_renamed(
        _PROMPT_ENCODER,
        {
            r"(not_a_point_embed|no_mask_embed)": r"\1",
            r"mask_downscaling\.0": "mask_embed.conv1",
            r"mask_downscaling\.1": "mask_embed.layer_norm1",
            r"mask_downscaling\.3": "mask_embed.conv2",
            r"mask_downscaling\.4": "mask_embed.layer_norm2",
            r"mask_downscaling\.6": "mask_embed.conv3",
        },
    ),
    *_renamed(
        _MASK_DECODER,
        {
            r"(iou_token|mask_tokens|obj_score_token|conv_s[01])": r"\1",
            r"transformer\.(layers\.\d+\.\w+|final_attn_token_to_image)\.([qkv])_proj": r"transformer.\1.\2_proj",
            r"transformer\.(layers\.\d+\.\w+|final_attn_token_to_image)\.out_proj": r"transformer.\1.o_proj",
            r"transformer\.layers\.(\d+)\.norm(\d)": r"transformer.layers.\1.layer_norm\2",
            r"transformer\.layers\.(\d+)\.mlp\.lin1": r"transformer.layers.\1.mlp.proj_in",
            r"transformer\.layers\.(\d+)\.mlp\.lin2": r"transformer.layers.\1.mlp.proj_out",
            r"transformer\.norm_final_attn": "transformer.layer_norm_final_attn",
            r"output_upscaling\.0": "upscale_conv1",
            r"output_upscaling\.1": "upscale_layer_norm",
            r"output_upscaling\.3": "upscale_conv2",
            **_layers(r"output_hypernetworks_mlps\.(\d)\.layers", r"output_hypernetworks_mlps.\1.", _IN_TO_OUT),
            **_layers(r"(iou_prediction_head|pred_obj_score_head)\.layers", r"\1.", _IN_TO_OUT),
        },
    ),
)
_TRANSFORMERS_RULES = (
    *_VIT,
    *_neck("convs", "detector_model.vision_encoder.neck"),
    *_neck("sam2_convs", "tracker_neck"),
    *_TEXT,
    *_GEOMETRY,
    *_DETECTOR,
    *_MASK_HEAD,
    *_CLICKS,
)
_TRANSFORMERS_UNUSED = (
    r"detector_model\.text_encoder\.text_projection\.weight",
    r"(detector_model\.vision_encoder\.neck|tracker_neck)\.fpn_layers\.3\..*",
    r"tracker_model\.(no_memory_positional_encoding|memory_temporal_positional_encoding|no_object_pointer)",
    r"tracker_model\.occlusion_spatial_embedding_parameter",
    r"tracker_model\.(memory_attention|memory_encoder|mask_downsample|object_pointer_proj)\..*",
    r"tracker_model\.temporal_positional_encoding_projection_layer\..*",
)
_TRANSFORMERS_PREFIXES = (
    # save_pretrained() of transformers 5.24 puts a second prefix in front of some names
    ("tracker_model.tracker_model.", "tracker_model."),
    ("tracker_model.detector_model.", "detector_model."),
    ("tracker_model.tracker_neck.", "tracker_neck."),
    *((prefix, prefix) for prefix in ("detector_model.", "tracker_model.", "tracker_neck.")),
)
TRANSFORMERS = Layout(
    version="SAM 3",
    style=", transformers layout",
    mark=r"(detector_model\.|tracker_model\.|vision_encoder\.backbone\.|detr_(en|de)coder\.)",
    prefixes=(*_TRANSFORMERS_PREFIXES, ("", "detector_model.")),
    detector=Head(
        mark=r"detector_model\.(detr_encoder|detr_decoder|geometry_encoder|dot_product_scoring)\.",
        neck=r"detector_model\.vision_encoder\.neck\..*",
    ),
    click_head=Head(mark=r"tracker_model\.(prompt_encoder|mask_decoder)\.", neck=r"tracker_neck\..*"),
    mask_head=r"detector_model\.mask_decoder\.",
    rules=_TRANSFORMERS_RULES,
    unused=_TRANSFORMERS_UNUSED,
)
TRANSFORMERS_CLICK_HEAD = dataclasses.replace(
    TRANSFORMERS,
    mark=r"(prompt_encoder|shared_image_embedding|no_memory_embedding)\b",
    prefixes=(
        *_TRANSFORMERS_PREFIXES,
        ("vision_encoder.backbone.", "detector_model.vision_encoder.backbone."),
        ("vision_encoder.neck.", "tracker_neck."),
        ("", "tracker_model."),
    ),
)
