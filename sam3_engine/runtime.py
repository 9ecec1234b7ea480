"""Device, precision, and a host process left as it was found.

The sam3 package was written for a process of its own on a CUDA machine. It asks for the device "cuda" in places, enters
an autocast that it never leaves, and flips switches of torch and logging that belong to the whole process. Everything
that imports, builds or runs it does so inside the context managers of this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def cuda_present() -> bool:
    """Whether a CUDA device is visible to this process. Asks the driver; does not import torch."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def choose_device(cuda: bool) -> torch.device:
    """The device to run on: CUDA if wanted and usable, else the CPU; a warning is logged if it was wanted in vain."""
    import torch

    if cuda and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if cuda:
        logger.warning("cuda is True, but torch finds no usable CUDA device: running on the CPU.")
    return torch.device("cpu")


def choose_precision(device: torch.device) -> torch.dtype:
    """The dtype to run on ``device``: bfloat16 where it is native, else float16 on GPUs and float32 on CPUs."""
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def importing_sam3() -> Iterator[None]:
    """While the package is imported: keeps TF32 flags, warnings filters, log handlers, environment, random numbers."""
    handlers = list(logging.root.handlers)
    state = random.getstate()  # some versions of rich, which some of huggingface_hub import, draw from it
    with _float32_precision_kept(), _environment_kept(), warnings_ignored():
        try:
            yield
        finally:
            logging.root.handlers[:] = handlers
            random.setstate(state)


@contextlib.contextmanager
def building_network(device: torch.device, *, without_weights: bool, draws: bool | None = None) -> Iterator[None]:
    """While sam3's classes are instantiated: what they make is on ``device``; random states and autocast are kept.

    Args:
        device: where buffers and precomputed tables go, whatever device the package names.
        without_weights: make every ``torch.empty`` tensor, which means every large parameter, and what is random on the
            meta device, so that it takes no memory and no time until a checkpoint is assigned.
        draws: whether random numbers are drawn; by default if there are weights to be initialised. Other threads that
            draw meanwhile get the same numbers again.
    """
    import torch

    with (
        _SWITCHES.kept(),
        warnings_ignored(),
        torch.random.fork_rng(devices=[], enabled=not without_weights if draws is None else draws),
        torch.autocast(device.type, enabled=False),
        torch.inference_mode(False),  # whatever the host is in: the tensors outlive this
        _package_defaults(),
        _redirection(device, without_weights=without_weights),
    ):
        yield


_WARNINGS_LOCK = threading.RLock()


@contextlib.contextmanager
def warnings_ignored() -> Iterator[None]:
    """Meanwhile no warning is shown. One thread at a time: two that overlap would restore each other's filters."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def inference(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """While a network runs: inference mode, autocast to ``precision``, everything on ``device``."""
    import torch

    with (
        _SWITCHES.kept(),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32),
        _package_defaults(),
        _full_thread_teams(),
        running_on(device),
    ):
        yield


def running_on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """While the package's code runs: "cuda", which it names in places, means ``device`` (this thread only)."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else _redirection(device)


@contextlib.contextmanager
def _float32_precision_kept() -> Iterator[None]:
    import torch

    # torch has two sets of switches for this, and refuses to read the older one once the newer says otherwise
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
            torch.set_float32_matmul_precision(matmul_precision)  # writes to the newer switches: so before these
        for switch, value in zip(switches, values, strict=True):
            switch.fp32_precision = value


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    # sam3 sets the one, and the part of torch that it uses the other
    names = ("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR")
    values = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _redirection(device: torch.device, *, without_weights: bool = False) -> contextlib.AbstractContextManager[Any]:
    """A mode in which torch calls of this thread that name a CUDA device mean ``device`` instead."""
    import torch
    from torch.overrides import TorchFunctionMode

    weights = (torch.empty, torch.rand, torch.randn) if without_weights else ()
    initialisations = (torch.Tensor.uniform_, torch.Tensor.normal_) if without_weights else ()

    class Redirection(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is torch.Tensor.pin_memory and device.type != "cuda":
                return args[0]
            if func in initialisations:
                return args[0]
            if func in weights:
                kwargs = {**kwargs, "device": "meta"}
            elif kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
                kwargs = {**kwargs, "device": device}
            return func(*args, **kwargs)

    return Redirection()


@contextlib.contextmanager
def _full_thread_teams() -> Iterator[None]:
    """While torch computes: OpenMP teams have all the threads asked for (this thread only).

    Importing ikomia switches OpenMP's dynamic adjustment on, and then a machine under load gives smaller teams. The
    bfloat16 products of oneDNN do not reckon with that: they leave the missing threads' part of the result unwritten.
    """
    openmp = _openmp()
    adjusted = openmp.omp_get_dynamic() if openmp else 0
    if not adjusted:
        yield
        return
    openmp.omp_set_dynamic(0)
    try:
        yield
    finally:
        openmp.omp_set_dynamic(adjusted)


@functools.cache
def _openmp() -> Any:
    """The OpenMP runtime that torch uses, None if it has none."""
    import torch

    # on Linux a symbol is looked up in the dependencies too, so this finds the runtime whatever its file is called
    try:
        library = ctypes.CDLL("libiomp5md.dll" if sys.platform == "win32" else torch._C.__file__)
    except OSError:
        return None
    return library if hasattr(library, "omp_set_dynamic") else None


def _package_defaults() -> contextlib.AbstractContextManager[Any]:
    """The default device that sam3 counts on, the CPU, if the host has chosen another (this thread only)."""
    import torch

    cpu = torch.device("cpu")
    return contextlib.nullcontext() if torch.get_default_device() == cpu else cpu


class _Switches:
    """Keeps the process-wide switches of torch that sam3 sets (attention kernels) or counts on (default dtype).

    Calls may overlap in several threads: the first to come in notes the switches, the last to go out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._restore = contextlib.ExitStack()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        with self._lock:
            if self._running == 0:
                self._note()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._restore.close()

    def _note(self) -> None:
        import torch
        from torch.backends import cuda

        self._restore.callback(cuda.enable_flash_sdp, cuda.flash_sdp_enabled())
        self._restore.callback(cuda.enable_math_sdp, cuda.math_sdp_enabled())
        self._restore.callback(cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled())
        if torch.get_default_dtype() != torch.float32:
            self._restore.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)


_SWITCHES = _Switches()
