"""The device: what is chosen, what it costs the host, and errors that are its own."""

import errno

import pytest
import torch

from sam3_engine.device_errors import exhausted_device, is_device_error, is_out_of_memory

CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)

GPU_MEMORY = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 26.00 MiB."),
    "without text": torch.OutOfMemoryError(),
    "runtime": torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "driver": RuntimeError("CUDA driver error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "without NVML": RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'),
}
HOST_MEMORY = {
    "Python": MemoryError(),
    "system": OSError(errno.ENOMEM, "Nicht genügend Hauptspeicher verfügbar"),
    "allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Windows' allocator": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."
    ),
    "mapping": RuntimeError("unable to mmap 99 bytes from file </w/sam3.pt>: Cannot allocate memory (12)"),
    "mapping, translated": RuntimeError("unable to mmap 99 bytes from file </w/a.pt>: Nicht genügend Speicher (12)\n"),
    "mapping on Windows": RuntimeError("Couldn't open file mapping: <C:\\sam3.pt>, error code: <1455>"),
    "safetensors": OSError("Cannot allocate memory (os error 12)"),
    "safetensors on Windows": OSError("The paging file is too small for this operation to complete. (os error 1455)"),
    "C++": RuntimeError("std::bad_alloc"),
}
OTHERS_OF_THE_DEVICE = {
    "no kernel": torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    "assertion": RuntimeError("CUDA error: device-side assert triggered"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "no engine": RuntimeError("GET was unable to find an engine to execute this computation"),
    "no driver": RuntimeError("Found no NVIDIA driver on your system."),
    "forked": RuntimeError("Cannot re-initialize CUDA in forked subprocess."),
    "CPU build": AssertionError("Torch not compiled with CUDA enabled"),
    "Triton": RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
}
OTHERS = {
    "shapes": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "a file's sizes": RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
    "mapping": RuntimeError("unable to mmap 99 bytes from file </w/a: (12).pt>: No such device (19)"),
    "quoted": ValueError("'CUDA out of memory' is not a tensor"),
    "no file": OSError(errno.ENOENT, "No such file or directory"),
}


@pytest.mark.parametrize("error", GPU_MEMORY.values(), ids=GPU_MEMORY)
def test_exhausted_memory_of_a_gpu_is_recognized_in_all_its_forms(error):
    assert is_out_of_memory(error)
    assert is_device_error(error)
    assert exhausted_device(error, GPU) == GPU


@pytest.mark.parametrize("error", HOST_MEMORY.values(), ids=HOST_MEMORY)
def test_exhausted_memory_of_the_machine_is_recognized_in_all_its_forms(error):
    assert is_out_of_memory(error)
    assert is_device_error(error)
    assert exhausted_device(error, GPU) == CPU


@pytest.mark.parametrize("error", OTHERS_OF_THE_DEVICE.values(), ids=OTHERS_OF_THE_DEVICE)
def test_other_errors_of_a_device_are_recognized(error):
    assert is_device_error(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS.values(), ids=OTHERS)
def test_errors_of_the_input_are_not_taken_for_the_devices(error):
    assert not is_device_error(error)


def test_pytorch_itself_says_that_memory_is_exhausted_in_a_known_form():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert exhausted_device(caught.value, GPU) == CPU
