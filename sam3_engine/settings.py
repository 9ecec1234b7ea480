"""The parameters of the plugin and of sam3_batch, as typed values and as strings."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .devices import cuda_present
from .errors import CheckpointError, PromptError, WeightFileError, WeightsError, quote
from .options import CANDIDATES, LARGEST_OVERLAP, MAX_LABELS, SMALLEST_TILE, Options
from .prompt_strings import ChosenPrompt, Drawing, PromptStrings
from .prompts import MOST_POINTS_PER_SIDE, EverythingPrompt, GeometricPrompt, Prompt
from .tiling import count_tiles
from .weights import check_weights, without_quotes

if TYPE_CHECKING:
    import torch

    from .predictor import Predictor

logger = logging.getLogger(__name__)

INSTANCES, CLASSES = MASK_OUTPUTS = ("instances", "classes")  # classes: the phrases

_ANOTHER_PROMPT = "everything is segmented only if there is no other prompt"


@dataclass(frozen=True)
class Settings:
    """The plugin's parameters.

    Attributes:
        cuda: run on CUDA if it is available.
        input_size_percent: 1..100, shrink the image to this size before inference.
        confidence_threshold: 0..1, text and example boxes only; keep instances that score strictly above it.
        iou_threshold: 0..1, not for points and boxes; of two instances whose mask IoU exceeds it, keep the one with
            the higher score.
        max_detections: 0 or more, not for points and boxes; keep the instances with the highest scores, at most this
            many over all phrases. 0 keeps all.
        min_area_percent, max_area_percent: 0..100, not for points and boxes; share of the image that a mask covers.
            Drop instances whose mask covers less or more.
        min_region_percent: 0..100, share of a mask's area; drop connected parts of the mask that are smaller, and fill
            holes that are smaller.
        tile_size: side of square tiles in source pixels, at least 64. Text and example boxes are looked for, and
            everything is segmented, in each tile and in the whole image; points and boxes are segmented in a window of
            this size around them. 0 uses no tiles.
        tile_overlap: 0..0.9, not for points and boxes; the least share of a tile that it has in common with the next.
        points_per_side: 0..64; without any other prompt, segment everything, by a grid of this many points on each
            side. 0 does not.
        predicted_iou_threshold: 0..1, segment everything only; drop masks whose IoU the network estimates to be lower.
        stability_score_threshold: 0..1, segment everything only; drop masks with a lower stability score, see
            :class:`~.options.Options`.
        input_text, input_box, input_box_label, input_point, input_point_label: the prompt as typed, see
            :class:`~.prompt_strings.PromptStrings`.
        multimask_output: points and boxes only; return three candidate masks per object.
        mask_output: not for points and boxes; what the pixel values of the mask number, one of :data:`MASK_OUTPUTS`.
        instance_output: add an output with every segment as an object: label, score, box and mask.
        model_input_size: side of the network's square input in pixels, 112..2016; 0 for the checkpoint's own size.
        embedding_cache_folder: folder in which image embeddings are kept for other processes, see
            :class:`~.embedding_files.EmbeddingFiles`. Empty: none are.
        model_weight_file: path of a checkpoint, or its name on Hugging Face, such as ``facebook/sam3.1``; blank for the
            default weights, see :func:`~.weights.find_checkpoint`.
    """

    cuda: bool = field(default_factory=cuda_present)
    input_size_percent: int = 100
    confidence_threshold: float = 0.5
    iou_threshold: float = 1.0
    max_detections: int = 0
    min_area_percent: float = 0.0
    max_area_percent: float = 100.0
    min_region_percent: float = 0.0
    tile_size: int = 0
    tile_overlap: float = 0.2
    points_per_side: int = 0
    predicted_iou_threshold: float = 0.7
    stability_score_threshold: float = 0.9
    input_text: str = ""
    input_box: str = ""
    input_box_label: str = ""
    input_point: str = ""
    input_point_label: str = ""
    multimask_output: bool = False
    mask_output: str = INSTANCES
    instance_output: bool = False
    model_input_size: int = 0
    embedding_cache_folder: str = ""
    model_weight_file: str = ""

    def updated(self, strings: Mapping[str, str]) -> Settings:
        """Return a copy with the parameters in ``strings`` replaced; unknown names are ignored.

        Numbers and booleans are checked here; prompts are kept as typed and checked when :meth:`prompt` is called.

        Raises:
            ValueError: a value is not what its parameter expects.
        """
        return replace(self, **{name: read(name, strings[name]) for name, read in _READERS.items() if name in strings})

    def to_strings(self) -> dict[str, str]:
        """Return all parameters as strings, the inverse of :meth:`updated`."""
        return {name: str(value) for name, value in asdict(self).items()}

    @property
    def prompt_strings(self) -> PromptStrings:
        """The prompt parameters."""
        return PromptStrings(
            self.input_text, self.input_box, self.input_box_label, self.input_point, self.input_point_label
        )

    @property
    def masks(self) -> int | None:
        """The number of masks that a run gives, also if it finds nothing; None if that depends on a drawing."""
        objects = self.prompt_strings.count_objects()
        return None if objects is None else max(1, objects * (CANDIDATES if self.multimask_output else 1))

    def count_steps(self, width: int, height: int, *, drawn: bool = False) -> int:
        """Return how many steps of progress the predictor reports in a run, as far as that is known.

        These are the image, or with tiles each of them and the image; to segment everything, also each row of points.

        Args:
            width: of the image, in pixels.
            height: of the image, in pixels.
            drawn: whether there are drawn graphics.
        """
        objects = self.prompt_strings.count_objects()
        rows = self.points_per_side if objects is None and not drawn else 0
        if self.tile_size and self.tile_size < max(width, height) and (objects == 0 or rows):
            return (1 + rows) * count_tiles(width, height, self.tile_size, self.tile_overlap)
        return 1 + rows

    @property
    def options(self) -> Options:
        """What the engine needs besides the image and the prompt.

        Raises:
            ValueError: ``min_area_percent`` is above ``max_area_percent``. :meth:`updated` cannot check this, because
                the parameters may be set one after the other.
        """
        return Options(
            confidence_threshold=self.confidence_threshold,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
            min_area_percent=self.min_area_percent,
            max_area_percent=self.max_area_percent,
            multimask=self.multimask_output,
            size_percent=self.input_size_percent,
            min_region_percent=self.min_region_percent,
            tile_size=self.tile_size,
            tile_overlap=self.tile_overlap,
            predicted_iou_threshold=self.predicted_iou_threshold,
            stability_score_threshold=self.stability_score_threshold,
        )

    def errors(self) -> dict[str, str]:
        """Return the error of each parameter that a run would refuse, by name, to show before the run.

        Without the image, points and boxes outside it are not known. Names on Hugging Face are not looked up.
        """
        errors = self.prompt_strings.errors()
        checks = {"min_area_percent": lambda: self.options, "model_weight_file": self._check_weights}
        for name, check in checks.items():
            try:
                check()
            except ValueError as error:
                errors[name] = str(error)
        return errors

    def notes(self) -> dict[str, str]:
        """Return why parameters that are set do not take effect, by name, to show before the run."""
        notes = self.prompt_strings.notes()
        if self.points_per_side and self.prompt_strings.count_objects() is not None:
            notes["points_per_side"] = f"Ignored: {_ANOTHER_PROMPT}."
        return notes

    def _check_weights(self) -> None:
        with self.naming_weights():
            check_weights(self.model_weight_file)

    @contextlib.contextmanager
    def naming_weights(self) -> Iterator[None]:
        """Name the parameter ``model_weight_file`` in errors about the weights.

        Raises:
            ValueError: there is no such file, or it cannot be used.
            WeightsError: the weights are not on this machine and cannot be downloaded.
        """
        try:
            yield
        except WeightsError as error:
            raise WeightsError(error.reason, error.place, "model_weight_file", error.source) from error
        except WeightFileError as error:
            raise WeightFileError("model_weight_file", error.value, error.reason) from None
        except CheckpointError as error:
            if not self.model_weight_file.strip():
                raise
            typed = quote(self.model_weight_file.strip(), limit=1000)
            raise ValueError(f"model_weight_file = {typed}: {error}") from error

    def open_predictor(
        self, weights_folder: Path, device: torch.device | None = None, replaces: Predictor | None = None
    ) -> Predictor:
        """Open the predictor that the parameters describe, see :func:`~.predictor.open_predictor`."""
        from .predictor import open_predictor

        with self.naming_weights():
            return open_predictor(
                self.model_weight_file,
                cuda=self.cuda,
                device=device,
                input_size=self.model_input_size,
                weights_folder=weights_folder,
                embedding_cache_folder=without_quotes(self.embedding_cache_folder),
                replaces=replaces,
            )

    def prompt(self, drawing: Drawing | None = None) -> ChosenPrompt | None:
        """Return the prompt that takes effect, or None if there is nothing to segment.

        If there is no other prompt, see :meth:`~.prompt_strings.PromptStrings.choose`, and ``points_per_side`` is set,
        everything is segmented.

        Raises:
            PromptError: see there; or there are more phrases than ``mask_output`` can number.
        """
        chosen = self.prompt_strings.choose(drawing)
        if self.points_per_side and chosen is None:
            unused = self.prompt_strings.warn_of_labels(points=False)
            return ChosenPrompt(EverythingPrompt(self.points_per_side), unused=unused)
        if self.points_per_side and chosen is not None:
            logger.warning("points_per_side = %d: ignored, because %s.", self.points_per_side, _ANOTHER_PROMPT)
            chosen = replace(chosen, unused=(*chosen.unused, "points_per_side"))
        classes = self.classes(chosen.prompt) if chosen else None
        if classes and len(classes) > MAX_LABELS:
            reason = f"mask_output = '{CLASSES}' can number at most {MAX_LABELS} phrases, not {len(classes)}"
            raise PromptError("input_text", self.input_text, reason)
        return chosen

    def classes(self, prompt: Prompt) -> tuple[str, ...] | None:
        """Return what the pixel values of the mask number, from 1 on; None if they number the objects."""
        return None if self.mask_output != CLASSES or isinstance(prompt, GeometricPrompt) else prompt.names


def _read_bool(name: str, text: str) -> bool:
    if text.strip().lower() in ("true", "1", "yes", "on"):
        return True
    if text.strip().lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{name} = {quote(text)}: expected True or False.")


def _read_percent(name: str, text: str) -> int:
    percent = _read_number(text)
    if not (1 <= percent <= 100 and percent == int(percent)):
        raise ValueError(f"{name} = {quote(text)}: expected a whole number from 1 to 100.")
    return int(percent)


def _read_model_input_size(name: str, text: str) -> int:
    size = _read_number(text)
    if not (size == 0 or (112 <= size <= 2016 and size == int(size))):
        raise ValueError(f"{name} = {quote(text)}: expected 0, or a whole number from 112 to 2016.")
    return int(size)


def _read_fraction(name: str, text: str) -> float:
    fraction = _read_number(text)
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name} = {quote(text)}: expected a number from 0 to 1.")
    return fraction


def _read_count(name: str, text: str) -> int:
    count = _read_number(text)
    if not (0 <= count < math.inf and count == int(count)):
        raise ValueError(f"{name} = {quote(text)}: expected a whole number, 0 or more.")
    return int(count)


def _read_tile_size(name: str, text: str) -> int:
    size = _read_number(text)
    if not (size == 0 or (SMALLEST_TILE <= size < math.inf and size == int(size))):
        raise ValueError(f"{name} = {quote(text)}: expected 0, or a whole number, {SMALLEST_TILE} or more.")
    return int(size)


def _read_tile_overlap(name: str, text: str) -> float:
    overlap = _read_number(text)
    if not 0 <= overlap <= LARGEST_OVERLAP:
        raise ValueError(f"{name} = {quote(text)}: expected a number from 0 to {LARGEST_OVERLAP}.")
    return overlap


def _read_points_per_side(name: str, text: str) -> int:
    points = _read_number(text)
    if not (0 <= points <= MOST_POINTS_PER_SIDE and points == int(points)):
        raise ValueError(f"{name} = {quote(text)}: expected a whole number from 0 to {MOST_POINTS_PER_SIDE}.")
    return int(points)


def _read_mask_output(name: str, text: str) -> str:
    choice = text.strip().lower()
    if choice not in MASK_OUTPUTS:
        raise ValueError(f"{name} = {quote(text)}: expected {' or '.join(MASK_OUTPUTS)}.")
    return choice


def _read_area_percent(name: str, text: str) -> float:
    percent = _read_number(text)
    if not 0 <= percent <= 100:
        raise ValueError(f"{name} = {quote(text)}: expected a number from 0 to 100.")
    return percent


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # outside every range


def _read_text(name: str, text: str) -> str:
    return text


_READERS: dict[str, Callable[[str, str], Any]] = {
    "cuda": _read_bool,
    "input_size_percent": _read_percent,
    "confidence_threshold": _read_fraction,
    "iou_threshold": _read_fraction,
    "max_detections": _read_count,
    "min_area_percent": _read_area_percent,
    "max_area_percent": _read_area_percent,
    "min_region_percent": _read_area_percent,
    "tile_size": _read_tile_size,
    "tile_overlap": _read_tile_overlap,
    "points_per_side": _read_points_per_side,
    "predicted_iou_threshold": _read_fraction,
    "stability_score_threshold": _read_fraction,
    "input_text": _read_text,
    "input_box": _read_text,
    "input_box_label": _read_text,
    "input_point": _read_text,
    "input_point_label": _read_text,
    "multimask_output": _read_bool,
    "mask_output": _read_mask_output,
    "instance_output": _read_bool,
    "model_input_size": _read_model_input_size,
    "embedding_cache_folder": _read_text,
    "model_weight_file": _read_text,
}
