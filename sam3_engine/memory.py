"""The memory of devices: how much of it caches may keep, and what happens when it runs out.

All caches on a device share one budget, whichever model they belong to.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from .device_errors import exhausted_device, is_out_of_memory
from .devices import with_index
from .errors import DeviceMemoryError
from .lru_cache import MemoryBudget

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

_DEFAULT_BYTES = 2 * 10**9
_CUDA_SHARE = 1 / 4  # leaves room for what the network computes, and for other programs

_BUDGETS: dict[torch.device, MemoryBudget] = {}


def budget_of(device: torch.device) -> MemoryBudget:
    """Return the budget that all caches on a device share: 2 GB, or what :func:`measure_budget` has set."""
    return _BUDGETS.setdefault(with_index(device), MemoryBudget(_DEFAULT_BYTES))


def measure_budget(device: torch.device) -> MemoryBudget:
    """Set the budget of a CUDA device to a quarter of its free memory. Call this when a model is loaded.

    Memory that PyTorch has reserved without using it is free, and so is what caches keep, because it can be evicted.

    Returns:
        The budget of ``device``. That of another kind of device does not change.
    """
    budget = budget_of(device)
    if device.type == "cuda":
        import torch

        with budget.lock:
            free, _ = torch.cuda.mem_get_info(device)
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            budget.limit = (free + unused + budget.used) * _CUDA_SHARE
    return budget


def retry_without_caches(device: torch.device, compute: Callable[[], Result]) -> Result:
    """Return ``compute()``. If memory runs out, clear all caches on the device and try once more, caching nothing.

    Args:
        device: where ``compute`` runs. If it is the machine's own memory that runs out, this applies to the caches on
            the CPU as well.
        compute: called at most twice.

    Raises:
        DeviceMemoryError: memory ran out twice.
    """
    with contextlib.ExitStack() as exits:
        for first_attempt in (True, False):
            try:
                return compute()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                exhausted = exhausted_device(error, device)
            # after the except clause: inside it, the error still holds the tensors of the failed computation
            if first_attempt:
                for cleared in {device, exhausted}:
                    exits.enter_context(budget_of(cleared).keeping_nothing())
                    release_unused_memory(cleared)
    raise DeviceMemoryError(exhausted)


def release_unused_memory(device: torch.device) -> None:
    """Give back the GPU memory that PyTorch has reserved without using it."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


class ReleaseAtEnd:
    """Calls :func:`release_unused_memory` when it is freed.

    Set it as an object's last attribute: Python drops attributes in the order in which they were set, so the tensors of
    that object are freed by then. ``weakref.finalize`` would be too early.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __del__(self) -> None:
        if not sys.is_finalizing():
            with contextlib.suppress(RuntimeError):  # after a fatal error, a GPU refuses this as well
                release_unused_memory(self._device)
