"""Tell errors of the device (no memory left, no usable kernel, a lost GPU) from other errors.

PyTorch and the libraries below it raise the same types for both, so the text of a ``RuntimeError`` decides. Texts of
the operating system are translated, hence the numbers.
"""

from __future__ import annotations

import errno
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GPU_MEMORY = re.compile(
    r"""
    \b(?:CUDA|HIP|XPU)\ out\ of\ memory                     # the caching allocator
    |\b(?:CUDA|HIP)\ (?:driver\ )?error:\ out\ of\ memory   # the runtime or the driver
    |\bTriton\ Error\ \[\w+\]:\ out\ of\ memory
    |\bCU(?:BLAS|DNN|FFT|SOLVER|SPARSE)_(?:STATUS_)?ALLOC_FAILED\b
    |\bCUDNN_STATUS_INTERNAL_ERROR_\w+_ALLOCATION_FAILED\b  # cuDNN 9
    |\bNVML_SUCCESS\ ==\ r\ INTERNAL\ ASSERT\ FAILED        # the caching allocator, where NVML cannot say who has it
    """,
    re.VERBOSE,
)
_HOST_MEMORY = re.compile(
    r"""
    \bDefaultCPUAllocator:\ (?:can't\ allocate|not\ enough)\ memory
    |\bunable\ to\ mmap\ .*:\ .*\(12\)\s*$          # PyTorch on Linux and macOS: ENOMEM
    |\berror\ code:\ <(?:8|14|1455)>                # PyTorch on Windows: memory or the paging file is exhausted
    |\(os\ error\ (?:8|12|14|1455)\)                # Rust (safetensors)
    |\bC10\ Out\ of\ Memory\b
    |\bCould\ not\ allocate\ memory\b
    |\bstd::bad_alloc\b
    """,
    re.VERBOSE | re.MULTILINE,
)
_WINDOWS_CODES = (8, 14, 1455)  # ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT

_DEVICE = re.compile(
    r"""
    \b(?:CUDA|HIP)\ (?:driver\ |kernel\ )?(?:error|failed|initialization|unknown)
    |\b(?:cuDNN|cuBLAS|cuSOLVER|NVRTC|nvrtc|MIOpen)(?:Lt)?\ ?[Ee]rror
    |\bCU(?:BLAS|DNN|FFT|RAND|SOLVER|SPARSE)_
    |\bTriton\ Error\ \[
    |\bunable\ to\ find\ an\ engine\ to\ execute    # cuDNN has no kernel for this device, or no memory for it
    |\bno\ kernel\ image\ is\ available
    |\bTorch\ not\ compiled\ with\ CUDA\ enabled
    |\bNo\ CUDA\ GPUs\ are\ available
    |\bFound\ no\ NVIDIA\ driver
    |\bNVIDIA\ driver\ on\ your\ system\ is\ too\ old
    |\bCannot\ re-initialize\ CUDA
    """,
    re.VERBOSE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that the memory of a GPU or of the machine is exhausted, in any known form."""
    return _is_host_memory(error) or _is_gpu_memory(error)


def is_device_error(error: BaseException) -> bool:
    """Return whether ``error`` comes from the device or its memory, so that another input would not help."""
    return is_out_of_memory(error) or _is_accelerator_error(error) or _says(error, _DEVICE)


def raise_device_error(error: BaseException) -> None:
    """Raise ``error`` again if it comes from the device, so that nobody blames the input for it."""
    if is_device_error(error):
        raise error


def exhausted_device(error: BaseException, device: torch.device) -> torch.device:
    """Return the device whose memory is exhausted.

    Args:
        error: an error of which :func:`is_out_of_memory` is True.
        device: where the failed computation ran.

    Returns:
        ``device``, or the CPU if the machine's own memory is exhausted.
    """
    import torch

    return device if _is_gpu_memory(error) else torch.device("cpu")


def _is_host_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return getattr(error, "winerror", None) in _WINDOWS_CODES or _says(error, _HOST_MEMORY)


def _is_gpu_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # without it, the error is not PyTorch's
    return (torch is not None and isinstance(error, torch.OutOfMemoryError)) or _says(error, _GPU_MEMORY)


def _is_accelerator_error(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def _says(error: BaseException, pattern: re.Pattern[str]) -> bool:
    # AssertionError: of torch.cuda, without CUDA. ValueError never: its text quotes what is in files and prompts
    return isinstance(error, AssertionError | OSError | RuntimeError) and pattern.search(str(error)) is not None
