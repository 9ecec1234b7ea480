"""This checkout of the plugin at work in an Ikomia workflow, as its users have it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ikomia.dataprocess.registry import ik_registry
from ikomia.dataprocess.workflow import Workflow

REPOSITORY = Path(__file__).resolve().parent.parent
PLUGIN = "infer_segment_anything_3"

_NO_PROMPT = {"input_text": "", "input_box": "", "input_point": "", "input_point_label": "", "multimask_output": False}


class Plugin:
    """A workflow with the plugin as its only task.

    Attributes:
        algorithm: the task, with the outputs of the last run.
    """

    def __init__(self, **parameters: Any) -> None:
        """With values for some of the plugin's parameters, which stay set."""
        plugins = Path(tempfile.mkdtemp(prefix="ikomia_plugins_"))
        (plugins / "Python").mkdir()
        (plugins / "Python" / PLUGIN).symlink_to(REPOSITORY, target_is_directory=True)
        ik_registry.set_plugins_directory(f"{plugins}/")
        self._workflow = Workflow()
        self.algorithm = self._workflow.add_task(name=PLUGIN, auto_connect=True)
        self._workflow.set_parameters(parameters, task_obj=self.algorithm)

    def segment(self, image: np.ndarray, **prompt: Any) -> list[Any]:
        """Run the workflow.

        Args:
            image: (H, W, 3) uint8 RGB.
            prompt: values of the parameters that make a prompt; those left out are empty.

        Returns:
            The mask outputs, ``CSemanticSegmentationIO``. They are valid until the next run.

        Raises:
            RuntimeError: the plugin's own error.
        """
        self._workflow.set_parameters({**_NO_PROMPT, **prompt}, task_obj=self.algorithm)
        self._workflow.run_on(array=image)
        return self.algorithm.get_outputs()[1:]
