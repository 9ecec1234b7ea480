"""What was segmented, written to the outputs of an Ikomia task."""

import colorsys
import itertools
import logging
import weakref
from collections import Counter
from pathlib import Path

from ikomia import dataprocess

from .sam3_engine.prompts import ConceptPrompt, GeometricPrompt

logger = logging.getLogger(__name__)

_BACKGROUND_COLOUR = [0, 0, 0]
_GOLDEN_ANGLE = 0.618034  # of a whole turn: hues so far apart differ most from those next to them
_THING = 0  # an object that can be counted, as against stuff such as sky


class SegmentOutputs:
    """The outputs of a task behind its image: ``CSemanticSegmentationIO`` with masks, then the objects if asked for.

    A workflow keeps every output that was ever put into one of its tasks: so they are used again, not replaced.
    """

    def __init__(self, task):
        self._task = weakref.proxy(task)  # which has this, and is to go as soon as no one uses it
        self._spare_masks = []
        self._objects = dataprocess.CInstanceSegmentationIO()

    def clear(self):
        """Leave one mask output, an empty one."""
        self._set_mask_count(1)

    def write(self, prompt, segments, width, height, *, objects):
        """Write what was found by a prompt, None if there was none.

        Args:
            prompt: of :mod:`.sam3_engine.prompts`.
            segments: what the predictor answered to it.
            width, height: of the image, in pixels.
            objects: whether to write them as objects, too.
        """
        colours = _colours(prompt, segments)
        if isinstance(prompt, GeometricPrompt):
            self._write_outlines(prompt, segments, colours)
        else:
            self._write_label_map(prompt, segments, colours, width, height)
        if objects:
            self._write_objects(prompt, segments, colours, width, height)

    def save_further_masks(self):
        """Save what Ikomia does not, in a run whose outputs it saves (a folder run, say).

        Ikomia saves all outputs of an image under one name, each over the one before: so only the first mask is left to
        it, and the others get that name and a number, the objects that name and a word.
        """
        task = self._task
        if task.get_output(1).auto_save:
            name = task.output_folder + (Path(task.get_input(0).source_file_path).stem or "empty")  # as Ikomia does
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            for index in range(2, task.get_output_count()):
                output = task.get_output(index)
                output.save(f"{name}_{'objects' if output is self._objects else index}.json")

    def _write_label_map(self, prompt, segments, colours, width, height):
        """One mask that numbers the instances of all concepts."""
        from .sam3_engine.segments import MOST_IN_A_MAP, best, label_map

        in_map = best(segments, MOST_IN_A_MAP)
        shown = [segments[index] for index in in_map]
        if len(shown) < len(segments):
            logger.warning(
                "%d instances were found, more than a mask can number: it has the best %d.", len(segments), len(shown)
            )
        self._set_mask_count(1)
        self._fill(
            1,
            label_map(shown, width, height),
            _numbered(segment.label for segment in shown),
            [colours[index] for index in in_map],
            _description(prompt, shown),
        )

    def _write_outlines(self, prompt, segments, colours):
        """One mask per object and candidate."""
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

    def _write_objects(self, prompt, segments, colours, width, height):
        """The output of objects, as the last."""
        from .sam3_engine.segments import bounding_box, masks_of

        objects = self._objects
        objects.init(self._task.name, 0, width, height)
        for index, (segment, colour, mask) in enumerate(zip(segments, colours, masks_of(segments), strict=True)):
            left, top, right, bottom = bounding_box(mask)  # Ikomia shows of a mask what is in its box
            objects.add_object(
                index + 1,
                _THING,
                prompt.names.index(segment.label),
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

    def _set_mask_count(self, count):
        """Leave exactly ``count`` mask outputs, all empty, and no objects."""
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

    def _has_objects(self):
        """Whether the last output is that of the objects."""
        return self._task.get_output(self._task.get_output_count() - 1) is self._objects

    def _fill(self, index, mask, names, colours, description):
        """Fill a mask output; pixel value k is the k-th of ``names``, 0 is background."""
        output = self._task.get_output(index)
        output.set_class_names(["background", *names])
        output.set_class_colors([_BACKGROUND_COLOUR, *colours])
        output.set_mask(mask)
        output.description = description


def _numbered(labels):
    """Names of instances: each label with its number among its like."""
    seen = Counter()
    names = []
    for label in labels:
        seen[label] += 1
        names.append(f"{label} {seen[label]}")
    return names


def _description(prompt, segments):
    """How many instances of each concept there are, and their scores."""
    if prompt is None:
        return "nothing to segment: no prompt"
    parts = []
    for name in prompt.names:
        scores = [f"{segment.score:.3f}" for segment in segments if segment.label == name]
        parts.append(f"{len(scores)} x {name}, scores {', '.join(scores)}" if scores else f"no {name} found")
    return "; ".join(parts)


def _colours(prompt, segments):
    """The colour [r, g, b] of each segment, the same in every run."""
    if not isinstance(prompt, ConceptPrompt) or len(prompt.phrases) < 2:
        return [_object_colour(index) for index in range(len(segments))]
    shades = {name: itertools.count() for name in prompt.phrases}
    return [_shade(prompt.phrases.index(segment.label), next(shades[segment.label])) for segment in segments]


def _object_colour(index):
    """The colour of the ``index``-th object."""
    return _rgb(0.55 + _GOLDEN_ANGLE * index, (1.0, 0.65, 0.85)[index % 3], 1.0)


def _shade(concept, index):
    """The colour of the ``index``-th instance of one of several concepts, each of which has a hue of its own."""
    return _rgb(0.38 + _GOLDEN_ANGLE * concept, 1 - 0.6 * (index * 0.7549 % 1), 0.9 - 0.35 * (index * 0.5698 % 1))


def _rgb(hue, saturation, value):
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value)]
