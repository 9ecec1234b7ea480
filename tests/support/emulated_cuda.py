"""CUDA devices without a GPU: tensors that are on ``cuda:0`` or ``cuda:1``, whose data is in main memory.

The tensors are ordinary ``torch.Tensor`` objects with a CUDA device, so everything that PyTorch decides by device runs
as it does on a GPU: autocast's list of operations, ``is_cuda``, ``numpy()``, which refuses them, ``parameter.data``,
inference mode and modules, which accept them. Only the operations themselves run on the CPU. As on a GPU:

- an operation on tensors of different devices is an error, unless the other one is a number (no dimensions, on the CPU)
- an operation that makes the CPU wait for the device warns or raises, see :func:`torch.cuda.set_sync_debug_mode`
- tensors use the memory of their device: :func:`torch.cuda.memory_allocated` counts it, and an operation whose result
  does not fit raises :class:`torch.OutOfMemoryError`

In addition, :meth:`EmulatedCuda.failing` makes operations fail.

Not emulated: the arithmetic and the kernels of a GPU (rounding, limits of a kernel, which attention runs), streams and
events, the memory that a kernel needs while it runs, Triton, compiled functions, gradients, and anything below PyTorch,
such as the driver. Operations run at once, so there is no race to find. Only the thread that enters the emulation sees
it, see :meth:`EmulatedCuda.in_this_thread`. It needs a PyTorch that was built with CUDA, and a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten

SYNCHRONIZES = "called a synchronizing CUDA operation"  # PyTorch's own words

_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# their result's size or value depends on the data
_SYNCHRONIZING = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
# besides those with PyTorch's tag "pointwise"
_ACCEPT_CPU_NUMBERS = {
    aten.fill_,
    aten.masked_fill,
    aten.masked_fill_,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
}
_MATH_ATTENTION = 0  # of the enumeration SDPBackend: attention by matrix products and softmax


def unavailable() -> str:
    """Return why this machine cannot emulate CUDA, or an empty string."""
    if not hasattr(torch._C, "_construct_CUDA_Tensor_From_Storage_And_Metadata"):
        return "PyTorch was built without CUDA"
    return "this machine has a GPU" if torch.cuda.is_available() else ""


@dataclass
class Gpu:
    """An emulated GPU.

    Attributes:
        capability: its compute capability; from (8, 0) on, it has native bfloat16.
        memory: in bytes.
    """

    capability: tuple[int, int] = (8, 0)
    memory: int = 2**34


@dataclass
class _Allocation:
    """Memory of an emulated device."""

    index: int  # of the device
    memory: torch.UntypedStorage  # on the CPU
    on_device: Callable[[], torch.UntypedStorage | None]  # a weak reference to the storage that the tensors have


class EmulatedCuda(contextlib.AbstractContextManager["EmulatedCuda"]):
    """Emulate CUDA devices until the context is left. Do not use their tensors afterwards.

    Args:
        gpus: the devices.

    Attributes:
        gpus: as given; you may change them.
        operations: how many operations ran on the devices.
    """

    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus) or [Gpu(), Gpu()]
        self.operations = 0
        self._current = 0
        self._sync_debug_mode = 0
        self._by_device_storage: dict[int, _Allocation] = {}
        self._by_memory: dict[int, _Allocation] = {}
        self._pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._allocated = [0] * len(self.gpus)
        self._peaks = [0] * len(self.gpus)
        self._failures: list[_Failure] = []
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> EmulatedCuda:
        reason = unavailable()
        if reason:
            raise RuntimeError(f"CUDA cannot be emulated: {reason}.")
        torch._C._ensureCUDADeviceGuardSet()  # as torch's FakeTensorMode does: no effect where there is a GPU
        with contextlib.ExitStack() as exits:
            _replace(exits, torch._C, self._functions_of_torch_c())
            _replace(exits, torch.cuda, self._functions_of_torch_cuda())
            _replace(exits, torch.UntypedStorage, {"clone": self._clone_storage_with(torch.UntypedStorage.clone)})
            _replace(exits, torch._tensor_str, {"_str": _describe})  # it would read the values outside the emulation
            for name in ("_initialized", "_cached_device_count", "default_generators", "_get_device_properties"):
                exits.callback(_put_back, torch.cuda, name, getattr(torch.cuda, name, None))
            _replace(exits, torch.cuda, {"_queued_calls": []})  # checks of the driver, and random seeds
            torch._C._set_only_lift_cpu_tensors(
                True
            )  # torch.tensor(..., device="cuda") makes a CPU tensor and moves it
            exits.callback(torch._C._set_only_lift_cpu_tensors, False)
            exits.enter_context(self.in_this_thread())
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def in_this_thread(self) -> contextlib.AbstractContextManager[Any]:
        """Emulate the devices in the current thread, too; the thread that entered the emulation needs no such call."""
        return _EveryOperation(self)

    @contextlib.contextmanager
    def failing(self, error: BaseException, operation: str = "", *, after: int = 0, times: int = 1) -> Iterator[None]:
        """Make operations on the devices raise an error.

        Args:
            error: what to raise.
            operation: only operations whose name contains this, for example "convolution"; all by default.
            after: how many of them run before the first that fails.
            times: how many of them fail; the rest runs.
        """
        failure = _Failure(error, operation, after, times)
        self._failures.append(failure)
        try:
            yield
        finally:
            self._failures.remove(failure)

    def allocated(self, index: int) -> int:
        """Return how many bytes of a device's memory its tensors use."""
        return self._allocated[index]

    # --- running an operation ---

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation of PyTorch, on the devices if it concerns them."""
        flat = tree_flatten((args, kwargs))[0]
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        if func in (aten.is_pinned.default, aten._pin_memory.default, aten.pin_memory.default):
            return self._pin(func, *args)
        on_cuda = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        if not on_cuda and not any(isinstance(value, torch.device) and value.type == "cuda" for value in flat):
            return func(*args, **kwargs)
        if func._can_decompose():  # in inference mode, an operation that consists of others comes as a whole
            with self.in_this_thread():
                return func.decompose(*args, **kwargs)
        name = func.overloadpacket
        self._fail_if_due(str(func))
        self.operations += 1
        device = on_cuda[0].device if on_cuda else None
        wanted = kwargs.get("device")
        if wanted is not None:
            device = self._with_index(wanted) if wanted.type == "cuda" else None
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func not in _COPIES:
            _refuse_mixed_devices(func, tensors, on_cuda)
        if self._synchronizes(func, args, kwargs, device):
            self._synchronize()

        if name is aten.set_:  # changes what a tensor refers to, and reads no data
            return func(*args, **kwargs)
        if name is aten.record_stream:
            return None
        if name is aten._fused_sdp_choice:
            return _MATH_ATTENTION
        kwargs = {**kwargs, "pin_memory": False} if kwargs.get("pin_memory") else kwargs
        aliases = {id(tensor): self._in_memory(tensor) for tensor in on_cuda}
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: aliases.get(id(tensor), tensor), (args, kwargs))
        if name in (aten._softmax, aten._log_softmax) and args[2]:  # half to float: only on GPUs
            args = (args[0].float(), args[1], False)
        result = func(*args, **kwargs)
        changed = {id(aliases[id(tensor)]): tensor for tensor in on_cuda}
        changed.update({id(tensor): tensor for tensor in tensors if tensor.device.type != "cuda"})
        normal = {tensor.untyped_storage()._cdata for tensor in on_cuda if not tensor.is_inference()}
        return tree_map_only(
            torch.Tensor,
            # an operation in place returns its argument
            lambda tensor: changed[id(tensor)] if id(tensor) in changed else self._on_device(tensor, device, normal),
            result,
        )

    def _with_index(self, device: torch.device) -> torch.device:
        index = self._current if device.index is None or device.index < 0 else device.index
        if index >= len(self.gpus):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def _fail_if_due(self, operation: str) -> None:
        for failure in list(self._failures):
            if failure.is_due(operation):
                raise failure.error

    def _in_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the CPU that shares memory with one on a device."""
        allocation = self._by_device_storage[tensor.untyped_storage()._cdata]
        alias = torch.empty(0, dtype=tensor.dtype)
        return alias.set_(allocation.memory, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _on_device(self, tensor: torch.Tensor, device: torch.device | None, normal: set[int]) -> torch.Tensor:
        """Return the tensor on a device that shares memory with one on the CPU.

        Args:
            tensor: on the CPU.
            device: None: return ``tensor``.
            normal: the storages of tensors that are not inference tensors.
        """
        if device is None:
            return tensor
        if tensor.is_conj() or tensor.is_neg() or tensor.layout is not torch.strided:
            raise NotImplementedError("The emulated devices have only strided tensors, without conjugation.")
        memory = tensor.untyped_storage()
        allocation = self._by_memory.get(memory._cdata)
        storage = allocation.on_device() if allocation else None
        view_of_normal = storage is not None and storage._cdata in normal
        if storage is None:
            storage = self._allocate(memory, device)
        metadata = {
            "size": tuple(tensor.size()),
            "stride": tensor.stride(),
            "storage_offset": tensor.storage_offset(),
            "dtype": tensor.dtype,
        }
        # in inference mode, results are inference tensors, except views of tensors that are not
        with torch.inference_mode(False) if view_of_normal else contextlib.nullcontext():
            return torch._C._construct_CUDA_Tensor_From_Storage_And_Metadata(metadata, storage)

    def _allocate(self, memory: torch.UntypedStorage, device: torch.device) -> torch.UntypedStorage:
        size, used, gpu = memory.nbytes(), self.allocated(device.index), self.gpus[device.index]
        if used + size > gpu.memory:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU {device.index} has a total capacity of "
                f"{gpu.memory} bytes of which {gpu.memory - used} bytes is free."
            )
        self._allocated[device.index] += size
        self._peaks[device.index] = max(self._peaks[device.index], used + size)
        storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), device, size)
        key = storage._cdata
        allocation = _Allocation(device.index, memory, weakref.ref(storage))
        self._by_device_storage[key] = self._by_memory[memory._cdata] = allocation
        weakref.finalize(storage, self._free, key, memory._cdata).atexit = False
        return storage

    def _clone_storage_with(self, clone: Callable[..., Any]) -> Callable[..., Any]:
        def clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:  # copying a module calls this
            if storage.device.type != "cuda":
                return clone(storage)
            return self._allocate(clone(self._by_device_storage[storage._cdata].memory), storage.device)

        return clone_storage

    def _free(self, key: int, memory_key: int) -> None:
        allocation = self._by_device_storage.pop(key)
        del self._by_memory[memory_key]
        self._allocated[allocation.index] -= allocation.memory.nbytes()

    # --- waiting for a device ---

    def _synchronizes(self, func: Any, args: Any, kwargs: Any, device: torch.device | None) -> bool:
        """Return whether an operation makes the CPU wait for a device; ``device`` is that of the result."""
        name = func.overloadpacket
        if func in _COPIES:
            return self._copy_synchronizes(func, args, kwargs, device)
        if name is aten.repeat_interleave:
            return kwargs.get("output_size") is None and func is not aten.repeat_interleave.self_int
        if func in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            if len(indices) == 1 and func is not aten.index.Tensor and _fills_mask(args[0], indices[0], args[2]):
                return False
            return any(index.dtype in (torch.bool, torch.uint8) or not index.is_cuda for index in indices)
        return name in _SYNCHRONIZING

    def _copy_synchronizes(self, func: Any, args: Any, kwargs: Any, device: torch.device | None) -> bool:
        source = args[1] if func is aten.copy_.default else args[0]
        target = args[0].device if func is aten.copy_.default else (device or torch.device("cpu"))
        if source.device.type == target.type:
            return False
        in_order = args[2] if func is aten.copy_.default and len(args) > 2 else kwargs.get("non_blocking", False)
        if in_order and target.type == "cpu":
            raise RuntimeError("A copy to the CPU with non_blocking=True may be read before it is complete.")
        return not in_order

    def _synchronize(self) -> None:
        if self._sync_debug_mode == 1:
            warnings.warn(SYNCHRONIZES, stacklevel=3)
        elif self._sync_debug_mode == 2:
            raise RuntimeError(SYNCHRONIZES)

    def _pin(self, func: Any, tensor: torch.Tensor, *_: Any) -> Any:
        if func is aten.is_pinned.default:
            return tensor.untyped_storage() in self._pinned
        if tensor.device.type != "cpu":
            raise RuntimeError(f"cannot pin '{tensor.type()}' only dense CPU tensors can be pinned")
        copy = tensor.clone()
        self._pinned.add(copy.untyped_storage())
        return copy

    # --- what torch.cuda asks ---

    def _functions_of_torch_c(self) -> dict[str, Callable[..., Any]]:
        return {
            "_cuda_init": self._initialize,
            "_cuda_isInBadFork": lambda: False,
            "_cuda_getDeviceCount": lambda: len(self.gpus),
            "_cuda_getDevice": lambda: self._current,
            "_cuda_setDevice": self._exchange_device,
            "_cuda_synchronize": self._synchronize,
            "_cuda_emptyCache": lambda: None,
            "_cuda_memoryStats": self._memory_stats,
            "_cuda_resetPeakMemoryStats": self._reset_peak,
            "_cuda_set_sync_debug_mode": lambda mode: setattr(self, "_sync_debug_mode", mode),
            "_cuda_get_sync_debug_mode": lambda: self._sync_debug_mode,
        }

    def _functions_of_torch_cuda(self) -> dict[str, Callable[..., Any]]:
        return {
            "_exchange_device": self._exchange_device,
            "_maybe_exchange_device": self._exchange_device,
            "mem_get_info": self._mem_get_info,
        }

    def _initialize(self) -> None:
        """Set what the compiled library sets when CUDA starts."""
        cuda: Any = torch.cuda
        cuda._get_device_properties = self._properties
        cuda.default_generators = tuple(torch.Generator() for _ in self.gpus)

    def _exchange_device(self, index: int) -> int:
        previous = self._current
        if index >= 0:
            self._current = self._with_index(torch.device("cuda", index)).index
        return previous

    def _properties(self, index: int) -> Any:
        gpu = self.gpus[index]
        major, minor = gpu.capability
        return types.SimpleNamespace(
            name=f"emulated GPU {index}", major=major, minor=minor, total_memory=gpu.memory, multi_processor_count=1
        )

    def _mem_get_info(self, device: Any = None) -> tuple[int, int]:
        index = self._index_of(device)
        return self.gpus[index].memory - self.allocated(index), self.gpus[index].memory

    def _memory_stats(self, index: int) -> dict[str, Any]:
        values = {"current": self.allocated(index), "peak": self._peaks[index]}
        return {"allocated_bytes": {"all": values}, "reserved_bytes": {"all": values}}

    def _reset_peak(self, index: int) -> None:
        self._peaks[index] = self.allocated(index)

    def _index_of(self, device: Any) -> int:
        return self._current if device is None else torch.cuda._utils._get_device_index(device, optional=True)


@dataclass
class _Failure:
    """Operations that raise an error, see :meth:`EmulatedCuda.failing`."""

    error: BaseException
    operation: str
    after: int
    times: int

    def is_due(self, operation: str) -> bool:
        if self.operation not in operation:
            return False
        self.after -= 1
        if self.after >= 0 or self.times <= 0:
            return False
        self.times -= 1
        return True


class _EveryOperation(TorchDispatchMode):
    """Hand every operation of this thread to the emulation."""

    def __init__(self, emulation: EmulatedCuda) -> None:
        super().__init__()
        self._emulation = emulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._emulation.run(func, args, kwargs or {})


def _refuse_mixed_devices(func: Any, tensors: list[torch.Tensor], on_cuda: list[torch.Tensor]) -> None:
    """Raise RuntimeError if an operation mixes devices in a way that CUDA refuses."""
    devices = {tensor.device for tensor in on_cuda}
    if on_cuda:
        numbers_allowed = torch.Tag.pointwise in func.tags or func.overloadpacket in _ACCEPT_CPU_NUMBERS
        others = [tensor for tensor in tensors if tensor.device.type != "cuda"]
        if func in _INDEXING:  # the indices may be on the CPU; they are copied
            others = [tensor for tensor in others if tensor.dtype not in (torch.long, torch.int, torch.bool)]
        devices |= {tensor.device for tensor in others if tensor.dim() > 0 or not numbers_allowed}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {names}! ({func})"
        )


def _fills_mask(tensor: torch.Tensor, index: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether PyTorch assigns ``tensor[index] = value`` with masked_fill, which waits for nothing."""
    return index.dtype in (torch.bool, torch.uint8) and value.numel() == 1 and not value.is_cuda


def _describe(tensor: torch.Tensor, **_: Any) -> str:
    return f"tensor(..., device='{tensor.device}', size={tuple(tensor.shape)}, dtype={tensor.dtype})"


def _replace(exits: contextlib.ExitStack, owner: Any, values: dict[str, Any]) -> None:
    """Set attributes until ``exits`` closes."""
    for name, value in values.items():
        exits.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)


def _put_back(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)
