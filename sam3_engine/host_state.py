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
from collections.abc import Callable, Iterator
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


def cpu_by_default() -> contextlib.AbstractContextManager[Any]:
    """Make the CPU the default device, which sam3 expects, if the host has set another (this thread only)."""
    import torch

    cpu = torch.device("cpu")
    return contextlib.nullcontext() if torch.get_default_device() == cpu else cpu


class SharedContext:
    """A context that several threads may be in at once: the first to enter sets it up, the last to leave undoes it.

    Args:
        set_up: changes the process, and registers on the stack it is given how to undo that.
    """

    def __init__(self, set_up: Callable[[contextlib.ExitStack], None]) -> None:
        self._set_up = set_up
        self._undo = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._entered = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Enter the context."""
        with self._lock:
            if self._entered == 0:
                self._set_up(self._undo)
            self._entered += 1
        try:
            yield
        finally:
            with self._lock:
                self._entered -= 1
                if self._entered == 0:
                    self._undo.close()


def preserve_torch_switches() -> contextlib.AbstractContextManager[None]:
    """Preserve the attention kernels, which sam3 switches, and the default dtype, which is float32 meanwhile."""
    return _TORCH_SWITCHES.enter()


def _preserve_torch_switches(undo: contextlib.ExitStack) -> None:
    import torch
    from torch.backends import cuda

    undo.callback(cuda.enable_flash_sdp, cuda.flash_sdp_enabled())
    undo.callback(cuda.enable_math_sdp, cuda.math_sdp_enabled())
    undo.callback(cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled())
    if torch.get_default_dtype() != torch.float32:
        undo.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)


_TORCH_SWITCHES = SharedContext(_preserve_torch_switches)
