"""Checkpoints with seeded random weights: the network is real, but its masks are meaningless.

Meta's weights are gated. Use such a checkpoint to test anything that does not depend on correct masks.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .architecture import Architecture
from .checkpoints.checkpoint import checkpoint_contents
from .contexts import importing_sam3

with importing_sam3():
    from .network import Sam3Image, build_network

SMALL = Architecture(
    resolution=112,
    patch_size=14,
    vit_pretrain_resolution=56,
    vit_width=32,
    vit_depth=3,
    vit_heads=2,
    vit_mlp_ratio=2.0,
    vit_window=4,
    vit_global_blocks=(1,),
    width=32,
    heads=4,
    ffn_width=64,
    encoder_layers=2,
    decoder_layers=2,
    geometry_layers=1,
    queries=12,
    pixel_decoder_stages=2,
    text_width=16,
    text_heads=2,
    text_layers=2,
    mask_decoder_heads=4,
    mask_decoder_ffn_width=64,
    iou_head_width=32,
    fill_hole_area=8,
    memory_width=16,
    memory_layers=1,
    memory_fuser_layers=1,
)


def write_random_checkpoint(path: Path, architecture: Architecture = SMALL, seed: int = 0) -> None:
    """Write a checkpoint with random weights. The same seed and sizes give the same weights.

    Args:
        path: file to write; 4 MB for :data:`SMALL`, 3.45 GB for SAM 3's own sizes.
        architecture: sizes of the network.
        seed: seed of the random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(architecture, torch.device("cpu"))
        initialise_text_encoder(network, position_deviation=0.01)
    torch.save(checkpoint_contents(network, architecture), path)


def initialise_text_encoder(network: Sam3Image, *, position_deviation: float) -> None:
    """Initialize in place the parameters that the sam3 package leaves uninitialized (``torch.empty``, sometimes NaN).

    Args:
        network: as :func:`~.network.build_network` returns it.
        position_deviation: standard deviation of the position embeddings.
    """
    encoder = network.backbone.language_backbone.encoder
    torch.nn.init.normal_(encoder.positional_embedding, std=position_deviation)
    torch.nn.init.normal_(encoder.text_projection, std=encoder.width**-0.5)
