"""An auxiliary loss for the geometry encoder: what an exemplar box shows.

To find everything that looks like an exemplar, the token of its box must encode what the box shows. Trained with the
detector's losses alone, a network distinguished kinds but hardly colors. So a linear head, which is discarded after
training, predicts both from the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from sam3_engine.contexts import importing_sam3
from sam3_engine.model import Sam3Image
from testbed.scenes import COLORS, KINDS

from .batches import NOTHING, Batch
from .losses import Losses

with importing_sam3():
    from sam3.model.geometry_encoders import Prompt


def exemplar_boxes(boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> Prompt:
    """Return exemplar boxes as the package expects them, padded to the same number.

    Args:
        boxes: for each prompt, (n, 4) center, width and height in 0..1.
        labels: for each prompt, (n,) 1 positive, 0 negative.
    """
    counts = torch.tensor([len(of_prompt) for of_prompt in boxes], device=boxes[0].device)
    padded = pad_sequence(boxes)  # (most, prompts, 4)
    padding = torch.arange(len(padded), device=counts.device) >= counts[:, None]
    return Prompt(box_embeddings=padded, box_labels=pad_sequence(labels).bool(), box_mask=padding)


class ExemplarHead(torch.nn.Module):
    """A linear map from a box's token to kind and color."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, len(KINDS) + len(COLORS))

    def forward(self, network: Sam3Image, features: Mapping[str, Any], batch: Batch) -> Losses:
        """Show every shape as an exemplar, and return the losses of the predictions with ``batch.shapes`` as targets.

        Args:
            network: in evaluation mode.
            features: of the batch's images, from the image encoder.
            batch: with or without prompts.
        """
        boxes, device = batch.shapes.boxes, batch.images.device
        positive = [torch.ones(len(of_scene), dtype=torch.long, device=device) for of_scene in boxes]
        _, tokens, positions, sizes = network._get_img_feats(features, torch.arange(len(boxes), device=device))
        encoded, _ = network.geometry_encoder(
            geo_prompt=exemplar_boxes(boxes, positive), img_feats=tokens, img_sizes=sizes, img_pos_embeds=positions
        )
        of_boxes = encoded[: batch.shapes.kind.shape[1]].transpose(0, 1)  # tokens after the boxes are not used
        kind, color = self.linear(of_boxes).float().split([len(KINDS), len(COLORS)], dim=-1)
        return {
            "kind": 0.5 * cross_entropy(kind.flatten(0, 1), batch.shapes.kind.flatten(), ignore_index=NOTHING),
            "color": 0.5 * cross_entropy(color.flatten(0, 1), batch.shapes.color.flatten(), ignore_index=NOTHING),
        }
