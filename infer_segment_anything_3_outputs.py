"""Writes segments to the outputs of an Ikomia task."""

from __future__ import annotations

import colorsys
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ikomia import dataprocess

from .sam3_engine.prompts import ConceptPrompt, GeometricPrompt, Prompt

if TYPE_CHECKING:
    from .sam3_engine import Segment

logger = logging.getLogger(__name__)

Colour = list[int]  # [r, g, b], 0..255

_BACKGROUND_COLOUR = [0, 0, 0]
_GOLDEN_ANGLE = 0.618034  # of a full turn: in steps of this size, neighboring hues differ most
_THING = 0  # Ikomia's number for countable objects; stuff such as sky has another


class SegmentOutputs:
    """The outputs of a task after its image: ``CSemanticSegmentationIO`` with masks and, on request, the objects.

    A workflow never frees an output that was added to one of its tasks, so outputs are reused, not replaced.
    """

    def __init__(self, task: dataprocess.CSemanticSegmentationTask) -> None:
        self._task = weakref.proxy(task)  # a cycle would keep the task, and with it the model, in memory
        self._spare_masks: list[dataprocess.CSemanticSegmentationIO] = []
        self._objects = dataprocess.CInstanceSegmentationIO()

    def clear(self) -> None:
        """Leave one empty mask output."""
        self._set_mask_count(1)

    def write(
        self, prompt: Prompt | None, segments: Sequence[Segment], width: int, height: int, *, objects: bool
    ) -> None:
        """Write the segments of a run.

        Args:
            prompt: the prompt of the run; None if there was none.
            segments: what the predictor returned.
            width: of the image, in pixels.
            height: of the image, in pixels.
            objects: also write the segments to an output of objects.
        """
        colours = _colours(prompt, segments)
        if isinstance(prompt, GeometricPrompt):
            self._write_outlines(prompt, segments, colours)
        else:
            self._write_label_map(prompt, segments, colours, width, height)
        if objects:
            self._write_objects(prompt, segments, colours, width, height)

    def save_further_masks(self) -> None:
        """Save the outputs after the first mask, in a run whose outputs Ikomia saves, such as a folder run.

        Ikomia saves all outputs of an image under the same name, so that each overwrites the one before. Only the first
        mask is left to Ikomia; the others are saved with a number after that name, the objects with ``_objects``.
        """
        task = self._task
        if task.get_output(1).auto_save:
            name = task.output_folder + (Path(task.get_input(0).source_file_path).stem or "empty")  # as Ikomia does
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            for index in range(2, task.get_output_count()):
                output = task.get_output(index)
                output.save(f"{name}_{'objects' if output is self._objects else index}.json")

    def _write_label_map(
        self, prompt: Prompt | None, segments: Sequence[Segment], colours: Sequence[Colour], width: int, height: int
    ) -> None:
        """Write one mask that numbers the instances of all concepts."""
        from .sam3_engine.segments import MAX_LABELS, best, label_map

        in_map = best(segments, MAX_LABELS)
        shown = [segments[index] for index in in_map]
        if len(shown) < len(segments):
            logger.warning(
                "%d instances were found, but a mask can hold only %d: it contains those with the highest scores.",
                len(segments),
                len(shown),
            )
        self._set_mask_count(1)
        self._fill(
            1,
            label_map(shown, width, height),
            _numbered(segment.label for segment in shown),
            [colours[index] for index in in_map],
            _description(prompt, shown),
        )

    def _write_outlines(self, prompt: GeometricPrompt, segments: Sequence[Segment], colours: Sequence[Colour]) -> None:
        """Write one mask per object and candidate."""
        from .sam3_engine.segments import masks_of

        boxes = max(1, len(prompt.boxes))
        candidates = len(segments) // boxes
        self._set_mask_count(len(segments))
        for index, (segment, colour, mask) in enumerate(zip(segments, colours, masks_of(segments), strict=True)):
            description = segment.label
            if boxes > 1:
                description += f" of box {index // candidates + 1} of {boxes}"
            if candidates > 1:
                description += f", candidate {index % candidates + 1} of {candidates}"
            description += f", score {segment.score:.3f}"
            self._fill(index + 1, mask, [segment.label], [colour], description)

    def _write_objects(
        self, prompt: Prompt | None, segments: Sequence[Segment], colours: Sequence[Colour], width: int, height: int
    ) -> None:
        """Write the segments to the output of objects, and make it the last output."""
        from .sam3_engine.segments import bounding_box, masks_of

        objects, names = self._objects, prompt.names if prompt else ()
        objects.init(self._task.name, 0, width, height)
        for index, (segment, colour, mask) in enumerate(zip(segments, colours, masks_of(segments), strict=True)):
            left, top, right, bottom = bounding_box(mask)  # Ikomia hides what is outside an object's box
            objects.add_object(
                index + 1,
                _THING,
                names.index(segment.label),
                segment.label,
                segment.score,
                left,
                top,
                right - left,
                bottom - top,
                mask,
                colour,
            )
        objects.description = f"{len(segments)} object(s)"
        self._task.add_output(objects)

    def _set_mask_count(self, count: int) -> None:
        """Leave ``count`` empty mask outputs, and no objects."""
        task = self._task
        self._objects.clear_data()
        self._objects.description = ""
        while task.get_output_count() > 1 + count or self._has_objects():
            if not self._has_objects():
                self._spare_masks.append(task.get_output(task.get_output_count() - 1))
            task.remove_output(task.get_output_count() - 1)
        while task.get_output_count() < 1 + count:
            task.add_output(self._spare_masks.pop() if self._spare_masks else dataprocess.CSemanticSegmentationIO())
        for index in range(1, 1 + count):
            output = task.get_output(index)
            output.clear_data()
            output.description = ""
            output.auto_save = index == 1 and task.get_output(0).auto_save
        for output in self._spare_masks:
            output.clear_data()

    def _has_objects(self) -> bool:
        """Return whether the last output is that of the objects."""
        return self._task.get_output(self._task.get_output_count() - 1) is self._objects

    def _fill(
        self, index: int, mask: np.ndarray, names: Sequence[str], colours: Sequence[Colour], description: str
    ) -> None:
        """Fill a mask output; pixel value k stands for the k-th of ``names``, 0 for background."""
        output = self._task.get_output(index)
        output.set_class_names(["background", *names])
        output.set_class_colors([_BACKGROUND_COLOUR, *colours])
        output.set_mask(mask)
        output.description = description


def _numbered(labels: Iterable[str]) -> list[str]:
    """Return the names of instances: "shoe 1", "shoe 2", "person 1"."""
    seen: Counter[str] = Counter()
    names = []
    for label in labels:
        seen[label] += 1
        names.append(f"{label} {seen[label]}")
    return names


def _description(prompt: Prompt | None, segments: Sequence[Segment]) -> str:
    """Return how many instances of each concept were found, and their scores."""
    if prompt is None:
        return "nothing to segment: no prompt"
    parts = []
    for name in prompt.names:
        scores = [f"{segment.score:.3f}" for segment in segments if segment.label == name]
        parts.append(f"{len(scores)} x {name}, scores {', '.join(scores)}" if scores else f"no {name} found")
    return "; ".join(parts)


def _colours(prompt: Prompt | None, segments: Sequence[Segment]) -> list[Colour]:
    """Return the color of each segment, the same in every run."""
    if not isinstance(prompt, ConceptPrompt) or len(prompt.phrases) < 2:
        return [_object_colour(index) for index in range(len(segments))]
    shades = {name: itertools.count() for name in prompt.phrases}
    return [_shade(prompt.phrases.index(segment.label), next(shades[segment.label])) for segment in segments]


def _object_colour(index: int) -> Colour:
    """Return the color of the ``index``-th object."""
    return _rgb(0.55 + _GOLDEN_ANGLE * index, (1.0, 0.65, 0.85)[index % 3], 1.0)


def _shade(concept: int, index: int) -> Colour:
    """Return the color of the ``index``-th instance of a concept: each of several concepts has its own hue."""
    return _rgb(0.38 + _GOLDEN_ANGLE * concept, 1 - 0.6 * (index * 0.7549 % 1), 0.9 - 0.35 * (index * 0.5698 % 1))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value)]
