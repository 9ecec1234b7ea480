"""Seeded random SAM 3 models of the transformers package: their files, and their own answers.

Importing this module imports transformers and sam3.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Sam3Model,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)

from sam3_engine.architecture import Architecture
from sam3_engine.contexts import importing_sam3
from sam3_engine.network import vocabulary_path
from sam3_engine.prompts import Box, Point

with importing_sam3():
    from sam3.model.tokenizer_ve import SimpleTokenizer

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SAM3_EPSILON = 1e-5  # of the layer norms of sam3's ViT
EPSILON = 1e-6  # transformers' default
NECK = (4.0, 2.0, 1.0, 0.5)  # transformers' default scales of the feature pyramids

# of random weights, by a part of the name; 2 for all others
_GAINS = {
    ".proj2.": 0.1,  # attention to large image features amplifies rounding errors
    "q_proj.": 3.0,
    "k_proj.": 3.0,
    "query_proj.": 8.0,  # the scores of the queries: otherwise they are nearly the same
}
_PADDING = -10  # transformers' label of a box that only fills a batch
_VISUAL = "visual"  # the phrase of a prompt with example boxes alone


@dataclass(frozen=True)
class Answer:
    """What a model returns for one prompt, before any postprocessing.

    Attributes:
        scores: (n,) 0..1, of queries or candidates.
        mask_logits: (n, h, w).
        boxes: (n, 4) as (x1, y1, x2, y2) in fractions of the image, clipped to it; None for clicks.
    """

    scores: np.ndarray
    mask_logits: np.ndarray
    boxes: np.ndarray | None = None


def video_config(sizes: Architecture, epsilon: float = SAM3_EPSILON) -> Sam3VideoConfig:
    """Return the configuration of a ``Sam3VideoModel`` with the given sizes.

    Args:
        sizes: of the network.
        epsilon: of the layer norms of the ViT.
    """
    vision, clicks = _vision_config(sizes, epsilon, NECK), _click_config(sizes)
    text = {
        "model_type": "clip_text_model",
        "vocab_size": sizes.text_vocabulary,
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "projection_dim": 512,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        "max_position_embeddings": sizes.text_context,
        "hidden_act": "gelu",
    }
    transformer = {
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.ffn_width,
    }
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": text,
        "geometry_encoder_config": {**transformer, "num_layers": sizes.geometry_layers},
        "detr_encoder_config": {**transformer, "num_layers": sizes.encoder_layers},
        "detr_decoder_config": {
            **transformer,
            "num_layers": sizes.decoder_layers,
            "num_queries": sizes.queries,
        },
        "mask_decoder_config": {
            "hidden_size": sizes.width,
            "num_attention_heads": sizes.heads,
            "num_upsampling_stages": sizes.pixel_decoder_stages,
        },
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "image_size": sizes.resolution,
        "vision_config": vision,
        **clicks,
        "memory_attention_hidden_size": sizes.width,
        "memory_attention_num_layers": sizes.memory_layers,
        "memory_attention_feed_forward_hidden_size": sizes.ffn_width,
        "memory_encoder_hidden_size": sizes.width,
        "memory_encoder_output_channels": sizes.memory_width,
        "mask_downsampler_embed_dim": sizes.width,
        "memory_fuser_num_layers": sizes.memory_fuser_layers,
        "memory_fuser_embed_dim": sizes.width,
        "memory_fuser_intermediate_dim": 4 * sizes.width,
    }
    return Sam3VideoConfig(detector_config=detector, tracker_config=tracker, low_res_mask_size=4 * sizes.grid)


def click_config(
    sizes: Architecture, epsilon: float = SAM3_EPSILON, neck: Sequence[float] = NECK[:-1]
) -> Sam3TrackerConfig:
    """Return the configuration of a ``Sam3TrackerModel`` with the given sizes.

    Args:
        sizes: of the network.
        epsilon: of the layer norms of the ViT.
        neck: scales of the feature pyramid. transformers adds the no-memory embedding to the last level, but uses the
            first three: with its default of four, that embedding has no effect.
    """
    return Sam3TrackerConfig(vision_config=_vision_config(sizes, epsilon, neck), **_click_config(sizes))


def _vision_config(sizes: Architecture, epsilon: float, neck: Sequence[float]) -> dict[str, Any]:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": sizes.vit_width,
        "intermediate_size": int(sizes.vit_width * sizes.vit_mlp_ratio),
        "num_hidden_layers": sizes.vit_depth,
        "num_attention_heads": sizes.vit_heads,
        "image_size": sizes.resolution,
        "patch_size": sizes.patch_size,
        "window_size": sizes.vit_window,
        "global_attn_indexes": list(sizes.vit_global_blocks),
        "pretrain_image_size": sizes.vit_pretrain_resolution,
        "layer_norm_eps": epsilon,
    }
    return {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": sizes.width,
        "backbone_feature_sizes": [[scale * sizes.grid] * 2 for scale in (4, 2, 1)],
        "scale_factors": list(neck),
    }


def _click_config(sizes: Architecture) -> dict[str, Any]:
    return {
        "prompt_encoder_config": {
            "hidden_size": sizes.width,
            "image_size": sizes.resolution,
            "patch_size": sizes.patch_size,
        },
        "mask_decoder_config": {
            "hidden_size": sizes.width,
            "mlp_dim": sizes.mask_decoder_ffn_width,
            "num_hidden_layers": sizes.mask_decoder_depth,
            "num_attention_heads": sizes.mask_decoder_heads,
            "attention_downsample_rate": sizes.mask_decoder_downsample,
            "iou_head_hidden_dim": sizes.iou_head_width,
        },
    }


def random_video_model(config: Sam3VideoConfig, seed: int) -> Sam3VideoModel:
    """Build a ``Sam3VideoModel`` with random weights, in evaluation mode. The same seed gives the same weights."""
    model = Sam3VideoModel(config).eval()
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model: PreTrainedModel, seed: int) -> None:
    """Overwrite the weights of ``model``, so that each of them differs from all others and matters.

    transformers initializes biases to 0, norms to 1 and some embeddings to 0: such a model does not tell whether these
    tensors were loaded into the right places.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        tensor.normal_(std=_deviation(name, tensor), generator=generator)
        if "norm" in name and name.endswith("weight"):
            tensor.add_(1)
    # the published file has this table twice, too
    table, copy = (name for name in tensors if name.endswith(".positional_embedding"))
    tensors[copy].copy_(tensors[table])


def _deviation(name: str, tensor: torch.Tensor) -> float:
    """Return a standard deviation at which activations stay near 1, and scores and masks do not saturate."""
    if re.search(r"(embed|embeddings?|tokens?|reference_points)(\.weight)?$", name):
        return 1.0
    if tensor.ndim < 2:
        return 0.2
    # transposed convolutions have their inputs first, and reach each pixel once
    inputs = tensor.shape[0] if re.search("upscale_conv|scale_layers", name) else tensor[0].numel()
    gain = next((gain for part, gain in _GAINS.items() if part in name), 2.0)
    return (gain / inputs) ** 0.5


def save_as_published(model: Sam3VideoModel, folder: Path, architecture: Architecture | None) -> Path:
    """Create ``folder`` as the published one: a configuration, and tensors named as in ``state_dict()``.

    ``save_pretrained`` of transformers 5.24 doubles the prefix ``tracker_model.``, and ``Sam3TrackerModel`` does not
    find these tensors any more.

    Returns:
        The path of the file with the tensors.
    """
    folder.mkdir()
    model.config.save_pretrained(folder)
    return save_state(model, folder / "model.safetensors", architecture)


def save(model: PreTrainedModel, folder: Path, architecture: Architecture, max_shard_size: str = "5GB") -> list[Path]:
    """Save ``model`` with ``save_pretrained``, and the architecture for the engine in the last file's metadata.

    Returns:
        The paths of its files, without their index.
    """
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    paths = sorted(folder.glob("*.safetensors"))
    with safe_open(paths[-1], framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors, paths[-1], _metadata(architecture))
    return paths


def save_state(model: PreTrainedModel, path: Path, architecture: Architecture | None) -> Path:
    """Save the ``state_dict()`` of ``model`` under its own names, which ``save_pretrained`` may change.

    Args:
        model: to save.
        path: of the file.
        architecture: sizes to save with it, for the engine; None for a network of SAM 3's own sizes.

    Returns:
        ``path``.
    """
    save_file(model.state_dict(), path, _metadata(architecture) if architecture else {"format": "pt"})
    return path


def _metadata(architecture: Architecture) -> dict[str, str]:
    return {"format": "pt", "architecture": json.dumps(architecture.to_dict())}


def load_reference(model: Any, folder: Path, config: PreTrainedConfig | None = None, **options: Any) -> Any:
    """Load a model with ``from_pretrained``, which must find all its weights in the folder."""
    loaded, report = model.from_pretrained(folder, config=config, output_loading_info=True, **options)
    assert not report["missing_keys"]
    return loaded.eval()


class TransformersUse:
    """transformers' own models on one image, which has the size of the network's input.

    Args:
        image: (resolution, resolution, 3) uint8 RGB.
        detector: answers concepts; None if you ask for none.
        click_head: answers points and boxes; None if you ask for none.
    """

    def __init__(
        self, image: np.ndarray, detector: Sam3Model | None = None, click_head: Sam3TrackerModel | None = None
    ) -> None:
        self._side = image.shape[0]
        self._detector: Any = detector
        self._click_head: Any = click_head
        model = detector or click_head
        assert model is not None
        self._device, self._dtype = model.device, model.dtype
        pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1)[None]
        pixels = ((pixels / 255 - 0.5) / 0.5).to(self._dtype)
        with torch.inference_mode():
            self._features = detector.get_vision_features(pixels) if detector else None
            self._embeddings = click_head.get_image_embeddings(pixels) if click_head else None

    @torch.inference_mode()
    def concept(
        self, phrase: str, boxes: Sequence[Box] = (), labels: Sequence[int] = (), *, class_token: bool = True
    ) -> Answer:
        """Return the answer to a phrase, example boxes, or both.

        Args:
            phrase: blank if only boxes say what to find.
            boxes: example boxes (x1, y1, x2, y2) in pixels.
            labels: one per box, 1 for a positive and 0 for a negative example.
            class_token: give the detector the class token of the geometry encoder even if there are no boxes. sam3
                always does; transformers does only if there is a box, and a box that is padding is enough.
        """
        assert self._detector is not None
        given: dict[str, torch.Tensor] = {}
        if boxes or class_token:
            x1, y1, x2, y2 = torch.tensor(boxes or [[0.0, 0.0, 1.0, 1.0]]).T / self._side
            given["input_boxes"] = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)[None]
            given["input_boxes_labels"] = torch.tensor([list(labels) or [_PADDING]])
        tokens = _tokenizer()([phrase or _VISUAL], self._detector.config.text_config.max_position_embeddings)
        given |= {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
        found = self._detector(vision_embeds=self._features, **self._on_device(given))
        scores = found.pred_logits.sigmoid() * found.presence_logits.sigmoid()
        return Answer(*map(_as_array, (scores[0], found.pred_masks[0], found.pred_boxes[0].clamp(0, 1))))

    @torch.inference_mode()
    def click(
        self, multimask: bool, points: Sequence[Point] = (), labels: Sequence[int] = (), boxes: Sequence[Box] = ()
    ) -> Answer:
        """Return the answer to points, or one box, or both, in pixels."""
        assert self._click_head is not None
        given: dict[str, torch.Tensor] = {}
        if points:
            given["input_points"] = torch.tensor([[points]], dtype=torch.float32)
            given["input_labels"] = torch.tensor([[labels]])
        if boxes:
            given["input_boxes"] = torch.tensor([boxes], dtype=torch.float32)
        found = self._click_head(
            image_embeddings=self._embeddings, multimask_output=multimask, **self._on_device(given)
        )
        return Answer(*map(_as_array, (found.iou_scores.flatten(), found.pred_masks[0, 0])))

    def _on_device(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: one.to(self._device, self._dtype if one.is_floating_point() else None) for name, one in given.items()
        }


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(bpe_path=str(vocabulary_path()))
