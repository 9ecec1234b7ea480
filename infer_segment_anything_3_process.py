"""The algorithm as Ikomia sees it: parameters, inputs, a run. What SAM 3 does is in :mod:`.sam3_engine`."""

import contextlib
import copy
import logging
import numbers
import os
from pathlib import Path

import numpy as np
from ikomia import core, dataprocess

from .infer_segment_anything_3_outputs import SegmentOutputs
from .sam3_engine.parsing import quote
from .sam3_engine.prompts import drawn_prompt
from .sam3_engine.settings import Settings
from .sam3_engine.weights import find_checkpoint

logger = logging.getLogger(__name__)


class InferSegmentAnything3Param(core.CWorkflowTaskParam):
    """The parameters; :class:`~.sam3_engine.settings.Settings` says what each one means."""

    def __init__(self):
        core.CWorkflowTaskParam.__init__(self)
        self.settings = Settings()

    def set_values(self, params):
        """Take over those parameters that ``params`` (names to strings) holds.

        Raises:
            ValueError: one of them is not what its parameter expects; then none is taken over.
        """
        self.settings = self.settings.updated(params)

    def get_values(self):
        """All parameters, names to strings."""
        return self.settings.to_strings()


class InferSegmentAnything3ParamFactory(dataprocess.CTaskParamFactory):
    """Creates parameters."""

    def __init__(self):
        dataprocess.CTaskParamFactory.__init__(self)
        self.name = "infer_segment_anything_3"

    def create(self):
        """New parameters with their defaults."""
        return InferSegmentAnything3Param()


def _as_string(name, value):
    """A parameter's value as the string in which it travels."""
    if value is None:
        return ""
    if isinstance(value, str | numbers.Number | np.bool_ | np.ndarray | list | tuple | os.PathLike):
        return str(value)
    raise ValueError(f"{name} = {quote(value)}: expected a string, not {type(value).__name__}.")


@contextlib.contextmanager
def _parameter_named(settings):
    """Errors about a checkpoint begin with the parameter that names it, if it does."""
    from .sam3_engine.model import CheckpointError

    try:
        yield
    except CheckpointError as error:
        if settings.model_weight_file.strip():
            typed = quote(settings.model_weight_file.strip(), limit=1000)
            raise ValueError(f"model_weight_file = {typed}: {error}") from error
        raise


class InferSegmentAnything3(dataprocess.CSemanticSegmentationTask):
    """Segments the input image by text, points or boxes.

    Inputs: the image; graphics drawn on it. Outputs: the image, then one ``CSemanticSegmentationIO`` per mask, then if
    asked for a ``CInstanceSegmentationIO`` with the objects.
    """

    def __init__(self, name, param):
        dataprocess.CSemanticSegmentationTask.__init__(self, name)
        self.set_param_object(InferSegmentAnything3Param() if param is None else copy.deepcopy(param))
        self._weights_folder = Path(__file__).resolve().parent / "weights"
        self._cuda_wanted = None
        self._device = None
        self._model = None
        self._model_identity = None
        self._predictor = None
        self._outputs = SegmentOutputs(self)

    def set_parameters(self, params):
        """Change some parameters.

        Args:
            params: names to values; None is the empty string; numbers, booleans, paths, lists, tuples and arrays are
                taken as ``str()`` writes them.

        Raises:
            ValueError: a value is not what its parameter expects; then nothing is changed.
        """
        known = self.get_param_object().get_values()
        unknown = [name for name in params if name not in known]
        if unknown:
            logger.warning(
                "There is no parameter %s: it is ignored. There are: %s.",
                ", ".join(map(str, unknown)),
                ", ".join(known),
            )
        super().set_parameters({name: _as_string(name, params[name]) for name in params if name in known})

    def get_progress_steps(self):
        """Steps that a run reports: model, image, prompt."""
        return 3

    def init_long_process(self):
        """Download and load the model ahead of the first run."""
        settings = self.get_param_object().settings
        with _parameter_named(settings):
            self._open_predictor(settings)
        super().init_long_process()

    def run(self):
        """Segment the input image.

        Raises:
            ValueError: a prompt, the image or the checkpoint cannot be used; the message says why.
            RuntimeError: the weights cannot be had; the message says what to do.
        """
        self._outputs.clear()
        super().init_long_process()  # else the framework calls ours, and a run without a prompt needs no model
        self.begin_task_run()
        try:
            self._segment_input()
            self.end_task_run()
            self._outputs.save_further_masks()
        except BaseException:
            self._outputs.clear()  # no half a result
            raise

    def _segment_input(self):
        """Fill the outputs with what the parameters, or else the drawn graphics, ask for."""
        self.forward_input_image(0, 0)
        settings = self.get_param_object().settings
        image = self.get_input(0).get_image()
        if image is None:
            raise ValueError("No image at the first input: nothing is connected to it, or the file cannot be read.")
        height, width = image.shape[:2]
        prompt = settings.prompt(self._drawn_prompt())

        if prompt is None:
            logger.warning("Nothing to segment: set input_text, input_box or input_point, or draw on the image.")
            self._outputs.write(None, [], width, height, objects=settings.instance_output)
            for _ in range(self.get_progress_steps()):
                self.emit_step_progress()
        else:
            inside = prompt.clipped(width, height)  # a bad prompt fails before the slow part
            with _parameter_named(settings):
                self._segment(image, inside, settings)

    def _segment(self, image, prompt, settings):
        """Run the model and fill the mask outputs, one progress step after each part."""
        predictor = self._open_predictor(settings)
        self.emit_step_progress()
        embedding = predictor.encode_image(image, settings.input_size_percent)
        self.emit_step_progress()
        segments = predictor.segment(
            embedding,
            prompt,
            confidence_threshold=settings.confidence_threshold,
            iou_threshold=settings.iou_threshold,
            multimask=settings.multimask_output,
        )
        self._outputs.write(prompt, segments, embedding.width, embedding.height, objects=settings.instance_output)
        self.emit_step_progress()

    def _open_predictor(self, settings):
        """The predictor that the settings ask for; the model is loaded only if the checkpoint or the device changed."""
        from .sam3_engine.model import model_identity, shared_model
        from .sam3_engine.predictor import Predictor
        from .sam3_engine.runtime import choose_device

        if settings.cuda != self._cuda_wanted:
            self._device = choose_device(settings.cuda)
            self._cuda_wanted = settings.cuda
        checkpoint = find_checkpoint(settings.model_weight_file, self._weights_folder)
        identity = model_identity(checkpoint, self._device)
        if identity != self._model_identity:
            self._predictor = self._model = self._model_identity = None  # frees its memory, which the next one may need
            self._model = shared_model(checkpoint, self._device)
            self._model_identity = identity
        if self._predictor is None or self._predictor.input_size != settings.model_input_size:
            self._predictor = Predictor(self._model, settings.model_input_size)
        return self._predictor

    def _drawn_prompt(self):
        """The prompt that the graphics on the second input stand for, None if there are none of use."""
        graphics = self.get_input(1)
        if graphics is None or not graphics.is_data_available():
            return None
        rectangles, points = [], []
        for item in graphics.get_items():
            if item.get_type() == core.GraphicsItem.RECTANGLE:
                left, right = sorted((item.x, item.x + item.width))
                top, bottom = sorted((item.y, item.y + item.height))
                rectangles.append((left, top, right, bottom))
            elif item.get_type() == core.GraphicsItem.POINT:
                points.append((item.point.x, item.point.y))
        return drawn_prompt(rectangles, points) or None


class InferSegmentAnything3Factory(dataprocess.CTaskFactory):
    """Creates the algorithm, and says what it is."""

    def __init__(self):
        dataprocess.CTaskFactory.__init__(self)
        self.info.name = "infer_segment_anything_3"
        self.info.short_description = (
            "Segment Anything Model 3: masks of what texts, examples, points or boxes ask for."
        )
        self.info.description = (
            "Inference for the Segment Anything Model 3 (SAM 3). Text prompts such as 'shoe', or example boxes, find "
            "every instance of a concept; points and boxes outline one object, or one per box. The weights are gated: "
            "request access at https://huggingface.co/facebook/sam3 and log in with `hf auth login`."
        )
        self.info.path = "Plugins/Python/Segmentation"
        self.info.version = "1.0.0"
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
        self.info.keywords = "SAM 3, segment anything, promptable, concept, text, exemplar, point, box, zero-shot, Meta"
        self.info.algo_type = core.AlgoType.INFER
        self.info.algo_tasks = "SEMANTIC_SEGMENTATION"
        self.info.hardware_config.min_cpu = 4
        self.info.hardware_config.min_ram = 16
        self.info.hardware_config.gpu_required = False
        self.info.hardware_config.min_vram = 6

    def create(self, param=None):
        """The algorithm, with ``param`` or with default parameters."""
        return InferSegmentAnything3(self.info.name, param)
