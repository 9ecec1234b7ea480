"""Contexts for running code of the sam3 package: importing it, building a network, inference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .cuda_answers import hide_cuda, leave_cuda_alone
from .host_state import (
    cpu_by_default,
    ignore_warnings,
    preserve_environment,
    preserve_log_handlers,
    preserve_random_state,
    preserve_torch_switches,
)

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def importing_sam3() -> Iterator[None]:
    """Import the package without changing the host process."""
    with (
        leave_cuda_alone(),
        preserve_environment("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR"),
        preserve_log_handlers(),
        preserve_random_state(),  # some versions of rich, a dependency of huggingface_hub, use it
        ignore_warnings(),
    ):
        yield


@contextlib.contextmanager
def building_network(device: torch.device, *, without_weights: bool, draws: bool | None = None) -> Iterator[None]:
    """Instantiate the package's classes on ``device``, preserving random states and autocast.

    Args:
        device: device of buffers and precomputed tables, whichever device the package names.
        without_weights: put large parameters on the meta device, where they take no memory and no time, until a
            checkpoint is assigned to them.
        draws: whether random numbers are drawn; by default, if there are weights to initialize. The random state is
            restored afterwards, so other threads that draw in the meantime get the same numbers again.
    """
    import torch

    from .redirection import CudaRedirection

    with (
        preserve_torch_switches(),
        # for a CPU, sam3 still asks for CUDA, and asking initializes it
        contextlib.nullcontext() if device.type == "cuda" else hide_cuda(),
        ignore_warnings(),
        torch.random.fork_rng(devices=[], enabled=not without_weights if draws is None else draws),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(False),  # even if the host is in it: the tensors outlive this
        cpu_by_default(),
        CudaRedirection(device, without_weights=without_weights),
    ):
        yield


@contextlib.contextmanager
def inference(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Run a network on ``device``, in inference mode and under autocast to ``precision``."""
    import torch

    from .openmp import full_thread_teams
    from .redirection import redirect_cuda

    with (
        preserve_torch_switches(),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32),
        cpu_by_default(),
        full_thread_teams(),
        redirect_cuda(device),
    ):
        yield
