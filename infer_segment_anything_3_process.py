"""The algorithm as Ikomia sees it: parameters, inputs, a run. :mod:`.sam3_engine` does the segmentation."""

from __future__ import annotations

import copy
import logging
import numbers
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ikomia import core, dataprocess

from .infer_segment_anything_3_graphics import read_drawing
from .infer_segment_anything_3_outputs import SegmentOutputs
from .infer_segment_anything_3_workflows import OwnWorkflow
from .sam3_engine import __version__
from .sam3_engine.arrays import to_plain
from .sam3_engine.devices import choose_device
from .sam3_engine.errors import quote
from .sam3_engine.prompts import GeometricPrompt
from .sam3_engine.settings import Settings

if TYPE_CHECKING:
    import torch

    from .sam3_engine import Predictor

logger = logging.getLogger(__name__)

_WEIGHTS_FOLDER = Path(__file__).resolve().parent / "weights"


class InferSegmentAnything3Param(core.CWorkflowTaskParam):
    """The parameters; :class:`~.sam3_engine.settings.Settings` describes each one."""

    def __init__(self) -> None:
        core.CWorkflowTaskParam.__init__(self)
        self.settings = Settings()
        self._task: weakref.ref[InferSegmentAnything3] | None = None

    def belong_to(self, task: InferSegmentAnything3) -> None:
        """Tell a task when the parameters change."""
        self._task = weakref.ref(task)

    def set_values(self, params: Mapping[str, str]) -> None:
        """Set the parameters in ``params`` (names to strings).

        Raises:
            ValueError: a value is not what its parameter expects; no parameter is changed.
        """
        self.settings = self.settings.updated(params)
        if self._task and (task := self._task()):
            task.adapt_outputs()

    def get_values(self) -> dict[str, str]:
        """Return all parameters, names to strings."""
        return self.settings.to_strings()


class InferSegmentAnything3ParamFactory(dataprocess.CTaskParamFactory):
    """Creates parameters."""

    def __init__(self) -> None:
        dataprocess.CTaskParamFactory.__init__(self)
        self.name = "infer_segment_anything_3"

    def create(self) -> InferSegmentAnything3Param:
        """Return parameters with their defaults."""
        return InferSegmentAnything3Param()


class _StopRequestedError(Exception):
    """Ikomia asked the running task to stop."""


class InferSegmentAnything3(dataprocess.CSemanticSegmentationTask):
    """Segments the input image by text, points or boxes, or everything in it.

    Inputs: the image; graphics drawn on it. Outputs: the image, one ``CSemanticSegmentationIO`` per mask and, on
    request, a ``CInstanceSegmentationIO`` with the objects.
    """

    def __init__(self, name: str, param: InferSegmentAnything3Param | None) -> None:
        dataprocess.CSemanticSegmentationTask.__init__(self, name)
        self._cuda: bool | None = None
        self._device: torch.device | None = None
        self._predictor: Predictor | None = None
        self._workflow = OwnWorkflow(self)
        self._outputs = SegmentOutputs(self, self._workflow)
        self._drawn_masks = 1
        self._is_running = self._stop_requested = False
        self.set_param_object(InferSegmentAnything3Param() if param is None else copy.deepcopy(param))

    def set_param_object(self, param: InferSegmentAnything3Param) -> None:
        """Use other parameters; Ikomia also calls this when it loads a workflow."""
        super().set_param_object(param)
        param.belong_to(self)
        self.adapt_outputs()

    def set_parameters(self, params: Mapping[str, Any]) -> None:
        """Change some parameters.

        Args:
            params: names to values. None is the empty string; numbers, booleans, paths, lists, tuples and dicts are
                converted with ``str()``, and arrays and tensors, also those in lists, with ``tolist()`` first.

        Raises:
            ValueError: a value is not what its parameter expects; no parameter is changed.
        """
        known = self.get_param_object().get_values()
        unknown = [str(name) for name in params if name not in known]
        if unknown:
            logger.warning(
                "Unknown parameters are ignored: %s. Known parameters: %s.", ", ".join(unknown), ", ".join(known)
            )
        super().set_parameters({name: _to_string(name, params[name]) for name in params if name in known})

    def adapt_outputs(self) -> None:
        """Make the outputs exist that the parameters imply, see the table in ``docs/outputs.md``.

        The number of drawn boxes is known only in a run: without a typed prompt, the outputs of the last run stay.
        """
        settings = self.get_param_object().settings
        if not self._is_running:  # else the run does it
            self._outputs.arrange(settings.masks or self._drawn_masks, objects=settings.instance_output)

    def get_progress_steps(self) -> int:
        """Return the number of steps that a run reports: model, image, prompt; with tiles, one for each of them.

        To segment everything, there is a step for each row of points, too. Before there is an image, the number of
        tiles is unknown.
        """
        image = self.get_input(0).get_image() if self.get_input(0).is_data_available() else None
        height, width = (0, 0) if image is None else image.shape[:2]
        graphics = self.get_input(1)
        drawn = graphics is not None and graphics.is_data_available()
        return 2 + self.get_param_object().settings.count_steps(width, height, drawn=drawn)

    def init_long_process(self) -> None:
        """Download and load the model before the first run."""
        self._open_predictor(self.get_param_object().settings)
        super().init_long_process()

    def get_image_with_mask(self) -> np.ndarray:
        """Return (height, width, 3) uint8: output 0, tinted by the first mask."""
        return self.get_output(0).get_image_with_mask(self.get_output(1))  # Ikomia's own takes the input, of any kind

    def stop(self) -> None:
        """Ask a running task to end, from another thread.

        It ends before its next step: loading the model, encoding the image, a phrase, or a pass of boxes or points. Its
        outputs are then empty.
        """
        super().stop()
        self._stop_requested = True

    def run(self) -> None:
        """Segment the input image.

        Raises:
            ValueError: a prompt, the image or the checkpoint cannot be used; the message says why.
            RuntimeError: the weights are not available; the message says what to do.
        """
        self._stop_requested = False
        self._is_running = True
        self._outputs.start()
        super().init_long_process()  # else Ikomia calls ours, which loads a model even if there is no prompt
        self.begin_task_run()
        try:
            self._segment_input()
            self.end_task_run()
            self._outputs.finish()
        except _StopRequestedError:
            self._outputs.discard()
            self.end_task_run()
            logger.warning("Stopped before the end: the outputs are empty.")
        except BaseException:
            self._outputs.clear()  # no partial results
            raise
        finally:
            self._is_running = False
            self.adapt_outputs()

    def _segment_input(self) -> None:
        """Segment with the typed prompt, or with the drawn one if none is typed, and write the outputs."""
        self._workflow.check_inputs()
        self.forward_input_image(0, 0)
        settings = self.get_param_object().settings
        image = self.get_input(0).get_image()
        if image is None:
            raise ValueError("No image at the first input: it is not connected, or the file cannot be read.")
        height, width = image.shape[:2]
        graphics = self.get_input(1)
        drawn = graphics is not None and graphics.is_data_available()
        chosen = settings.prompt(read_drawing(graphics, width, height) if drawn else None)
        if chosen is None:
            logger.warning(
                "Nothing to segment: set input_text, input_box or input_point, draw on the image, or set "
                "points_per_side to segment everything."
            )
            unused = settings.prompt_strings.labels_without_use()
            self._drawn_masks = 1
            self._outputs.write(None, [], width, height, objects=settings.instance_output, unused=unused)
            for _ in range(self.get_progress_steps()):
                self.emit_step_progress()
            return
        fitted, options = chosen.fit(width, height), settings.options  # before the slow part
        self._end_if_requested()
        predictor = self._open_predictor(settings)
        self.emit_step_progress()
        with settings.naming_weights(), chosen.naming_arguments():
            segments = predictor.predict(
                image,
                fitted,
                options,
                on_encoded=self.emit_step_progress,
                on_step=self._end_if_requested,
                on_row=self.emit_step_progress,
            )
        self._end_if_requested()
        self._drawn_masks = len(segments) if chosen.drawn and isinstance(fitted.prompt, GeometricPrompt) else 1
        self._outputs.write(
            fitted.prompt,
            segments,
            width,
            height,
            classes=settings.classes(fitted.prompt),
            objects=settings.instance_output,
            unused=chosen.unused,
        )
        self.emit_step_progress()

    def _end_if_requested(self) -> None:
        if self._stop_requested:
            raise _StopRequestedError

    def _open_predictor(self, settings: Settings) -> Predictor:
        """Return the predictor for the parameters; loads a model only if the weights or the device changed."""
        if settings.cuda != self._cuda:  # in each run, it would warn again and follow the calling thread's device
            self._device, self._cuda = choose_device(settings.cuda), settings.cuda
        self._predictor = settings.open_predictor(_WEIGHTS_FOLDER, self._device, replaces=self._predictor)
        return self._predictor


def _to_string(name: str, value: object) -> str:
    """Return a parameter's value as a string."""
    if value is None:
        return ""
    if isinstance(value, str | numbers.Number | np.bool_ | os.PathLike):
        return str(value)
    plain = to_plain(value)  # str() shortens arrays of more than 1,000 numbers
    if isinstance(plain, str | numbers.Number | list | tuple | dict):
        return str(plain)
    raise ValueError(f"{name} = {quote(value)}: expected a string, not {type(value).__name__}.")


class InferSegmentAnything3Factory(dataprocess.CTaskFactory):
    """Creates the algorithm and describes it."""

    def __init__(self) -> None:
        dataprocess.CTaskFactory.__init__(self)
        self.info.name = "infer_segment_anything_3"
        self.info.short_description = (
            "Segment Anything Model 3: segment images by text, example boxes, points or boxes, or everything in them."
        )
        self.info.description = (
            "Inference for the Segment Anything Model 3 (SAM 3). Text prompts such as 'shoe', or example boxes, find "
            "every instance of a concept; points and boxes segment one object, or one per box; a grid of points finds "
            "everything. The weights are gated: request access at https://huggingface.co/facebook/sam3 and log in with "
            "`hf auth login`."
        )
        self.info.path = "Plugins/Python/Segmentation"
        self.info.version = __version__
        self.info.icon_path = "icons/icon.png"
        self.info.authors = "Meta AI Research"
        self.info.article = "SAM 3: Segment Anything with Concepts"
        self.info.article_url = "https://arxiv.org/abs/2511.16719"
        self.info.journal = "arXiv"
        self.info.year = 2025
        self.info.license = "Apache-2.0 (plugin); SAM License (sam3 package and weights)"
        self.info.min_ikomia_version = "0.16.0"
        self.info.min_python_version = "3.11.0"
        self.info.documentation_link = "https://ai.meta.com/sam3"
        self.info.repository = "https://github.com/Ikomia-hub/infer_segment_anything_3"
        self.info.original_repository = "https://github.com/facebookresearch/sam3"
        self.info.keywords = (
            "SAM 3, segment anything, promptable, concept, text, exemplar, point, box, automatic mask, zero-shot, Meta"
        )
        self.info.algo_type = core.AlgoType.INFER
        self.info.algo_tasks = "SEMANTIC_SEGMENTATION"
        self.info.hardware_config.min_cpu = 4
        self.info.hardware_config.min_ram = 16
        self.info.hardware_config.gpu_required = False
        self.info.hardware_config.min_vram = 6

    def create(self, param: InferSegmentAnything3Param | None = None) -> InferSegmentAnything3:
        """Return the algorithm, with ``param`` or with default parameters."""
        return InferSegmentAnything3(self.info.name, param)
