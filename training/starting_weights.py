"""The initial weights for training.

With the initialization of a large network, a network this small does not learn: its attention heads attend to the whole
image, and its mask decoder reacts to the image but not to the prompt. Each function here removes one such obstacle;
none adds knowledge of shapes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sam3_engine.model import Sam3Image
from sam3_engine.random_weights import initialise_text_encoder
from testbed.scenes import VOCABULARY

from .batches import NO_PHRASE

# for each head of a ViT block, the offset (x, y) in tokens that it attends to at first; None leaves the head as it is
_NEIGHBOURS: tuple[tuple[tuple[int, int] | None, ...], ...] = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, 1), (1, -1), (-1, -1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
    ((0, 0), (2, 2), (-2, -2), None),
)


@torch.no_grad()
def initialise(network: Sam3Image) -> None:
    """Initialize the weights in place; random numbers come from PyTorch's generator."""
    vit = network.backbone.vision_backbone.trunk
    _widen(vit)
    _add_sine_table(vit)
    for number, block in enumerate(vit.blocks):
        _attend_to_neighbours(block.attn, _NEIGHBOURS[number % len(_NEIGHBOURS)])
    _embed_vocabulary(network)
    initialise_text_encoder(network, position_deviation=0.1)
    _spread_reference_boxes(network.transformer.decoder)
    tracker = network.inst_interactive_predictor.model
    _look_where_prompts_point(tracker.sam_mask_decoder)
    _hear_prompts(tracker.sam_mask_decoder)


def used_tokens(network: Sam3Image) -> torch.Tensor:
    """Return (vocabulary, 1): 1 for tokens that occur in phrases about scenes, 0 for all others.

    The embeddings of the others stay 0, so unknown words carry no information except their length.
    """
    language = network.backbone.language_backbone
    tokenizer = language.tokenizer
    used = torch.zeros(language.encoder.token_embedding.num_embeddings, 1)
    used[[tokenizer.sot_token_id, tokenizer.eot_token_id]] = 1
    for word in (*VOCABULARY, NO_PHRASE):
        used[tokenizer.encode(word)] = 1
    return used


def _widen(vit: Any) -> None:
    """Scale the ViT's matrices: their initial standard deviation of 0.02 suits a width of 1,000, but not of 100."""
    for parameter in vit.parameters():
        if parameter.dim() == 2:
            parameter.mul_(2.5)


def _add_sine_table(vit: Any, amplitude: float = 0.25) -> None:
    """Add position information to the values of the attention, not only to its queries and keys.

    Adds sines and cosines with half a period to four periods over the image to the absolute position embedding.
    """
    width = vit.pos_embed.shape[-1]
    grid = math.isqrt(vit.pos_embed.shape[1] - 1)  # the first one is the class token
    frequencies = torch.pi * 2.0 ** torch.linspace(0, 3, width // 4)
    angles = ((torch.arange(grid) + 0.5) / grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    table = torch.cat([waves[None].expand(grid, -1, -1), waves[:, None].expand(-1, grid, -1)], dim=-1)
    vit.pos_embed[:, 1:] += amplitude * table.reshape(1, grid * grid, width)


def _attend_to_neighbours(
    attention: Any, neighbours: tuple[tuple[int, int] | None, ...], sharpness: float = 3.0
) -> None:
    """Make each head attend to one neighbor at first, as a convolution does.

    RoPE rotates queries and keys by their positions. The biases are constant queries and keys, so they give logits that
    depend only on the offset between two tokens. Rotating the key's bias back by an offset puts the peak there.

    Args:
        attention: of a ViT block.
        neighbours: for each head, x and y in tokens.
        sharpness: how much lower the logit is one token away from the peak.
    """
    heads, head_width = attention.num_heads, attention.head_dim
    count = head_width // 4  # frequencies per axis, as in the package
    frequencies = 1 / 10000 ** (torch.arange(0, head_width, 4)[:count].float() / head_width)
    drop = sharpness / (attention.scale * (1 - math.cos(1)))
    amplitudes = torch.zeros(count)
    # three quarters of the drop come from the fastest wave, the rest from the next one, which tells far from near
    amplitudes[0] = math.sqrt(0.75 * drop)
    amplitudes[1] = math.sqrt(0.25 * drop * (1 - math.cos(1)) / (1 - math.cos(2 * float(frequencies[1]))))
    biases = attention.qkv.bias.view(3, heads, 2, count, 2)  # query, key, value; x, y; real, imaginary
    for head, neighbour in enumerate(neighbours[:heads]):
        if neighbour is None:
            continue
        biases[:2, head] = 0
        for axis, distance in enumerate(neighbour):
            biases[0, head, axis, :, 0] = amplitudes
            biases[1, head, axis, :, 0] = amplitudes * torch.cos(frequencies * distance)
            biases[1, head, axis, :, 1] = -amplitudes * torch.sin(frequencies * distance)


def _embed_vocabulary(network: Sam3Image) -> None:
    """Initialize the word embeddings so far apart that words can be distinguished."""
    embedding = network.backbone.language_backbone.encoder.token_embedding.weight
    torch.nn.init.normal_(embedding, std=0.5)
    embedding.mul_(used_tokens(network))


def _spread_reference_boxes(decoder: Any, side: float = 0.25) -> None:
    """Make the queries start as boxes on a grid, each at its own position."""
    columns = math.isqrt(decoder.num_queries)
    if columns**2 != decoder.num_queries:
        raise ValueError(f"{decoder.num_queries} queries do not fill a square grid")
    centres = (torch.arange(columns) + 0.5) / columns
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    sides = torch.full_like(x.flatten(), side)
    decoder.reference_points.weight.copy_(torch.logit(torch.stack([x.flatten(), y.flatten(), sides, sides], dim=1)))


def _look_where_prompts_point(mask_decoder: Any, gain: float = 1.5) -> None:
    """Make prompt tokens and image tokens attend to each other if they have the same position.

    Equal projections of queries and keys do this; otherwise, training has to learn it first.
    """
    transformer = mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        torch.nn.init.orthogonal_(attention.q_proj.weight, gain)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.q_proj.bias.zero_()
        attention.k_proj.bias.zero_()


def _hear_prompts(mask_decoder: Any) -> None:
    """Amplify the effect of prompts on the image tokens, which the skip connections would drown out."""
    for layer in mask_decoder.transformer.layers:
        layer.cross_attn_image_to_token.out_proj.weight *= 3
        layer.cross_attn_token_to_image.out_proj.weight *= 2
        layer.self_attn.out_proj.weight *= 1.5
    mask_decoder.transformer.final_attn_token_to_image.out_proj.weight *= 2
    mask_decoder.output_upscaling[3].weight *= 5
    for skip, gain in ((mask_decoder.conv_s0, 0.2), (mask_decoder.conv_s1, 0.3)):
        skip.weight *= gain
        skip.bias *= gain
