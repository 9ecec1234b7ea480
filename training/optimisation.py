"""The optimizers and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from sam3_engine.model import Sam3Image

# parts with matrices between hidden states; Muon updates all directions of such a matrix equally
_MUON_PARTS = (
    "vision_backbone.trunk.blocks.",
    "geometry_encoder.encode.",
    "transformer.encoder.",
    "transformer.decoder.",
    "sam_mask_decoder.transformer.",
)
WARM_UP_STEPS = 300
FINAL_RATE = 0.02  # at the end, relative to the highest
MAX_GRADIENT_NORM = 5.0


class Optimiser:
    """Muon for hidden matrices, AdamW for the rest, with one schedule for both.

    AdamW alone needs many more steps here: a few directions of each matrix get nearly all of the gradient.
    """

    def __init__(self, network: Sam3Image, auxiliary_heads: torch.nn.Module, rate: float, steps: int) -> None:
        """Create the optimizers.

        Args:
            network: its parameters that require gradients are trained.
            auxiliary_heads: trained with AdamW.
            rate: highest learning rate of AdamW; Muon's is three times that.
            steps: length of the run.
        """
        trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        hidden = {
            name: parameter
            for name, parameter in trained.items()
            if any(part in name for part in _MUON_PARTS) and parameter.dim() == 2 and min(parameter.shape) >= 16
        }
        rest = {name: parameter for name, parameter in trained.items() if name not in hidden}
        decayed = [parameter for name, parameter in rest.items() if parameter.dim() > 1 and "embed" not in name]
        kept = [parameter for name, parameter in rest.items() if parameter.dim() <= 1 or "embed" in name]
        self._parameters = [*trained.values(), *auxiliary_heads.parameters()]
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden.values(), lr=3 * rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [
                    {"params": decayed, "weight_decay": 0.02},
                    {"params": [*kept, *auxiliary_heads.parameters()], "weight_decay": 0.0},
                ],
                lr=rate,
                betas=(0.9, 0.98),
                fused=True,
            ),
        ]
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _relative_rate(step, steps))
            for optimiser in self._optimisers
        ]

    def step(self, loss: torch.Tensor) -> float:
        """Update the weights with the gradient of ``loss``; skip a gradient that is not finite.

        Returns:
            The norm of the gradient.
        """
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM))
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            if math.isfinite(norm):
                optimiser.step()
            schedule.step()
        return norm

    def state_dict(self) -> list[dict]:
        """Return the state, for :meth:`load_state_dict`."""
        return [part.state_dict() for part in self._parts()]

    def load_state_dict(self, states: Iterable[dict]) -> None:
        """Restore a state from :meth:`state_dict`."""
        for part, state in zip(self._parts(), states, strict=True):
            part.load_state_dict(state)

    def _parts(self) -> Iterator[torch.optim.Optimizer | torch.optim.lr_scheduler.LambdaLR]:
        yield from self._optimisers
        yield from self._schedules


def _relative_rate(step: int, steps: int) -> float:
    """Return the learning rate relative to the highest: a linear warm-up, then half a cosine."""
    cosine = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)
