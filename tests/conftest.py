"""Shared fixtures: small and full-size networks with random weights, the plugin in a real registry, a photograph."""

import importlib
import shutil
import subprocess
from pathlib import Path

import hypothesis
import ikomia.utils.http
import numpy as np
import pytest
from ikomia.dataprocess.workflow import Workflow
from PIL import Image
from sklearn.datasets import load_sample_image

from sam3_engine.random_weights import SMALL, write_random_checkpoint
from testbed.plugin import PLUGIN, REPOSITORY, register_checkout
from testbed.random_weights import full_size_checkpoint
from tests.support import emulated_cuda as emulation

hypothesis.settings.register_profile("default", deadline=None)  # a busy machine may take long for any example


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """Write a small network. Its seed gives masks that are neither full nor empty, so that wrong masks differ."""
    path = tmp_path_factory.mktemp("weights") / "small_random.pt"
    write_random_checkpoint(path, SMALL, seed=47)
    return path


@pytest.fixture(scope="session")
def full_checkpoint() -> Path:
    """Write a network of SAM 3's own sizes."""
    return full_size_checkpoint()


@pytest.fixture
def emulated_cuda():
    """Emulate two CUDA devices during a test."""
    if reason := emulation.unavailable():
        pytest.skip(f"CUDA cannot be emulated: {reason}")
    with emulation.EmulatedCuda() as cuda:
        yield cuda


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """Return a (427, 640, 3) uint8 RGB photograph."""
    return load_sample_image("china.jpg")


@pytest.fixture(scope="session")
def plugins_directory() -> Path:
    """Create a plugins folder with a link to this checkout, and register it with Ikomia."""
    return Path(register_checkout().name)


@pytest.fixture
def workflow(plugins_directory) -> Workflow:
    """Return a workflow whose only task is the plugin, with default parameters."""
    made = Workflow()
    made.add_task(name=PLUGIN, auto_connect=True)
    return made


@pytest.fixture
def algorithm(workflow, small_checkpoint):
    """Return the plugin in ``workflow``, on the small network and the CPU."""
    task = workflow.find_task(PLUGIN)
    task = task[0] if isinstance(task, list) else task
    workflow.set_parameters({"model_weight_file": small_checkpoint, "cuda": False}, task_obj=task)
    return task


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    """Return the demo's small network, which is trained on colored shapes."""
    return REPOSITORY / "demo" / "sam3_shapes.pt"


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """Build the zip for the Ikomia HUB from this checkout, including uncommitted changes."""
    git = ["git", "-C", str(REPOSITORY), "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    changed = subprocess.run([*git, "stash", "create"], capture_output=True, text=True, check=True).stdout.strip()
    path = tmp_path_factory.mktemp("package") / f"{PLUGIN}.zip"
    subprocess.run([*git, "archive", f"--output={path}", changed or "HEAD"], check=True)
    return path


@pytest.fixture(scope="session")
def truck(tmp_path_factory) -> Path:
    """Write an 1800 x 1200 photograph, the size of the truck image that the examples use."""
    path = tmp_path_factory.mktemp("photographs") / "truck.jpg"
    Image.fromarray(load_sample_image("flower.jpg")).resize((1800, 1200)).save(path)
    return path


@pytest.fixture
def readers_machine(truck, small_checkpoint, plugins_directory, tmp_path, monkeypatch) -> Path:
    """Set up a machine as the docs assume: the plugin, weights in the Hugging Face cache, downloads, a display.

    Returns:
        The current folder, with the parts of a checkout that the docs mention, a photograph and a checkpoint.
    """
    monkeypatch.setattr(ikomia.utils.http, "download_file", lambda url, path, *_: shutil.copy(truck, path))

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--facebook--sam3"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copy(small_checkpoint, repository / "snapshots" / commit / "sam3.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    importlib.import_module("ikomia.utils.displayIO")  # selects a GUI backend if pyplot is not loaded yet
    importlib.import_module("matplotlib.pyplot").switch_backend("Agg")

    folder = tmp_path / "checkout"
    (folder / "demo").mkdir(parents=True)
    shutil.copy(REPOSITORY / "demo" / "sam3_shapes.pt", folder / "demo")
    shutil.copytree(REPOSITORY / "images", folder / "images")
    shutil.copy(truck, folder)
    shutil.copy(small_checkpoint, folder / "sam3.pt")
    monkeypatch.chdir(folder)
    return folder
