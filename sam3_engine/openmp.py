"""Keep OpenMP from computing with fewer threads than PyTorch asked for."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from typing import Any

from .internals import torch_library


@contextlib.contextmanager
def full_thread_teams() -> Iterator[None]:
    """Give OpenMP teams all the threads they ask for, in this thread only.

    Importing ikomia turns on OpenMP's dynamic adjustment, which gives smaller teams on a busy machine. oneDNN's
    bfloat16 matrix products do not expect that: they leave the part of the missing threads unwritten.
    """
    library = openmp_library()
    adjusted = library.omp_get_dynamic() if library else 0
    if not adjusted:
        yield
        return
    library.omp_set_dynamic(0)
    try:
        yield
    finally:
        library.omp_set_dynamic(adjusted)


@functools.cache
def openmp_library() -> Any:
    """Return the OpenMP runtime that PyTorch uses, or None."""
    # on Linux a symbol is also looked up in the dependencies: this finds the runtime whatever its file is called
    try:
        library = ctypes.CDLL("libiomp5md.dll" if sys.platform == "win32" else torch_library())
    except OSError:
        return None
    return library if hasattr(library, "omp_set_dynamic") else None
