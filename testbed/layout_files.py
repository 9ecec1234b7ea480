"""Write a SAM 3 network in every layout of tensors that people have.

Everything starts from a checkpoint with Meta's names (``detector.*`` and ``tracker.*``). The names and shapes of the
other layouts come from what is published about them and, for transformers, from its own classes; they share nothing
with the tables that the engine reads these files with.

Importing this module imports torch and safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
Renamings = tuple[tuple[str, str], ...]  # patterns and their replacements, all applied in this order

_NECK = "detector.backbone.vision_backbone."
_CLICK_HEAD = ("sam_prompt_encoder.", "sam_mask_decoder.", "mask_downsample.", "obj_ptr_proj.")

# every part of a network that segments images without using it
VIDEO = (
    "tracker.transformer.",
    "tracker.maskmem_",
    "tracker.no_mem_pos_enc",
    "tracker.no_obj_",
    "tracker.obj_ptr_",
    "tracker.mask_downsample.",
)


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint, and the sizes of its network."""

    tensors: Tensors
    architecture: Mapping[str, Any]


def read_contents(path: Path) -> Contents:
    """Read a checkpoint that the engine wrote, in float32."""
    saved = torch.load(path, weights_only=True)
    return Contents(cast(saved["model"], torch.float32), saved["architecture"])


def cast(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return the tensors in another dtype; complex ones stay as they are."""
    return {name: tensor if tensor.is_complex() else tensor.to(dtype) for name, tensor in tensors.items()}


def without(tensors: Tensors, *parts: str) -> Tensors:
    """Return the tensors whose names contain none of ``parts``."""
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


# SAM 3.1


def as_sam31(tensors: Tensors) -> Tensors:
    """Return the tensors as in ``sam3.1_multiplex.pt``.

    Its video tracker is invented: noise under the names of SAM 3's tracker. Many of its tensors have SAM 3's shapes, so
    that a reader that takes ``tracker.model.sam_mask_decoder`` for the click head gets wrong answers, not an error.
    """
    noise = torch.Generator().manual_seed(31)

    def invent(like: torch.Tensor) -> torch.Tensor:
        shape = (2 * like.shape[0], *like.shape[1:]) if like.ndim > 2 else like.shape
        return torch.randn(shape, generator=noise)

    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(_NECK + "sam2_convs."):
            part = name.removeprefix(_NECK + "sam2_convs.")
            if not part.startswith("3."):
                renamed[f"{_NECK}interactive_convs.{part}"] = tensor
                renamed[f"{_NECK}propagation_convs.{part}"] = torch.randn(tensor.shape, generator=noise)
        elif name.startswith(_NECK + "convs.3."):
            continue
        elif name.startswith("detector."):
            renamed[name] = tensor
        else:
            part = name.removeprefix("tracker.")
            if part.startswith(_CLICK_HEAD):
                renamed[f"tracker.model.interactive_{part}"] = tensor
            if part == "no_mem_embed":
                renamed["tracker.model.interactivity_no_mem_embed"] = tensor
            renamed[f"tracker.model.{part}"] = invent(tensor)
    renamed["tracker.model.output_valid_embed"] = torch.randn((16, 8), generator=noise)
    renamed["tracker.model.output_invalid_embed"] = torch.randn((16, 8), generator=noise)
    return renamed


def with_old_prefixes(tensors: Tensors) -> Tensors:
    """Return the tensors under the prefixes of older copies of SAM 3.1."""
    prefixes = {"detector.": "sam3_model.", "tracker.": "sam2_predictor."}
    return {re.sub(r"^(detector|tracker)\.", lambda found: prefixes[found[0]], name): t for name, t in tensors.items()}


# transformers

_ATTENTION: Renamings = ((r"\b(self|cross)_attn\.out_proj\.", r"\1_attn.o_proj."),)
_TWO_LAYER_MLP: Renamings = ((r"\.linear(\d)\.", r".mlp.fc\1."),)
_NORMS: Renamings = ((r"\.norm(\d)\.", r".layer_norm\1."),)

# transformers counts the layers of small perceptrons from 1
_PERCEPTRON: Renamings = (
    (r"\.layers\.0\.(weight|bias)$", r".layer1.\1"),
    (r"\.layers\.1\.(weight|bias)$", r".layer2.\1"),
    (r"\.layers\.2\.(weight|bias)$", r".layer3.\1"),
)
_THREE_LAYER_PERCEPTRON: Renamings = (
    (r"\.layers\.0\.(weight|bias)$", r".proj_in.\1"),
    (r"\.layers\.1\.(weight|bias)$", r".layers.0.\1"),
    (r"\.layers\.2\.(weight|bias)$", r".proj_out.\1"),
)
_PYRAMID: Renamings = (
    (r"\.dconv_2x2(_0)?\.", ".scale_layers.0."),
    (r"\.dconv_2x2_1\.", ".scale_layers.2."),
    (r"\.conv_1x1\.", ".proj1."),
    (r"\.conv_3x3\.", ".proj2."),
)

# parts of Meta's detector, without "detector."; the first pattern is the part
_DETECTOR_PARTS: tuple[Renamings, ...] = (
    (
        (r"^backbone\.vision_backbone\.trunk\.", "vision_encoder.backbone."),
        (r"\.pos_embed$", ".embeddings.position_embeddings"),
        (r"\.patch_embed\.proj\.", ".embeddings.patch_embeddings.projection."),
        (r"\.ln_pre\.", ".layer_norm."),
        (r"\.blocks\.", ".layers."),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.attn\.", ".attention."),
        *_NORMS,
    ),
    ((r"^backbone\.vision_backbone\.convs\.", "vision_encoder.neck.fpn_layers."), *_PYRAMID),
    ((r"^backbone\.language_backbone\.resizer\.", "text_projection."),),
    ((r"^backbone\.language_backbone\.encoder\.text_projection$", "text_encoder.text_projection.weight"),),
    (
        (r"^backbone\.language_backbone\.encoder\.", "text_encoder.text_model."),
        (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
        (r"\.token_embedding\.", ".embeddings.token_embedding."),
        (r"\.transformer\.resblocks\.", ".encoder.layers."),
        (r"\.attn\.", ".self_attn."),
        (r"\.ln_(\d)\.", r".layer_norm\1."),
        (r"\.c_fc\.", ".fc1."),
        (r"\.c_proj\.", ".fc2."),
        (r"\.ln_final\.", ".final_layer_norm."),
    ),
    (
        (r"^geometry_encoder\.", "geometry_encoder."),
        (r"\.encode\.(\d+)\.", r".layers.\1."),
        (r"\.cross_attn_image\.", ".cross_attn."),
        (r"^geometry_encoder\.norm\.", "geometry_encoder.prompt_layer_norm."),
        (r"\.img_pre_norm\.", ".vision_layer_norm."),
        (r"\.encode_norm\.", ".output_layer_norm."),
        *_ATTENTION,
        *_TWO_LAYER_MLP,
        *_NORMS,
    ),
    (
        (r"^transformer\.encoder\.", "detr_encoder."),
        (r"\.cross_attn_image\.", ".cross_attn."),
        *_ATTENTION,
        *_TWO_LAYER_MLP,
        *_NORMS,
    ),
    (
        (r"^transformer\.decoder\.layers\.", "detr_decoder.layers."),
        (r"\.cross_attn\.", ".vision_cross_attn."),
        (r"\.ca_text\.", ".text_cross_attn."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.norm1\.", ".vision_cross_attn_layer_norm."),
        (r"\.norm2\.", ".self_attn_layer_norm."),
        (r"\.catext_norm\.", ".text_cross_attn_layer_norm."),
        (r"\.norm3\.", ".mlp_layer_norm."),
        *_TWO_LAYER_MLP,
    ),
    (
        (r"^transformer\.decoder\.", "detr_decoder."),
        (r"\.norm\.", ".output_layer_norm."),
        (r"\.bbox_embed\.", ".box_head."),
        (r"\.presence_token_head\.", ".presence_head."),
        (r"\.presence_token_out_norm\.", ".presence_layer_norm."),
        (r"\.boxRPB_embed_", ".box_rpb_embed_"),
        *_PERCEPTRON,
    ),
    (
        (r"^segmentation_head\.", "mask_decoder."),
        (r"\.mask_predictor\.mask_embed\.", ".mask_embedder."),
        (r"\.instance_seg_head\.", ".instance_projection."),
        (r"\.semantic_seg_head\.", ".semantic_projection."),
        (r"\.cross_attend_prompt\.", ".prompt_cross_attn."),
        (r"\.cross_attn_norm\.", ".prompt_cross_attn_norm."),
        (r"\.out_proj\.", ".o_proj."),
    ),
    (
        (r"^dot_prod_scoring\.", "dot_product_scoring."),
        (r"\.prompt_mlp\.out_norm\.", ".text_mlp_out_norm."),
        (r"\.prompt_mlp\.", ".text_mlp."),
        (r"\.prompt_proj\.", ".text_proj."),
        (r"\.hs_proj\.", ".query_proj."),
        *_PERCEPTRON,
    ),
)

# parts of Meta's tracker, without "tracker."
_TRACKER_PARTS: tuple[Renamings, ...] = (
    ((r"^no_mem_embed$", "no_memory_embedding"),),
    ((r"^no_mem_pos_enc$", "no_memory_positional_encoding"),),
    ((r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),),
    ((r"^no_obj_ptr$", "no_object_pointer"),),
    ((r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),),
    ((r"^mask_downsample\.", "mask_downsample."),),
    ((r"^obj_ptr_proj\.", "object_pointer_proj."), *_THREE_LAYER_PERCEPTRON),
    ((r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),),
    (
        (r"^transformer\.encoder\.", "memory_attention."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.norm\.", ".layer_norm."),
        *_NORMS,
    ),
    (
        (r"^maskmem_backbone\.", "memory_encoder."),
        (r"\.mask_downsampler\.encoder\.12\.", ".mask_downsampler.final_conv."),
        *((rf"\.mask_downsampler\.encoder\.{3 * n}\.", f".mask_downsampler.layers.{n}.conv.") for n in range(4)),
        *((rf"\.mask_downsampler\.encoder\.{3 * n + 1}\.", f".mask_downsampler.layers.{n}.norm.") for n in range(4)),
        (r"\.pix_feat_proj\.", ".feature_projection."),
        (r"\.fuser\.", ".memory_fuser."),
        (r"\.gamma$", ".scale"),
        (r"\.dwconv\.", ".depthwise_conv."),
        (r"\.norm\.", ".layer_norm."),
        (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
        (r"\.out_proj\.", ".projection."),
    ),
    (
        (r"^sam_prompt_encoder\.", "prompt_encoder."),
        (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
        (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
        (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
        (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
        (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
        (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    ),
    (
        (r"^sam_mask_decoder\.", "mask_decoder."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.lin1\.", ".proj_in."),
        (r"\.lin2\.", ".proj_out."),
        (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
        (r"\.output_upscaling\.0\.", ".upscale_conv1."),
        (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
        (r"\.output_upscaling\.3\.", ".upscale_conv2."),
        *_NORMS,
        *_THREE_LAYER_PERCEPTRON,
    ),
)


def as_transformers_detector(tensors: Tensors) -> Tensors:
    """Return the tensors of a ``Sam3Model``: the detector without the projections of example points."""
    renamed: Tensors = {}
    for name, tensor in _part_of(tensors, "detector.").items():
        if name.endswith(".freqs_cis") or ".sam2_convs." in name or name.startswith("geometry_encoder.points_"):
            continue
        if name.endswith("trunk.pos_embed"):
            tensor = tensor[:, 1:]  # without the class token
        elif name.endswith("encoder.text_projection"):
            tensor = tensor.T
        renamed |= _split_joined(_renamed(name, _DETECTOR_PARTS), tensor)
    return renamed


def as_transformers_tracker(tensors: Tensors) -> Tensors:
    """Return the tensors of a ``Sam3TrackerVideoModel`` without its image encoder."""
    points: Tensors = {}
    others: Tensors = {}
    for name, tensor in _part_of(tensors, "tracker.").items():
        (points if ".point_embeddings." in name else others)[name] = tensor
    renamed = {_renamed(name, _TRACKER_PARTS): tensor for name, tensor in others.items()}
    renamed["prompt_encoder.point_embed.weight"] = torch.cat(
        [points[f"sam_prompt_encoder.point_embeddings.{number}.weight"] for number in range(len(points))]
    )
    renamed["shared_image_embedding.positional_embedding"] = renamed[
        "prompt_encoder.shared_embedding.positional_embedding"
    ].clone()
    return renamed


def as_transformers_neck(tensors: Tensors) -> Tensors:
    """Return the tensors of the click head's feature pyramid."""
    neck = _part_of(tensors, _NECK + "sam2_convs.")
    return {_apply(((r"^", "fpn_layers."), *_PYRAMID), name): tensor for name, tensor in neck.items()}


def as_transformers_video(tensors: Tensors) -> Tensors:
    """Return the tensors of a ``Sam3VideoModel``, as in the ``model.safetensors`` of facebook/sam3."""
    return (
        _behind("detector_model.", as_transformers_detector(tensors))
        | _behind("tracker_model.", as_transformers_tracker(tensors))
        | _behind("tracker_neck.", as_transformers_neck(tensors))
    )


def as_transformers_click_head(tensors: Tensors) -> Tensors:
    """Return the tensors of a ``Sam3TrackerModel``, under the names of its ``state_dict()``."""
    detector = as_transformers_detector(tensors)
    return (
        {name: tensor for name, tensor in detector.items() if name.startswith("vision_encoder.backbone.")}
        | _behind("vision_encoder.neck.", as_transformers_neck(tensors))
        | as_transformers_tracker(without(tensors, *VIDEO))
    )


def as_saved_transformers_click_head(tensors: Tensors) -> Tensors:
    """Return the tensors of a ``Sam3TrackerModel`` under the names that its ``save_pretrained`` writes."""
    renamings = (
        (r"^vision_encoder\.backbone\.", "detector_model.vision_encoder.backbone."),
        (r"^vision_encoder\.neck\.", "tracker_neck."),
        (r"^", "tracker_model."),
    )
    return {_apply(renamings, name): tensor for name, tensor in as_transformers_click_head(tensors).items()}


def _part_of(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _behind(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _renamed(name: str, parts: tuple[Renamings, ...]) -> str:
    """Apply the renamings of the first part whose own pattern, the first, is in the name."""
    return _apply(next(part for part in parts if re.search(part[0][0], name)), name)


def _apply(renamings: Renamings, name: str) -> str:
    for pattern, replacement in renamings:
        name = re.sub(pattern, replacement, name)
    return name


def _split_joined(name: str, tensor: torch.Tensor) -> Tensors:
    """Split a joint projection of queries, keys and values into three."""
    joined = re.fullmatch(r"(.+\.)(?:qkv\.|in_proj_)(weight|bias)", name)
    if not joined:
        return {name: tensor}
    return {f"{joined[1]}{one}_proj.{joined[2]}": part for one, part in zip("qkv", tensor.chunk(3), strict=True)}


# fine-tuned


def as_fine_tuned(tensors: Tensors) -> Tensors:
    """Return the tensors as Meta's trainer writes them: a detector alone, without a prefix."""
    return _part_of(without(tensors, ".sam2_convs."), "detector.")


# files


def write_torch(path: Path, tensors: Tensors, architecture: Mapping[str, Any]) -> Path:
    """Write a ``.pt`` with the tensors at the top level, as Meta's."""
    torch.save({**tensors, "architecture": architecture}, path)
    return path


def write_training_checkpoint(path: Path, tensors: Tensors, architecture: Mapping[str, Any]) -> Path:
    """Write a ``.pt`` with the tensors under "model", and the state of a training run beside them."""
    moments = {number: {"step": 7, "exp_avg": torch.zeros(100)} for number in range(3)}
    training = {
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0, 1, 2]}]},
        "epoch": 3,
        "steps": {"train": 1200, "val": 0},
        "loss": None,
        "scaler": {"scale": 65536.0},
    }
    torch.save({"model": tensors, **training, "architecture": architecture}, path)
    return path


def write_safetensors(path: Path, tensors: Tensors, architecture: Mapping[str, Any]) -> Path:
    """Write a ``.safetensors`` with the architecture in its metadata."""
    metadata = {"format": "pt", "architecture": json.dumps(architecture)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def write_sharded_safetensors(path: Path, tensors: Tensors, architecture: Mapping[str, Any]) -> Path:
    """Write two ``.safetensors`` and their index beside ``path``, and return the path of the index."""
    names = sorted(tensors)
    shards = {
        f"{path.stem}-0000{number}-of-00002.safetensors": part
        for number, part in enumerate((names[::2], names[1::2]), start=1)
    }
    for shard, part in shards.items():
        write_safetensors(path.with_name(shard), {name: tensors[name] for name in part}, architecture)
    index = path.with_name(f"{path.stem}.safetensors.index.json")
    size = sum(tensor.nbytes for tensor in tensors.values())
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return index


# layouts

SAM3 = "SAM 3"
SAM31 = "SAM 3.1 (multiplex)"
TRANSFORMERS = "SAM 3, transformers layout"
DETECTOR = "SAM 3 detector without click head"
TRANSFORMERS_DETECTOR = "SAM 3 detector without click head, transformers layout"
TRANSFORMERS_CLICK_HEAD = "SAM 3 click head without detector, transformers layout"


@dataclass(frozen=True)
class Layout:
    """One form of file that people have.

    Attributes:
        description: what users are told that the file is.
        suffix: of the file's name.
        write: writes tensors that are in this layout.
        convert: takes tensors with Meta's SAM 3 names to this layout.
        dtype: of the numbers in the file.
    """

    description: str
    suffix: str
    write: Callable[[Path, Tensors, Mapping[str, Any]], Path]
    convert: Callable[[Tensors], Tensors]
    dtype: torch.dtype = torch.float32

    def tensors(self, tensors: Tensors) -> Tensors:
        """Return tensors with Meta's SAM 3 names in this layout."""
        return cast(self.convert(tensors), self.dtype)

    def save(self, folder: Path, contents: Contents) -> Path:
        """Write a network in this layout, and return the path to load."""
        path = folder / f"model{self.suffix}"
        return self.write(path, self.tensors(contents.tensors), contents.architecture)


def _unchanged(tensors: Tensors) -> Tensors:
    return tensors


def _converted(tensors: Tensors) -> Tensors:
    """Leave out what conversions of SAM 3.1 to half precision leave out."""
    return without(as_sam31(tensors), ".freqs_cis", ".text_projection")


LAYOUTS = {
    "sam3": Layout(SAM3, ".pt", write_torch, _unchanged),
    "sam3, training checkpoint": Layout(SAM3, ".pt", write_training_checkpoint, _unchanged),
    "sam3, safetensors": Layout(SAM3, ".safetensors", write_safetensors, _unchanged),
    "sam3, safetensors, float16": Layout(SAM3, ".safetensors", write_safetensors, _unchanged, torch.float16),
    "sam3.1": Layout(SAM31, ".pt", write_torch, as_sam31),
    "sam3.1, older prefixes": Layout(SAM31, ".pt", write_torch, lambda tensors: with_old_prefixes(as_sam31(tensors))),
    "sam3.1, float16": Layout(SAM31, ".pt", write_torch, as_sam31, torch.float16),
    "sam3.1, bfloat16": Layout(SAM31, ".pt", write_torch, as_sam31, torch.bfloat16),
    "sam3.1, safetensors": Layout(SAM31, ".safetensors", write_safetensors, as_sam31),
    "sam3.1, safetensors, float16": Layout(SAM31, ".safetensors", write_safetensors, as_sam31, torch.float16),
    "sam3.1, converted to float16": Layout(SAM31, ".safetensors", write_safetensors, _converted, torch.float16),
    "sam3.1, converted to bfloat16": Layout(SAM31, ".safetensors", write_safetensors, _converted, torch.bfloat16),
    "transformers": Layout(TRANSFORMERS, ".safetensors", write_safetensors, as_transformers_video),
    "transformers, float16": Layout(
        TRANSFORMERS, ".safetensors", write_safetensors, as_transformers_video, torch.float16
    ),
    "transformers, sharded": Layout(TRANSFORMERS, ".safetensors", write_sharded_safetensors, as_transformers_video),
    "transformers detector": Layout(TRANSFORMERS_DETECTOR, ".safetensors", write_safetensors, as_transformers_detector),
    "transformers click head": Layout(
        TRANSFORMERS_CLICK_HEAD, ".safetensors", write_safetensors, as_transformers_click_head
    ),
    "transformers click head, as save_pretrained writes it": Layout(
        TRANSFORMERS_CLICK_HEAD, ".safetensors", write_safetensors, as_saved_transformers_click_head
    ),
    "fine-tuned": Layout(DETECTOR, ".pt", write_torch, as_fine_tuned),
    "fine-tuned, behind module.": Layout(
        DETECTOR, ".pt", write_torch, lambda tensors: _behind("module.", as_fine_tuned(tensors))
    ),
    "fine-tuned, training checkpoint": Layout(DETECTOR, ".pt", write_training_checkpoint, as_fine_tuned),
    "fine-tuned, safetensors, bfloat16": Layout(
        DETECTOR, ".safetensors", write_safetensors, as_fine_tuned, torch.bfloat16
    ),
}
