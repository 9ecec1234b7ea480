"""What the tests share: small and full-size networks of random weights, the plugin in a real registry, a photograph."""

from pathlib import Path

import numpy as np
import pytest
from ikomia.dataprocess.workflow import Workflow
from sklearn.datasets import load_sample_image

from testbed.plugin import PLUGIN, REPOSITORY, register_checkout
from testbed.random_weights import SMALL, full_size_checkpoint, write_random_checkpoint


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
    """The trained small network of the demo, which knows coloured shapes."""
    return REPOSITORY / "demo" / "sam3_shapes.pt"
