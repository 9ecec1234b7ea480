"""Importing, loading, running and failing leave the host process unchanged."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.host_state import changes, snapshot

from sam3_engine.contexts import building_network, inference
from sam3_engine.errors import CheckpointError, PromptError
from sam3_engine.model import load_model
from sam3_engine.openmp import openmp_library
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.shared_models import shared_model
from testbed.plugin import REPOSITORY

CPU = torch.device("cpu")


@contextlib.contextmanager
def set_for_a_while(set_to, value, before):
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


HOSTS = {
    "float64": lambda: set_for_a_while(torch.set_default_dtype, torch.float64, torch.float32),
    "no flash attention": lambda: set_for_a_while(torch.backends.cuda.enable_flash_sdp, False, True),
    "TF32": lambda: set_for_a_while(torch.set_float32_matmul_precision, "high", "highest"),
    "smaller teams": lambda: set_for_a_while(openmp_library().omp_set_dynamic, 1, openmp_library().omp_get_dynamic()),
    "one thread": lambda: set_for_a_while(torch.set_num_threads, 1, torch.get_num_threads()),
    "a device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "determinism": lambda: set_for_a_while(torch.use_deterministic_algorithms, True, False),
    "a seed": lambda: set_for_a_while(torch.manual_seed, 5, 6),
}


def refused_load(checkpoint, image):
    path = checkpoint.with_name("cut.pt")
    path.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        load_model(path, CPU)


def out_of_memory(checkpoint, image):
    predictor = Predictor(shared_model(checkpoint, CPU))
    with mock.patch.object(predictor._processor, "set_image", side_effect=MemoryError), pytest.raises(RuntimeError):
        predictor.encode_image(image[:50])


def asked(prompt, size=0):
    def step(checkpoint, image):
        predictor = Predictor(shared_model(checkpoint, CPU), size)
        for segment in predictor.segment(predictor.encode_image(image), prompt, Options(confidence_threshold=0.4)):
            assert segment.mask.shape == image.shape[:2]

    return step


def refused(make_prompt):
    def step(checkpoint, image):
        with pytest.raises(PromptError):
            asked(make_prompt())(checkpoint, image)

    return step


STEPS = {
    "load": lambda checkpoint, image: load_model(checkpoint, CPU),
    "refused load": refused_load,
    "out of memory": out_of_memory,
    "phrases": asked(ConceptPrompt(("shoe", "hat"))),
    "examples": asked(ConceptPrompt(boxes=((60.0, 80.0, 300.0, 330.0),), box_labels=(1,))),
    "boxes": asked(GeometricPrompt(boxes=((60.0, 80.0, 300.0, 330.0), (5.0, 5.0, 50.0, 50.0)))),
    "points, smaller": asked(GeometricPrompt(points=((210.0, 150.0),), point_labels=(1,)), 168),
    "refused point": refused(lambda: GeometricPrompt(points=((-1.0, 5.0),), point_labels=(1,))),
    "refused examples": refused(lambda: ConceptPrompt(boxes=((60.0, 80.0, 300.0, 330.0),), box_labels=(0,))),
}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    hosts=st.sets(st.sampled_from(sorted(HOSTS)), max_size=4),
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5),
)
def test_no_sequence_of_calls_changes_any_host(small_checkpoint, photograph, hosts, steps):
    with contextlib.ExitStack() as host:
        for name in sorted(hosts):
            host.enter_context(HOSTS[name]())
        before = snapshot()
        for step in steps:
            STEPS[step](small_checkpoint, photograph)
            assert changes(before, snapshot()) == []


@pytest.fixture
def unusual_host():
    """Change much of the host's state from the defaults."""
    with contextlib.ExitStack() as host:
        for name in ("float64", "no flash attention", "TF32", "smaller teams", "a device", "autocast"):
            host.enter_context(HOSTS[name]())
        yield


def use_everything(checkpoint, image):
    predictor = Predictor(load_model(checkpoint, CPU))
    embedding = predictor.encode_image(image, size_percent=70)
    text = predictor.segment(embedding, ConceptPrompt(("shoe",)), Options(confidence_threshold=0))
    box = predictor.segment(embedding, GeometricPrompt(boxes=((60, 80, 300, 330),)), Options(multimask=True))
    with pytest.raises(PromptError):
        predictor.segment(embedding, GeometricPrompt(points=((-1, 5),), point_labels=(1,)))
    return [segment.mask for segment in [*text, *box]]


def test_loading_running_and_failing_change_nothing(small_checkpoint, photograph):
    before = snapshot()
    masks = use_everything(small_checkpoint, photograph)
    assert changes(before, snapshot()) == []
    assert len(masks) > 3


def test_an_unusual_host_keeps_its_state_and_gets_the_same_masks(small_checkpoint, photograph, request):
    reference = use_everything(small_checkpoint, photograph)
    request.getfixturevalue("unusual_host")
    before = snapshot()
    masks = use_everything(small_checkpoint, photograph)
    assert changes(before, snapshot()) == []
    for mask, wanted in zip(masks, reference, strict=True):  # other attention kernels round differently
        assert np.mean(mask == wanted) > 0.98


def test_an_error_in_the_network_changes_no_state_and_the_model_still_works(small_checkpoint, photograph, monkeypatch):
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
    assert changes(before, snapshot()) == []
    assert np.array_equal(predictor.segment(embedding, prompt)[0].mask, reference)


def test_overlapping_calls_in_two_threads_restore_the_original_state():
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
    assert changes(before, snapshot()) == []


def test_openmp_teams_have_full_size_while_a_network_runs():
    """Ikomia allows OpenMP to use smaller teams, with which oneDNN's bfloat16 products are silently wrong."""
    openmp = openmp_library()
    before = openmp.omp_get_dynamic()
    openmp.omp_set_dynamic(1)
    with inference(CPU, torch.bfloat16):
        assert openmp.omp_get_dynamic() == 0
    assert openmp.omp_get_dynamic() == 1
    openmp.omp_set_dynamic(before)


def test_other_threads_are_not_redirected(small_checkpoint):
    with building_network(CPU, without_weights=True):
        assert torch.empty(2).is_meta
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.empty(2).device.type))
        thread.start()
        thread.join(10)
    assert seen == ["cpu"]
    assert not torch.empty(2).is_meta


FRESH_PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from support.host_state import changes, snapshot
before = snapshot()
{then}
changed = changes(before, snapshot())
assert not changed, changed
"""


def said_by_fresh_process(then, checkpoint):
    """Run ``then`` in a new process that checks that its state does not change; return what it prints."""
    code = FRESH_PROCESS.format(tests=str(REPOSITORY / "tests"), then=then.replace("CHECKPOINT", repr(str(checkpoint))))
    # without the variables that tests set to use sam3 directly
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENIZERS", "TORCH"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


BESIDE_TF32 = """
import torch
torch.backends.cuda.matmul.fp32_precision = "tf32"  # with the newer of torch's two APIs
before = snapshot()
import sam3_engine.predictor
"""
AMPERE = """
from types import SimpleNamespace
import torch
torch.cuda.is_available = torch.cuda.is_bf16_supported = lambda *_, **__: True
torch.cuda.is_initialized = lambda: INITIALIZED
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(major=8, minor=0)
"""
IMPORT_ON_AMPERE = (
    AMPERE
    + """
torch.backends.cudnn.allow_tf32 = False
before = snapshot()
import sam3_engine.predictor
"""
)
ALL_ORDERS = (
    AMPERE
    + """
import itertools, sys
sys.path.insert(0, TESTS)
from support.host_state import fp32_precision, older_fp32_precision
from sam3_engine.contexts import importing_sam3
import sam3_engine.network
from sam3.model_builder import _setup_tf32
backends = torch.backends

def set_all(value):
    for switch in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
        switch.fp32_precision = value

HOST = [
    lambda: setattr(backends.cudnn, "allow_tf32", False),
    lambda: setattr(backends.cudnn, "allow_tf32", True),
    lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: torch.set_float32_matmul_precision("highest"),
    lambda: setattr(backends, "fp32_precision", "ieee"),
    lambda: setattr(backends, "fp32_precision", "tf32"),
    lambda: setattr(backends.cudnn, "fp32_precision", "ieee"),
    lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    lambda: set_all("tf32"),
    lambda: set_all("none"),
]

def state():  # with each value that switches may inherit
    own, seen = backends.fp32_precision, []
    for inherited in (own, "tf32", "ieee", "none"):
        backends.fp32_precision = inherited
        seen.append((fp32_precision(), older_fp32_precision()))
    backends.fp32_precision = own
    return seen

orders = list(itertools.permutations(HOST, 3))
spoiled = 0
for order in orders:
    for switch in order:
        switch()
    before = state()
    with importing_sam3():
        _setup_tf32()
    assert state() == before
    _setup_tf32()  # without the engine's context
    spoiled += state() != before
print(spoiled / len(orders))
"""
)
FIRST_RUN = """
from pathlib import Path
import numpy as np
import torch
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import GeometricPrompt
predictor = Predictor(load_model(Path(CHECKPOINT), torch.device("cpu")))
embedding = predictor.encode_image(np.zeros((20, 30, 3), np.uint8))
predictor.segment(embedding, GeometricPrompt(boxes=((1, 2, 20, 15),)))
"""


@pytest.mark.parametrize(
    "then",
    [
        "import sam3_engine.predictor",
        BESIDE_TF32,
        IMPORT_ON_AMPERE.replace("INITIALIZED", "False"),
        IMPORT_ON_AMPERE.replace("INITIALIZED", "True"),
        FIRST_RUN,
    ],
    ids=["import", "import with TF32", "import on an Ampere GPU", "import on an Ampere GPU in use", "first run"],
)
def test_a_fresh_process_keeps_its_state_and_prints_nothing(small_checkpoint, then):
    assert said_by_fresh_process(then, small_checkpoint) == ""


def test_importing_sam3_on_an_ampere_gpu_keeps_tf32_switches_set_in_any_order():
    code = ALL_ORDERS.replace("INITIALIZED", "False").replace("TESTS", repr(str(REPOSITORY / "tests")))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.5  # of the orders, sam3 alone changes something


WORKFLOW = """
import gc
import numpy as np
image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
plugin = Plugin(model_weight_file=CHECKPOINT, cuda=False)
plugin.load()
plugin.segment(image, input_text=["shoe", "hat"], confidence_threshold=0.3, instance_output=True)
plugin.segment(image, input_box=[[5, 5, 40, 50], [1, 1, 20, 20]])
plugin.segment(image, input_point=[[5, 5]], multimask_output=True)
try:
    plugin.segment(image, input_point=[[-1, 5]])
    raise SystemExit("not refused")
except RuntimeError:
    pass
del plugin
gc.collect()
"""


def test_a_workflow_changes_nothing_in_the_process_and_prints_nothing(small_checkpoint):
    ikomia_comes_first = (
        "from testbed.plugin import Plugin, register_checkout\nregister_checkout()\nbefore = snapshot()\n"
    )
    said = said_by_fresh_process(ikomia_comes_first + WORKFLOW, small_checkpoint)
    ikomias_own = re.compile(r"Workflow Untitled run successfully in [\d.]+ ms\.")
    assert [line for line in said.splitlines() if not ikomias_own.fullmatch(line)] == []
    assert len(ikomias_own.findall(said)) == 3


def test_building_models_in_two_threads_keeps_the_warning_filters(small_checkpoint, tmp_path):
    copy = tmp_path / "copy.pt"
    copy.write_bytes(small_checkpoint.read_bytes())
    before = list(warnings.filters)

    def build(checkpoint):
        model = load_model(checkpoint, CPU)
        for side in (112, 168, 196, 224, 280):
            model.network_at(side)

    for _ in range(3):
        threads = [threading.Thread(target=build, args=(checkpoint,)) for checkpoint in (small_checkpoint, copy)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert list(warnings.filters) == before


def test_loading_a_model_does_not_repeat_random_numbers_in_other_threads(small_checkpoint):
    drawn, stop = [], threading.Event()

    def draw():
        while not stop.wait(0.001):
            drawn.append(torch.randint(2**62, (1,)).item())

    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(3):
        load_model(small_checkpoint, CPU).network_at(168)
    stop.set()
    thread.join(10)
    assert len(drawn) > 20
    assert len(set(drawn)) == len(drawn)


def test_a_model_loaded_in_inference_mode_works_outside_it(small_checkpoint, photograph):
    with torch.inference_mode():
        model = load_model(small_checkpoint, CPU)
    box = GeometricPrompt(boxes=((60, 80, 300, 330),))
    reference = load_model(small_checkpoint, CPU)
    for size in (168, 0):
        found, wanted = (
            predictor.segment(predictor.encode_image(photograph), box)[0].mask
            for predictor in (Predictor(model, size), Predictor(reference, size))
        )
        assert np.array_equal(found, wanted)
