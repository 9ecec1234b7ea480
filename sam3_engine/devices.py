"""Choose the device and the precision."""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def cuda_present() -> bool:
    """Return whether this process can see a CUDA device. Asks the driver and does not import torch."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def choose_device(cuda: bool) -> torch.device:
    """Return the current CUDA device if ``cuda`` is True and PyTorch can use one, else the CPU.

    Args:
        cuda: whether CUDA is requested; if it is unavailable, a warning is logged.
    """
    import torch

    if cuda and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if cuda:
        logger.warning("cuda is True, but PyTorch finds no usable CUDA device: running on the CPU.")
    return torch.device("cpu")


def choose_precision(device: torch.device) -> torch.dtype:
    """Return the dtype to run in: bfloat16 where it is native, else float16 on GPUs and float32 on CPUs."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
