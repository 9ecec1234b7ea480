"""Keep the state of the host process unchanged.

The sam3 package was written for its own process on a CUDA machine: it enters an autocast that it never leaves, and
changes switches of PyTorch and logging that belong to the whole process. Each context manager here keeps one part of
that state; :mod:`~.contexts` combines them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_WARNINGS_LOCK = threading.RLock()


@contextlib.contextmanager
def ignore_warnings() -> Iterator[None]:
    """Show no warnings. One thread at a time: two that overlap would restore each other's filters."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def preserve_log_handlers() -> Iterator[None]:
    """Remove the handlers that are added to the root logger."""
    handlers = list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers


@contextlib.contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the state of the ``random`` module."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def preserve_environment(*names: str) -> Iterator[None]:
    """Restore the environment variables ``names``."""
    values = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def preserve_float32_precision() -> Iterator[None]:
    """Restore the TF32 switches."""
    import torch

    # PyTorch has two sets of switches, and refuses to read the older one once the newer says otherwise
    try:
        matmul_precision = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul_precision = None
    backends: Any = torch.backends
    switches = (
        backends.cudnn,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.matmul,
    )
    values = [switch.fp32_precision for switch in switches]
    try:
        yield
    finally:
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)  # also writes to the newer switches: so first
        for switch, value in zip(switches, values, strict=True):
            switch.fp32_precision = value


def cpu_by_default() -> contextlib.AbstractContextManager[Any]:
    """Make the CPU the default device, which sam3 expects, if the host has set another (this thread only)."""
    import torch

    cpu = torch.device("cpu")
    return contextlib.nullcontext() if torch.get_default_device() == cpu else cpu


class TorchSwitches:
    """Preserve the switches of PyTorch that sam3 changes (attention kernels) or relies on (default dtype).

    Calls may overlap in several threads: the first to enter reads the switches, the last to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0
        self._restore = contextlib.ExitStack()

    @contextlib.contextmanager
    def preserve(self) -> Iterator[None]:
        """Restore the switches at the end, and set the default dtype to float32 meanwhile."""
        with self._lock:
            if self._entered == 0:
                self._read()
            self._entered += 1
        try:
            yield
        finally:
            with self._lock:
                self._entered -= 1
                if self._entered == 0:
                    self._restore.close()

    def _read(self) -> None:
        import torch
        from torch.backends import cuda

        self._restore.callback(cuda.enable_flash_sdp, cuda.flash_sdp_enabled())
        self._restore.callback(cuda.enable_math_sdp, cuda.math_sdp_enabled())
        self._restore.callback(cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled())
        if torch.get_default_dtype() != torch.float32:
            self._restore.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
