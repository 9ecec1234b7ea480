"""The device: what is chosen, what it costs the host, and errors that are its own."""

import ctypes
import dataclasses
import errno
import gc
import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from sam3_engine import devices
from sam3_engine.checkpoints.layout import Layout
from sam3_engine.contexts import importing_sam3
from sam3_engine.cuda_answers import hide_cuda
from sam3_engine.device_errors import exhausted_device, is_device_error, is_out_of_memory
from sam3_engine.devices import choose_device, choose_precision, cuda_present
from sam3_engine.errors import CheckpointError, DeviceMemoryError
from sam3_engine.model import load_model
from sam3_engine.predictor import open_predictor
from testbed.layout_files import read_contents, write_safetensors
from testbed.plugin import REPOSITORY
from tests.support.emulated_cuda import Gpu

CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"

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
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate 1 B."
    ),
    "mapping": RuntimeError("unable to mmap 99 bytes from file </w/sam3.pt>: Cannot allocate memory (12)"),
    "mapping, translated": RuntimeError("unable to mmap 99 bytes from file </w/a.pt>: Nicht genügend Speicher (12)\n"),
    "mapping on Windows": RuntimeError("Couldn't open file mapping: <C:\\sam3.pt>, error code: <1455>"),
    "safetensors": OSError("Cannot allocate memory (os error 12)"),
    "safetensors on Windows": OSError("The paging file is too small for this operation to complete. (os error 1455)"),
    "C++": RuntimeError("std::bad_alloc"),
}
OTHERS_OF_THE_DEVICE = {
    "no kernel": torch.AcceleratorError(NO_KERNEL),
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


# --- presence


class Driver:
    """The libraries of NVIDIA's driver. Only those functions work that do not initialize CUDA.

    Args:
        count: the number of GPUs that NVML finds; None if it finds no driver.
        missing: the names of libraries that are not installed.
    """

    def __init__(self, count=1, missing=()):
        self._missing = missing
        self.count = count
        self.initialized = 0

    def load(self, name, *_, **__):
        if name in self._missing:
            raise OSError(f"{name}: cannot open shared object file")
        functions = {"nvmlInit_v2": self.init, "nvmlDeviceGetCount_v2": self.get_count, "nvmlShutdown": self.shut_down}
        return SimpleNamespace(**functions if name == devices._MANAGEMENT else {})

    def init(self):
        self.initialized += 1
        return 9 if self.count is None else 0

    def get_count(self, reference):
        reference._obj.value = self.count
        return 0

    def shut_down(self):
        self.initialized -= 1
        return 0


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Return a function that installs a driver, with files in /dev."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_DEVICES", tmp_path)

    def install_driver(driver, *files):
        monkeypatch.setattr(ctypes, "CDLL", driver.load)
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        devices._device_count.cache_clear()

    yield install_driver
    devices._device_count.cache_clear()


@pytest.mark.parametrize(
    ("visible", "present"),
    [
        (None, True),
        ("0", True),
        ("1", True),
        ("+1", True),
        ("1gpu,2", True),  # what CUDA reads as 1
        ("2gpu", False),
        ("gpu1", False),
        ("2", False),  # there are only two
        ("1,0", True),
        ("0,-1", True),
        ("-1", False),
        ("-1,0", False),  # what follows an invalid entry does not count
        ("", False),
        (" ", False),
        ("NoDevFiles", False),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", True),
        ("MIG-GPU-8932f937/1/2", True),
    ],
)
def test_a_gpu_is_present_if_this_process_may_see_it(install, monkeypatch, visible, present):
    install(Driver(count=2))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cuda_present() is present


def test_without_a_driver_or_a_gpu_none_is_present(install):
    install(Driver(missing=(devices._DRIVER, devices._MANAGEMENT)))
    assert not cuda_present()
    install(Driver(count=0))
    assert not cuda_present()


def test_asking_for_the_gpu_leaves_nothing_initialized(install):
    driver = Driver()
    install(driver)
    assert cuda_present()
    assert driver.initialized == 0


@pytest.mark.parametrize("file", ["nvidia0", "dxg", "nvhost-gpu", "nvgpu/igpu0"])
@pytest.mark.parametrize("driver", [Driver(missing=(devices._MANAGEMENT,)), Driver(count=None)], ids=["no", "failing"])
def test_without_nvml_the_drivers_files_tell_whether_a_gpu_is_present(install, driver, file):
    install(driver, "nvidiactl", "nvidia-uvm")
    assert cuda_present() is (sys.platform == "win32")
    install(driver, file)
    assert cuda_present()


# --- choice


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_current_device_is_chosen_if_it_works(emulated_cuda, caplog):
    torch.cuda.set_device(1)
    assert choose_device(True) == torch.device("cuda", 1)
    assert emulated_cuda.operations > 0
    assert choose_device(False) == CPU
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(NO_KERNEL + "\nSearch for `cudaErrorNoKernelImageForDevice' in the documentation."),
        RuntimeError(NO_KERNEL),
    ],
)
def test_a_device_that_pytorch_has_no_kernels_for_is_not_chosen(emulated_cuda, caplog, error):
    with emulated_cuda.failing(error):
        assert choose_device(True) == CPU
    assert warnings_of(caplog) == [
        f"cuda is True, but PyTorch cannot use a CUDA device ({NO_KERNEL}): running on the CPU."
    ]


def test_a_device_that_cannot_be_initialized_is_not_chosen(emulated_cuda, caplog):
    def check():
        raise RuntimeError("device >= 0 && device < num_gpus INTERNAL ASSERT FAILED")

    torch.cuda._lazy_call(check)  # PyTorch's own checks run like this, when it initializes CUDA
    assert choose_device(True) == CPU
    assert "INTERNAL ASSERT FAILED" in warnings_of(caplog)[0]


def test_an_error_that_comes_late_counts(emulated_cuda):
    """Kernels run in the background: their errors come when something waits for them."""
    with emulated_cuda.failing(
        torch.AcceleratorError("CUDA error: an illegal instruction was encountered"), "local_scalar"
    ):
        assert choose_device(True) == CPU


@pytest.mark.parametrize(
    ("capability", "precision"), [((8, 6), torch.bfloat16), ((7, 5), torch.float16)], ids=["Ampere", "Turing"]
)
@pytest.mark.parametrize("index", [0, 1])
def test_the_precision_suits_the_device_asked_for_not_the_current_one(emulated_cuda, capability, precision, index):
    emulated_cuda.gpus[index] = Gpu(capability)
    emulated_cuda.gpus[1 - index] = Gpu((15, 0) if precision == torch.float16 else (15 - capability[0], 0))
    torch.cuda.set_device(1 - index)
    assert choose_precision(torch.device("cuda", index)) == precision
    assert torch.cuda.current_device() == 1 - index


def test_a_device_without_index_is_the_one_that_is_current_when_a_model_is_loaded(emulated_cuda, small_checkpoint):
    torch.cuda.set_device(1)
    predictor = open_predictor(small_checkpoint, device=torch.device("cuda"))
    assert predictor.model.device == GPU
    assert open_predictor(small_checkpoint, device=GPU).model is predictor.model
    torch.cuda.set_device(0)
    assert open_predictor(small_checkpoint, device=torch.device("cuda")).model is not predictor.model
    assert predictor.model.device == GPU


# --- what the host does not pay

UNTOUCHED = """
import ctypes, inspect, sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

class Driver:  # one GPU
    nvmlInit_v2 = nvmlShutdown = lambda *_: 0
    def nvmlDeviceGetCount_v2(self, reference):
        reference._obj.value = 1
        return 0

load = ctypes.CDLL
drivers = ("libcuda.", "libnvidia-ml.", "nvcuda.", "nvml.")
ctypes.CDLL = lambda name, *a, **k: Driver() if name and name.startswith(drivers) else load(name, *a, **k)
import torch
import torch.utils.checkpoint
touched = []
for name in ("init", "getDeviceCount", "getDevice", "setDevice", "getArchFlags"):
    setattr(torch._C, f"_cuda_{name}", lambda *_, name=name: touched.append(name) or 0)
torch.backends.cuda.is_built = lambda: True  # PyTorch's build for the CPU alone gives the same result
functions = [torch.cuda.is_available, torch.cuda.is_bf16_supported, torch.cuda.get_device_properties]

from sam3_engine import ConceptPrompt, GeometricPrompt, open_predictor
from sam3_engine.settings import Settings
import numpy as np
assert Settings().cuda is True
predictor = open_predictor(sys.argv[1], cuda=False, input_size=168)
image = np.zeros((20, 30, 3), np.uint8)
assert predictor.predict(image, GeometricPrompt(boxes=((1, 2, 20, 15),)))
predictor.predict(image, ConceptPrompt(("shoe",), boxes=((1, 2, 20, 15),), box_labels=(1,)))
assert predictor.model.device.type == "cpu"

assert touched == [], touched
assert functions == [torch.cuda.is_available, torch.cuda.is_bf16_supported, torch.cuda.get_device_properties]
# nor does the package, for others in the process, remember that it was imported for a CPU
from sam3.model_builder import build_sam3_image_model
assert inspect.signature(build_sam3_image_model).parameters["device"].default == "cuda"
assert torch.utils.checkpoint.DefaultDeviceType._default_device_type is None
"""


def test_importing_the_engine_and_running_it_on_the_cpu_does_not_touch_the_gpu(small_checkpoint):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", UNTOUCHED, str(small_checkpoint)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_cuda_is_hidden_in_one_thread_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    host = torch.cuda.is_available
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = {}

    def first():
        with hide_cuda():
            first_in.set()
            assert second_in.wait(10)
            seen["first"] = torch.cuda.is_available()
        seen["first, outside"] = torch.cuda.is_available()
        first_out.set()

    def second():
        assert first_in.wait(10)
        with hide_cuda():
            second_in.set()
            assert first_out.wait(10)
            seen["second"] = torch.cuda.is_available()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    assert second_in.wait(10)
    seen["host"] = torch.cuda.is_available()
    for thread in threads:
        thread.join(20)
    assert seen == {"first": False, "first, outside": True, "second": False, "host": True}
    assert torch.cuda.is_available is host


def test_what_the_host_sets_while_cuda_is_hidden_stays(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with hide_cuda():
        mine = lambda: "mine"  # noqa: E731
        torch.cuda.is_available = mine
    assert torch.cuda.is_available is mine


def test_only_the_capability_of_a_gpu_is_hidden_while_sam3_is_imported(emulated_cuda):
    torch.cuda.init()
    with importing_sam3():
        assert torch.cuda.get_device_capability(1) == (0, 0)
        assert torch.cuda.get_device_properties(device=1).total_memory == emulated_cuda.gpus[1].memory
        assert torch.cuda.is_available()
    assert torch.cuda.get_device_capability(1) == (8, 0)


# --- loading


def load_outcome(checkpoint, device):
    """Return the type and text of the error of a load, or None."""
    try:
        load_model(checkpoint, device)
    except Exception as error:
        return type(error), str(error)
    return None


def test_no_step_of_loading_blames_the_file_for_an_error_of_the_device(emulated_cuda, small_checkpoint):
    before = emulated_cuda.operations
    assert load_outcome(small_checkpoint, GPU) is None
    steps = emulated_cuda.operations - before
    assert steps > 100
    for step in (0, steps // 3, 2 * steps // 3, steps - 1):
        with emulated_cuda.failing(torch.AcceleratorError(NO_KERNEL), after=step):
            assert load_outcome(small_checkpoint, GPU) == (torch.AcceleratorError, NO_KERNEL), step
        with emulated_cuda.failing(RuntimeError(str(GPU_MEMORY["cuBLAS"])), after=step):  # only the first attempt
            assert load_outcome(small_checkpoint, GPU) is None, step
        with emulated_cuda.failing(torch.OutOfMemoryError(), after=step, times=10**9):
            assert load_outcome(small_checkpoint, GPU) == (DeviceMemoryError, str(DeviceMemoryError(GPU))), step
    gc.collect()
    assert emulated_cuda.allocated(GPU.index) == 0


HOST_STEPS = {
    "opening": "sam3_engine.checkpoints.weight_files.is_torch_archive",
    "the directory": "sam3_engine.checkpoints.torch_archives.stored_entry",
    "checksums": "sam3_engine.checkpoints.torch_archives.find_damaged",
    "mapping": "torch.load",
    "building": "sam3_engine.model.build_image_network",
}
SAFETENSORS_STEPS = {
    "opening": "sam3_engine.checkpoints.safetensors_files.is_safetensors",
    "the header": "sam3_engine.checkpoints.safetensors_headers._read",
    "mapping": "sam3_engine.checkpoints.safetensors_files.safe_open",
}


@pytest.fixture(scope="module")
def small_safetensors(small_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    contents = read_contents(small_checkpoint)
    write_safetensors(path, contents.tensors, contents.architecture)
    return path


@pytest.mark.parametrize(
    "error", [*HOST_MEMORY.values(), torch.AcceleratorError(NO_KERNEL)], ids=lambda error: str(error)[:40]
)
def test_no_step_of_reading_blames_the_file_for_an_error_of_the_device(
    small_checkpoint, small_safetensors, monkeypatch, error
):
    for path, steps in ((small_checkpoint, HOST_STEPS), (small_safetensors, SAFETENSORS_STEPS)):
        for step, name in steps.items():
            with monkeypatch.context() as patched:
                patched.setattr(name, mock.Mock(side_effect=error))
                kind, said = load_outcome(path, CPU)
            assert kind is (DeviceMemoryError if is_out_of_memory(error) else type(error)), step
            assert "checkpoint" not in said
    assert load_outcome(small_checkpoint, CPU) is None


def test_converting_a_tensor_does_not_blame_the_file_either(small_checkpoint, monkeypatch):
    def convert(_):
        raise HOST_MEMORY["allocator"]

    source_of = Layout.source_of

    def failing_source(layout, name):
        source = source_of(layout, name)
        return source and dataclasses.replace(source, convert=convert)

    monkeypatch.setattr(Layout, "source_of", failing_source)
    with pytest.raises(DeviceMemoryError):
        load_model(small_checkpoint, CPU)


def test_other_errors_of_reading_are_still_the_files(small_checkpoint, small_safetensors, monkeypatch):
    for path, name in ((small_checkpoint, HOST_STEPS["mapping"]), (small_safetensors, SAFETENSORS_STEPS["mapping"])):
        monkeypatch.setattr(name, mock.Mock(side_effect=RuntimeError("unable to mmap 9 bytes: No such device (19)")))
        with pytest.raises(CheckpointError, match="No such device"):
            load_model(path, CPU)


TOO_LARGE_TO_MAP = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from sam3_engine.checkpoints.weight_files import open_weight_file
from sam3_engine.device_errors import is_out_of_memory

folder, tensor = Path(sys.argv[1]), torch.zeros(2**26)
torch.save({"model": {"a": tensor}}, folder / "a.pt")
save_file({"a": tensor}, folder / "a.safetensors")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
for path in sorted(folder.iterdir()):
    try:
        open_weight_file(path).load(["a"])
        print("loaded")
    except Exception as error:
        print(is_out_of_memory(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_file_that_the_machine_has_no_memory_to_map_is_not_blamed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE_TO_MAP, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True"]
