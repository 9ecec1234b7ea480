"""This checkout of the plugin at work in an Ikomia workflow, as its users have it."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ikomia.dataprocess.registry import ik_registry
from ikomia.dataprocess.workflow import Workflow

REPOSITORY = Path(__file__).resolve().parent.parent
PLUGIN = "infer_segment_anything_3"

_NO_PROMPT = {
    "input_text": "",
    "input_box": "",
    "input_box_label": "",
    "input_point": "",
    "input_point_label": "",
    "multimask_output": False,
    "instance_output": False,
}


class Plugin:
    """A workflow with the plugin as its only task.

    Attributes:
        algorithm: the task, with the outputs of the last run.
    """

    def __init__(self, **parameters: Any) -> None:
        """With values for some of the plugin's parameters, which stay set.

        Raises:
            RuntimeError: the plugin refuses a value.
        """
        register_checkout()
        self._workflow = Workflow()
        self.algorithm = self._workflow.add_task(name=PLUGIN, auto_connect=True)
        self._set(parameters)

    def load(self) -> None:
        """Load the network ahead of the first run.

        Raises:
            ValueError, RuntimeError: the plugin's own error.
        """
        self.algorithm.init_long_process()

    def segment(self, image: np.ndarray, **prompt: Any) -> list[Any]:
        """Run the workflow.

        Args:
            image: (H, W, 3) uint8 RGB.
            prompt: values of the parameters that make a prompt and say what comes out; those left out are empty, or
                False.

        Returns:
            The outputs behind the image: ``CSemanticSegmentationIO``, then if asked for ``CInstanceSegmentationIO``.
            They are valid until the next run.

        Raises:
            RuntimeError: the plugin's own error.
        """
        self._set({**_NO_PROMPT, **prompt})
        with _plain_errors():
            self._workflow.run_on(array=image)
        return self.algorithm.get_outputs()[1:]

    def forget_answers(self, image: np.ndarray) -> None:
        """Forget what the network answered about an image, but not what it made of it."""
        self.algorithm._predictor.encode_image(image).answers.clear()

    def _set(self, parameters: dict[str, Any]) -> None:
        with _plain_errors():
            self._workflow.set_parameters(parameters, task_obj=self.algorithm)


def masks_of(output: Any) -> Iterator[np.ndarray]:
    """The masks (H, W) bool of a mask output, one after the other, for each object that it numbers."""
    numbers = output.get_mask()
    return (numbers == number for number in range(1, len(output.get_class_names())))


@functools.cache
def register_checkout() -> tempfile.TemporaryDirectory[str]:
    """Make Ikomia take the plugin from this checkout, for the rest of the process.

    Returns:
        The folder of plugins that Ikomia looks in: the checkout is linked into its folder ``Python``. It goes with the
        process.
    """
    plugins = tempfile.TemporaryDirectory(prefix="ikomia_plugins_", ignore_cleanup_errors=True)
    folder = Path(plugins.name)
    (folder / "Python").mkdir()
    link = folder / "Python" / PLUGIN
    if sys.platform == "win32":  # where a symbolic link takes rights that few users have
        import _winapi

        _winapi.CreateJunction(str(REPOSITORY), str(link))
    else:
        link.symlink_to(REPOSITORY, target_is_directory=True)
    ik_registry.set_plugins_directory(f"{folder}/")
    return plugins


@contextlib.contextmanager
def log_levels(**levels: int) -> Iterator[None]:
    """Give loggers, by name, other levels for a while."""
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Ikomia puts a plugin's message between the error's class and its traceback: leave the message."""
    try:
        yield
    except RuntimeError as error:
        wrapped = re.match(r"""<class '[^']+'>: (.*?):   File \"""", str(error), re.DOTALL)
        raise RuntimeError(wrapped[1] if wrapped else str(error)) from error
