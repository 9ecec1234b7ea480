"""This checkout of the plugin in an Ikomia workflow, as users run it."""

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
    "points_per_side": 0,
    "multimask_output": False,
    "mask_output": "instances",
    "instance_output": False,
}


class Plugin:
    """A workflow with the plugin as its only task.

    Attributes:
        algorithm: the task, with the outputs of the last run.
    """

    def __init__(self, **parameters: Any) -> None:
        """Set some of the plugin's parameters, for all runs.

        Raises:
            RuntimeError: the plugin rejects a value.
        """
        register_checkout()
        self._workflow = Workflow()
        self.algorithm = self._workflow.add_task(name=PLUGIN, auto_connect=True)
        self._set(parameters)

    def load(self) -> None:
        """Load the network before the first run.

        Raises:
            ValueError, RuntimeError: the plugin's own error.
        """
        self.algorithm.init_long_process()

    def segment(self, image: np.ndarray, **prompt: Any) -> list[Any]:
        """Run the workflow.

        Args:
            image: (H, W, 3) uint8 RGB.
            prompt: values of the parameters of the prompt and of the outputs; the others have their defaults.

        Returns:
            The outputs after the image: ``CSemanticSegmentationIO`` and, on request, ``CInstanceSegmentationIO``. The
            next run overwrites them.

        Raises:
            RuntimeError: the plugin's own error.
        """
        self._set({**_NO_PROMPT, **prompt})
        with _plain_errors():
            self._workflow.run_on(array=image)
        return self.algorithm.get_outputs()[1:]

    def forget_answers(self, image: np.ndarray) -> None:
        """Clear the cached answers about an image, but keep its embedding."""
        self.algorithm._predictor.encode_image(image).detections.clear()

    def _set(self, parameters: dict[str, Any]) -> None:
        with _plain_errors():
            self._workflow.set_parameters(parameters, task_obj=self.algorithm)


def masks_of(output: Any) -> Iterator[np.ndarray]:
    """Yield the mask (H, W) bool of each object that a mask output numbers."""
    numbers = output.get_mask()
    return (numbers == number for number in range(1, len(output.get_class_names())))


@functools.cache
def register_checkout() -> tempfile.TemporaryDirectory[str]:
    """Make Ikomia load the plugin from this checkout, for the rest of the process.

    Returns:
        The folder of plugins that Ikomia searches, with a link to the checkout in its folder ``Python``. It is deleted
        when the process ends.
    """
    plugins = tempfile.TemporaryDirectory(prefix="ikomia_plugins_", ignore_cleanup_errors=True)
    folder = Path(plugins.name)
    (folder / "Python").mkdir()
    link = folder / "Python" / PLUGIN
    if sys.platform == "win32":  # symbolic links need rights that few users have there
        import _winapi

        _winapi.CreateJunction(str(REPOSITORY), str(link))
    else:
        link.symlink_to(REPOSITORY, target_is_directory=True)
    ik_registry.set_plugins_directory(f"{folder}/")
    return plugins


@contextlib.contextmanager
def log_levels(**levels: int) -> Iterator[None]:
    """Set the levels of loggers, by name, inside a ``with`` block."""
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
    """Reduce Ikomia's errors, which add the class and the traceback of the original error, to their message."""
    try:
        yield
    except RuntimeError as error:
        wrapped = re.match(r"""<class '[^']+'>: (.*?):   File \"""", str(error), re.DOTALL)
        raise RuntimeError(wrapped[1] if wrapped else str(error)) from error
