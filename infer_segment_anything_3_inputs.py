"""Checks that the images of a folder run reach the task."""

from __future__ import annotations

import logging
import weakref

from ikomia import core, dataprocess

from .sam3_engine.errors import quote

logger = logging.getLogger(__name__)

_ADVICE = "For each folder, use a new Workflow, or call clear_inputs() on this one before run_on(folder=...)."
_SET_IN_A_RUN = 2  # times that Ikomia sets the input again in a run that was given no new input


class InputCheck:
    """Notices folder runs in which the task gets a wrong input.

    Ikomia adds each folder to the inputs that the workflow already has. The task stays connected to the first input,
    which is then the image of an earlier run, or an earlier folder.
    """

    def __init__(self) -> None:
        self._times_set = 0
        self._last: weakref.ref[core.CWorkflowTaskIO] | None = None
        self._last_folder = ""

    def input_set(self) -> None:
        """Note that Ikomia set an input of the task, not necessarily to another one."""
        self._times_set += 1

    def check(self, task: dataprocess.C2dImageTask) -> None:
        """Check the first input, once in each run.

        Raises:
            ValueError: it is a folder; or it is the image of the last run, although the workflow got a new input, and
                both runs are part of one folder run.
        """
        given, folder = task.get_input(0), task.output_folder
        is_last = self._last is not None and self._last() is given
        is_same_run = folder == self._last_folder  # it is named after the run's start
        got_new_input = self._times_set > _SET_IN_A_RUN
        self._last, self._last_folder, self._times_set = weakref.ref(given), folder, 0

        if isinstance(given, dataprocess.CPathIO):
            path = quote(given.get_path(), limit=1000)
            raise ValueError(f"The first input is the folder {path} instead of an image. {_ADVICE}")
        is_saved = task.get_output(1).auto_save and not isinstance(given, dataprocess.CVideoIO)
        if is_last and got_new_input and is_saved:
            image = quote(given.source_file_path, limit=1000) if given.source_file_path else "an array"
            message = f"The first input is still the image of the last run, {image}. {_ADVICE}"
            if is_same_run:
                raise ValueError(message)
            logger.warning(message)
