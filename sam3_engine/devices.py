"""Choose the device and the precision."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DRIVER, _MANAGEMENT = ("nvcuda.dll", "nvml.dll") if sys.platform == "win32" else ("libcuda.so.1", "libnvidia-ml.so.1")
_DEVICES = Path("/dev")
_DEVICE_FILES = (
    "nvidia[0-9]*",  # the driver's, one for each GPU
    "dxg",  # Windows' GPUs in WSL
    "nvhost-gpu",  # Jetson
    "nvgpu/igpu*",  # Jetson from JetPack 6 on
)


def cuda_present() -> bool:
    """Return whether this process can see a CUDA device. Does not import torch.

    Asks NVML, the driver's management library, not CUDA: a process that initialized CUDA cannot use it in the processes
    it forks. Whether PyTorch has kernels for the device is not known, see :func:`choose_device`.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _device_count() > 0
    first = visible.partition(",")[0].strip()  # CUDA ignores what follows an invalid entry
    if first.startswith(("GPU-", "MIG-")):
        return _device_count() > 0
    number = re.match(r"\+?\d+", first, re.ASCII)  # CUDA reads a number up to the first other character
    return number is not None and int(number[0]) < _device_count()


@functools.cache
def _device_count() -> int:
    """Return the number of GPUs that the driver manages. Where there is no NVML, it is 0 or 1."""
    try:
        ctypes.CDLL(_DRIVER)  # loading it initializes nothing
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    try:
        nvml = ctypes.CDLL(_MANAGEMENT)
        if nvml.nvmlInit_v2() == 0:
            try:
                if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
                    return count.value
            finally:
                nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or no such function
        pass
    return int(sys.platform == "win32" or any(any(_DEVICES.glob(name)) for name in _DEVICE_FILES))


def choose_device(cuda: bool) -> torch.device:
    """Return the current CUDA device if ``cuda`` is True and PyTorch can use it, else the CPU.

    Without ``cuda``, this does not initialize CUDA. With it, one small kernel runs on the device: PyTorch finds devices
    that it has no kernels for.

    Args:
        cuda: whether CUDA is requested; if it cannot be used, a warning is logged, which gives PyTorch's reason.
    """
    import torch

    if cuda:
        try:
            device = with_index(torch.device("cuda"))  # without one, this raises an error that says why
            torch.ones(1, device=device).add(1).item()  # item() waits, for errors that come late
            return device
        except (AssertionError, RuntimeError, torch.cuda.DeferredCudaCallError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
        logger.warning("cuda is True, but PyTorch cannot use a CUDA device (%s): running on the CPU.", reason)
    return torch.device("cpu")


def with_index(device: torch.device) -> torch.device:
    """Return the device with its index: "cuda" is the current CUDA device, which may change later."""
    if device.type != "cuda" or device.index is not None:
        return device
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def choose_precision(device: torch.device) -> torch.dtype:
    """Return the dtype to run in: bfloat16 where it is native, else float16 on GPUs and float32 on CPUs."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch answers for the current device
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
