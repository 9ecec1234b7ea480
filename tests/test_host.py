"""The host process is left as it was found: by importing, loading, running and failing."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch

from demo.plugin import REPOSITORY
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt, PromptError
from sam3_engine.runtime import _openmp, building_network, inference

CPU = torch.device("cpu")


def snapshot():
    """The state that belongs to the whole process, or outlives a call in its thread."""
    backends = torch.backends
    return {
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "tf32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "fp32 precision": [
            switch.fp32_precision
            for switch in (backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.mkldnn.matmul)
        ],
        "attention kernels": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ),
        "cudnn": (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype and device": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), _openmp().omp_get_dynamic()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.disabled),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "directory": os.getcwd(),  # noqa: PTH109
        "environment": dict(os.environ),
    }


@pytest.fixture
def unusual_host():
    """A host that has set much of its state to something else than the defaults."""
    before = (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        _openmp().omp_get_dynamic(),
    )
    torch.backends.cuda.enable_flash_sdp(False)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    _openmp().omp_set_dynamic(1)
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.backends.cuda.enable_flash_sdp(before[0])
    torch.set_default_dtype(before[1])
    torch.set_float32_matmul_precision(before[2])
    _openmp().omp_set_dynamic(before[3])


def use_everything(checkpoint, image):
    predictor = Predictor(load_model(checkpoint, CPU))
    embedding = predictor.encode_image(image, size_percent=70)
    text = predictor.segment(embedding, ConceptPrompt(("shoe",)), confidence_threshold=0)
    box = predictor.segment(embedding, GeometricPrompt(boxes=((60, 80, 300, 330),)), multimask=True)
    with pytest.raises(PromptError):
        predictor.segment(embedding, GeometricPrompt(points=((-1, 5),), point_labels=(1,)))
    return [segment.mask for segment in [*text, *box]]


def test_loading_running_and_failing_change_nothing(small_checkpoint, photograph):
    before = snapshot()
    masks = use_everything(small_checkpoint, photograph)
    assert snapshot() == before
    assert len(masks) > 3


def test_an_unusual_host_keeps_its_state_and_gets_the_same_masks(small_checkpoint, photograph, request):
    reference = use_everything(small_checkpoint, photograph)
    request.getfixturevalue("unusual_host")
    before = snapshot()
    masks = use_everything(small_checkpoint, photograph)
    assert snapshot() == before
    for mask, wanted in zip(masks, reference, strict=True):  # other attention kernels round otherwise
        assert np.mean(mask == wanted) > 0.98


def test_an_error_in_the_network_leaves_the_state_and_the_model_usable(small_checkpoint, photograph, monkeypatch):
    predictor = Predictor(load_model(small_checkpoint, CPU))
    embedding = predictor.encode_image(photograph)
    prompt = GeometricPrompt(points=((210, 150),), point_labels=(1,))
    reference = predictor.segment(embedding, prompt)[0].mask
    decoder = predictor.model.network.inst_interactive_predictor.model.sam_mask_decoder
    before = snapshot()
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "predict_masks", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predictor.segment(embedding, prompt)
    assert snapshot() == before
    assert np.array_equal(predictor.segment(embedding, prompt)[0].mask, reference)


def test_overlapping_calls_of_two_threads_restore_what_was_before_both():
    before = snapshot()
    torch.backends.cuda.enable_flash_sdp(False)
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with inference(CPU, torch.float32):
            torch.backends.cuda.enable_flash_sdp(True)  # as sam3 does
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with inference(CPU, torch.float32):
            second_in.set()
            first_out.wait(10)
            torch.backends.cuda.enable_flash_sdp(True)

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(True)
    assert snapshot() == before


def test_openmp_teams_are_whole_while_a_network_runs():
    """Ikomia lets OpenMP give smaller teams; oneDNN's bfloat16 products are then wrong, without an error."""
    openmp = _openmp()
    before = openmp.omp_get_dynamic()
    openmp.omp_set_dynamic(1)
    with inference(CPU, torch.bfloat16):
        assert openmp.omp_get_dynamic() == 0
    assert openmp.omp_get_dynamic() == 1
    openmp.omp_set_dynamic(before)


def test_other_threads_see_no_redirection(small_checkpoint):
    with building_network(CPU, without_weights=True):
        assert torch.empty(2).is_meta
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.empty(2).device.type))
        thread.start()
        thread.join(10)
    assert seen == ["cpu"]
    assert not torch.empty(2).is_meta


FRESH_PROCESS = """
import logging, sys, warnings
import torch
def state():
    backends = torch.backends
    return [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), torch.get_float32_matmul_precision(),
        backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.fp32_precision,
        torch.get_num_threads(), torch.get_default_dtype(), list(logging.root.handlers), logging.root.level,
        list(warnings.filters), torch.get_rng_state().sum().item(), signals()]
def signals():
    import signal
    return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
before = state()
{then}
after = state()
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
"""


@pytest.mark.parametrize(
    "then",
    [
        "import sam3_engine.predictor",
        # a host that has chosen TF32 by the newer of torch's two ways
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "import sam3_engine.predictor\n"
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'\n"
        "torch.backends.cuda.matmul.fp32_precision = 'none'",
        # what the package does on an Ampere GPU when it is imported
        "from sam3_engine.runtime import importing_sam3\n"
        "with importing_sam3():\n"
        "    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True\n"
        "    logging.debug('adds a handler')",
        "from pathlib import Path\n"
        "from sam3_engine.model import load_model\n"
        "from sam3_engine.predictor import Predictor\n"
        "import numpy as np\nfrom sam3_engine.prompts import GeometricPrompt\n"
        "predictor = Predictor(load_model(Path({checkpoint!r}), torch.device('cpu')))\n"
        "embedding = predictor.encode_image(np.zeros((20, 30, 3), np.uint8))\n"
        "predictor.segment(embedding, GeometricPrompt(boxes=((1, 2, 20, 15),)))",
    ],
    ids=["import", "import beside TF32", "import on an Ampere GPU", "first run"],
)
def test_a_fresh_process_keeps_its_state_and_prints_nothing(small_checkpoint, then):
    code = FRESH_PROCESS.replace("{then}", then.replace("{checkpoint!r}", repr(str(small_checkpoint))))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
