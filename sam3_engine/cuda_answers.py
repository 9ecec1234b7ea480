"""Answer what sam3 asks PyTorch about CUDA.

To answer, PyTorch initializes CUDA: this takes GPU memory, and the process can no longer use CUDA in the processes it
forks. So importing sam3, and using it on a CPU, must not ask.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .devices import cuda_present
from .host_state import SharedContext

_THREAD = threading.local()  # its attribute "answers": functions by name, used instead of those of torch.cuda


def hide_cuda() -> contextlib.AbstractContextManager[None]:
    """Make PyTorch say that CUDA is not available, in this thread only."""
    return _answer({"is_available": lambda: False})


def leave_cuda_alone() -> contextlib.AbstractContextManager[None]:
    """Make PyTorch answer without initializing CUDA, in this thread only.

    Whether a device is there is known from its driver. What it can do is not said, so that sam3, when it is imported,
    does not enable TF32 for the whole process.
    """
    import torch

    answers: dict[str, Callable[..., Any]] = {
        "get_device_properties": lambda *_, **__: types.SimpleNamespace(major=0, minor=0)
    }
    if not torch.cuda.is_initialized():
        usable = torch.backends.cuda.is_built() and cuda_present()
        answers["is_available"] = lambda: usable
        answers["is_bf16_supported"] = lambda *_, **__: usable
    return _answer(answers)


@contextlib.contextmanager
def _answer(answers: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    before = getattr(_THREAD, "answers", {})
    with _ANSWERS.enter():
        _THREAD.answers = {**before, **answers}
        try:
            yield
        finally:
            _THREAD.answers = before


def _give_answers(undo: contextlib.ExitStack) -> None:
    """Make functions of torch.cuda return the answers of the thread that calls them."""
    import torch

    cuda: Any = torch.cuda

    def replace(name: str, function: Callable[..., Any]) -> None:
        @functools.wraps(function)
        def answer(*args: Any, **kwargs: Any) -> Any:
            return getattr(_THREAD, "answers", {}).get(name, function)(*args, **kwargs)

        def put_back() -> None:
            if getattr(cuda, name) is answer:  # else the host has replaced it meanwhile
                setattr(cuda, name, function)

        setattr(cuda, name, answer)
        undo.callback(put_back)

    for name in ("is_available", "is_bf16_supported", "get_device_properties"):
        replace(name, getattr(cuda, name))


_ANSWERS = SharedContext(_give_answers)
