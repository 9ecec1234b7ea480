"""The dtypes in which a network holds its weights.

The encoders, seven eighths of SAM 3's weights, hold what the device reads fastest or what the file contains: autocast
casts them in every call anyway, so answers do not change. All other weights are in float32, because some of them are
used outside autocast.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .internals import encoder_layers

if TYPE_CHECKING:
    from sam3.model.sam3_image import Sam3Image

_HALF = (torch.float16, torch.bfloat16)


def set_weight_precision(network: Sam3Image, device: torch.device, precision: torch.dtype) -> None:
    """Set the dtypes of a network's weights in place.

    On CUDA, the encoders' weights move to ``device`` in ``precision``. On a CPU, they stay as they are, because casting
    is faster than reading, and a memory-mapped weight stays in the file until it is used. Where such a network runs in
    float32, each layer has its float16 or bfloat16 weights in float32 only while it runs.

    Args:
        network: with loaded weights.
        device: where it will run.
        precision: dtype of its matrix products.
    """
    encoders = list(_autocast_layers(network))
    kept = {id(parameter) for layer in encoders for parameter in layer.parameters()}
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dtype in _HALF and id(tensor) not in kept:
            tensor.data = tensor.data.float()
    if device.type == "cuda":
        cast_encoder_weights(network, device, precision)
    elif precision == torch.float32:
        widen_while_running(network)


def cast_encoder_weights(network: Sam3Image, device: torch.device, precision: torch.dtype) -> None:
    """Move the weights of the image and text encoders to ``device`` in ``precision``.

    In float16, weights that are beyond its range stay as they are, see :meth:`~.model.Model.infer`.
    """
    for layer in _autocast_layers(network):
        for parameter in layer.parameters():
            moved = parameter.data.to(device)
            cast = moved.to(precision)
            fits = precision != torch.float16 or bool(cast.isfinite().all())
            parameter.data = cast if fits else moved


def widen_while_running(network: Sam3Image) -> None:
    """Have each encoder layer hold float16 or bfloat16 weights in float32 while it runs, and only then."""
    for layer in _autocast_layers(network):
        if any(weight.dtype in _HALF for weight in layer.parameters()):
            _widen_while_running(layer)


def to_precision(tensors: Any, precision: torch.dtype) -> Any:
    """Return tensors (or None), in any nesting of dicts and lists, as a network of ``precision`` reads them.

    That changes only half-precision tensors for a network in float32: a network that left half precision has made them
    before, and without autocast, dtypes must match.
    """
    if precision != torch.float32:
        return tensors
    if isinstance(tensors, Mapping):
        return {name: to_precision(tensor, precision) for name, tensor in tensors.items()}
    if isinstance(tensors, list):
        return [to_precision(tensor, precision) for tensor in tensors]
    return tensors.float() if tensors is not None and tensors.dtype in _HALF else tensors


def narrow_weights(network: Sam3Image) -> None:
    """Undo the widening of a layer that was interrupted: after a KeyboardInterrupt, PyTorch runs no hooks."""
    for layer in _autocast_layers(network):
        if hasattr(layer, "narrow_weights"):
            _narrow(layer)


def _autocast_layers(network: Sam3Image) -> Iterator[torch.nn.Module]:
    """Yield the encoders' layers whose weights autocast casts."""
    for layer in encoder_layers(network):
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d | torch.nn.MultiheadAttention):
            yield layer


def _widen_while_running(layer: Any) -> None:
    layer.narrow_weights = [parameter.data for parameter in layer.parameters()]
    layer.register_forward_pre_hook(_widen)
    layer.register_forward_hook(_narrow, always_call=True)


def _widen(layer: Any, *_: Any) -> None:
    with torch.inference_mode(False):  # a parameter cannot hold a tensor that was made in inference mode
        for parameter, data in zip(layer.parameters(), layer.narrow_weights, strict=True):
            parameter.data = data.float()


def _narrow(layer: Any, *_: Any) -> None:
    for parameter, data in zip(layer.parameters(), layer.narrow_weights, strict=True):
        parameter.data = data
