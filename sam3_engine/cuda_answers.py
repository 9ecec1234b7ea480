"""Answer what sam3 asks PyTorch about CUDA.

To answer, PyTorch initializes CUDA: this takes GPU memory, and the process can no longer use CUDA in the processes it
forks. So importing sam3, and using it on a CPU, must not ask.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .devices import cuda_present
from .host_state import SharedContext

Answer = Callable[..., Any]  # takes the function of torch.cuda that it stands in for, and that function's arguments

_THREAD = threading.local()  # its attribute "answers": by the function's name


class _UnknownCapability:
    """The properties of a device, except its compute capability; they are read when one is needed."""

    major = minor = 0

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._read(), name)


def hide_cuda() -> contextlib.AbstractContextManager[None]:
    """Make PyTorch say that CUDA is not available, in this thread only."""
    return _answer({"is_available": lambda _: False})


def leave_cuda_alone() -> contextlib.AbstractContextManager[None]:
    """Make PyTorch answer without initializing CUDA, in this thread only.

    Whether a device is there is known from its driver. Its compute capability is not said, so that sam3, when it is
    imported, does not enable TF32 for the whole process.
    """
    import torch

    answers: dict[str, Answer] = {
        "get_device_properties": lambda read, *args, **kwargs: _UnknownCapability(
            functools.partial(read, *args, **kwargs)
        )
    }
    if not torch.cuda.is_initialized():
        usable = torch.backends.cuda.is_built() and cuda_present()
        answers["is_available"] = lambda _: usable
        answers["is_bf16_supported"] = lambda *_, **__: usable
    return _answer(answers)


@contextlib.contextmanager
def _answer(answers: Mapping[str, Answer]) -> Iterator[None]:
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
            own: Answer | None = getattr(_THREAD, "answers", {}).get(name)
            return own(function, *args, **kwargs) if own else function(*args, **kwargs)

        def put_back() -> None:
            if getattr(cuda, name) is answer:  # else the host has replaced it meanwhile
                setattr(cuda, name, function)

        setattr(cuda, name, answer)
        undo.callback(put_back)

    for name in ("is_available", "is_bf16_supported", "get_device_properties"):
        replace(name, getattr(cuda, name))


_ANSWERS = SharedContext(_give_answers)
