"""Write a checkpoint of seeded random weights: the network is real, its answers are not.

    python -m testbed.random_weights sam3_random.pt            # full size, 3.45 GB
    python -m testbed.random_weights small_random.pt --small   # 4 MB, for tests

SAM 3's weights are gated. What needs a network of the real size but no right masks (timings, memory, parity with the
sam3 package) runs on such a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sam3_engine.model import Architecture, Sam3Image, build_network, checkpoint_contents

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


FULL_SIZE_FILE = Path(__file__).resolve().parent.parent / ".cache" / "sam3_random.pt"


def full_size_checkpoint() -> Path:
    """A checkpoint of SAM 3's own sizes, made at the first call (a minute, 3.45 GB) and kept in ``.cache``."""
    if not FULL_SIZE_FILE.exists():
        FULL_SIZE_FILE.parent.mkdir(exist_ok=True)
        unfinished = FULL_SIZE_FILE.with_suffix(".unfinished")
        write_random_checkpoint(unfinished, Architecture(), seed=1)
        unfinished.rename(FULL_SIZE_FILE)
    return FULL_SIZE_FILE


def write_random_checkpoint(path: Path, architecture: Architecture, seed: int = 0) -> None:
    """Write a checkpoint of random weights that is the same for the same seed and sizes.

    Args:
        path: file to write.
        architecture: sizes of the network.
        seed: of the random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(architecture, torch.device("cpu"))
        initialise_text_encoder(network, position_deviation=0.01)
    torch.save(checkpoint_contents(network, architecture), path)


def initialise_text_encoder(network: Sam3Image, *, position_deviation: float) -> None:
    """Set what the package's text encoder leaves to whoever trains it: uninitialised memory, NaN at times.

    Args:
        network: to change in place.
        position_deviation: standard deviation of the position embeddings.
    """
    encoder = network.backbone.language_backbone.encoder
    torch.nn.init.normal_(encoder.positional_embedding, std=position_deviation)
    torch.nn.init.normal_(encoder.text_projection, std=encoder.width**-0.5)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Write a SAM 3 checkpoint of seeded random weights.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--small", action="store_true", help="a network of small sizes instead of SAM 3's own")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_random_checkpoint(arguments.path, SMALL if arguments.small else Architecture(), arguments.seed)


if __name__ == "__main__":
    _main()
