"""Run code that names the device "cuda" on another device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def redirect_cuda(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make "cuda", which sam3 names in places, mean ``device``, in this thread only."""
    return torch.cuda.device(device) if device.type == "cuda" else CudaRedirection(device)


class CudaRedirection(TorchFunctionMode):
    """Replace the CUDA device in calls of PyTorch functions.

    Args:
        device: the device to use instead.
        without_weights: put ``torch.empty`` and random tensors on the meta device and skip initialization, so that
            large parameters take no memory and no time.
    """

    def __init__(self, device: torch.device, *, without_weights: bool = False) -> None:
        super().__init__()
        self._device = device
        self._meta_functions = (torch.empty, torch.rand, torch.randn) if without_weights else ()
        self._initializers = (torch.Tensor.uniform_, torch.Tensor.normal_) if without_weights else ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._initializers or (func is torch.Tensor.pin_memory and self._device.type != "cuda"):
            return args[0]
        if func in self._meta_functions:
            kwargs = {**kwargs, "device": "meta"}
        elif kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs = {**kwargs, "device": self._device}
        return func(*args, **kwargs)
