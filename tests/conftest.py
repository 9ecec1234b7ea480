"""What the tests share: small and full-size networks of random weights, the plugin in a real registry, a photograph."""

import importlib
import shutil
import subprocess
from pathlib import Path

import ikomia.utils.http
import numpy as np
import pytest
from ikomia.dataprocess.workflow import Workflow
from PIL import Image
from sklearn.datasets import load_sample_image

from sam3_engine.random_weights import SMALL, write_random_checkpoint
from testbed.plugin import PLUGIN, REPOSITORY, register_checkout
from testbed.random_weights import full_size_checkpoint


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """A network of small sizes. Its seed is one whose masks are neither full nor empty, so that they can disagree."""
    path = tmp_path_factory.mktemp("weights") / "small_random.pt"
    write_random_checkpoint(path, SMALL, seed=47)
    return path


@pytest.fixture(scope="session")
def full_checkpoint() -> Path:
    """A network of SAM 3's own sizes."""
    return full_size_checkpoint()


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """(427, 640, 3) uint8 RGB."""
    return load_sample_image("china.jpg")


@pytest.fixture(scope="session")
def plugins_directory() -> Path:
    """A folder of plugins that holds this checkout, as a link, and that Ikomia's registry looks in."""
    return Path(register_checkout().name)


@pytest.fixture
def workflow(plugins_directory) -> Workflow:
    """A workflow with the plugin as its only task, with default parameters."""
    made = Workflow()
    made.add_task(name=PLUGIN, auto_connect=True)
    return made


@pytest.fixture
def algorithm(workflow, small_checkpoint):
    """The plugin in ``workflow``, on the small network and the CPU."""
    task = workflow.find_task(PLUGIN)
    task = task[0] if isinstance(task, list) else task
    workflow.set_parameters({"model_weight_file": small_checkpoint, "cuda": False}, task_obj=task)
    return task


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    """The trained small network of the demo, which knows colored shapes."""
    return REPOSITORY / "demo" / "sam3_shapes.pt"


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """The zip for the Ikomia HUB, made from this checkout with its uncommitted changes."""
    git = ["git", "-C", str(REPOSITORY), "-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    changed = subprocess.run([*git, "stash", "create"], capture_output=True, text=True, check=True).stdout.strip()
    path = tmp_path_factory.mktemp("package") / f"{PLUGIN}.zip"
    subprocess.run([*git, "archive", f"--output={path}", changed or "HEAD"], check=True)
    return path


@pytest.fixture(scope="session")
def truck(tmp_path_factory) -> Path:
    """A photograph of 1800 x 1200 pixels, the size of the truck that the examples' coordinates are for."""
    path = tmp_path_factory.mktemp("photographs") / "truck.jpg"
    Image.fromarray(load_sample_image("flower.jpg")).resize((1800, 1200)).save(path)
    return path


@pytest.fixture
def readers_machine(truck, small_checkpoint, plugins_directory, tmp_path, monkeypatch) -> Path:
    """Set up a machine as the docs assume it: the plugin, weights in the Hugging Face cache, downloads, a screen.

    Returns:
        The current folder: it has the parts of a checkout that the docs name, a photograph and a checkpoint.
    """
    monkeypatch.setattr(ikomia.utils.http, "download_file", lambda url, path, *_: shutil.copy(truck, path))

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--facebook--sam3"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copy(small_checkpoint, repository / "snapshots" / commit / "sam3.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    importlib.import_module("ikomia.utils.displayIO")  # chooses a backend with windows, if pyplot is not loaded yet
    importlib.import_module("matplotlib.pyplot").switch_backend("Agg")

    folder = tmp_path / "checkout"
    (folder / "demo").mkdir(parents=True)
    shutil.copy(REPOSITORY / "demo" / "sam3_shapes.pt", folder / "demo")
    shutil.copytree(REPOSITORY / "images", folder / "images")
    shutil.copy(truck, folder)
    shutil.copy(small_checkpoint, folder / "sam3.pt")
    monkeypatch.chdir(folder)
    return folder
