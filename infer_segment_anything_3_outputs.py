"""Writes segments to the outputs of an Ikomia task."""

from __future__ import annotations

import colorsys
import contextlib
import itertools
import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ikomia import dataprocess

from .infer_segment_anything_3_output_types import ImageOutput, MaskOutput, ObjectsOutput
from .infer_segment_anything_3_saving import AutoSaved, NewFiles, VideoFolders
from .sam3_engine.errors import ImageError
from .sam3_engine.images import as_rgb8
from .sam3_engine.options import MAX_LABELS
from .sam3_engine.prompts import (
    PHRASES_EXPECTED,
    ConceptPrompt,
    EverythingPrompt,
    GeometricPrompt,
    Prompt,
    is_plain_phrase,
)

if TYPE_CHECKING:
    from .infer_segment_anything_3_workflows import OwnWorkflow
    from .sam3_engine import Segment

    _Outputs = list[MaskOutput | ObjectsOutput]  # all after the image

logger = logging.getLogger(__name__)

Color = list[int]  # [r, g, b], 0..255

_BACKGROUND_COLOR = [0, 0, 0]
_GOLDEN_ANGLE = 0.618034  # of a full turn: in steps of this size, neighboring hues differ most
_SATURATIONS = (1.0, 0.65, 0.85, 1.0, 0.65, 0.85, 1.0, 0.65, 0.85, 1.0, 0.4, 0.25)  # hues 11 and 12 are near 3 and 4
# (place in the hues of a phrase, -1 to 1; saturation; value): found by search, those of the first instances far apart
_SHADES = (
    (0.0, 1.0, 0.9),
    (0.5, 0.2, 0.68),
    (-1.0, 0.2, 1.0),
    (1.0, 0.5, 0.52),
    (1.0, 0.5, 0.76),
    (1.0, 0.2, 0.52),
    (-1.0, 0.4, 0.6),
    (1.0, 0.2, 0.84),
    (-1.0, 1.0, 0.52),
    (-1.0, 0.4, 0.84),
    (0.5, 1.0, 0.68),
    (1.0, 0.5, 1.0),
)
_WIDEST_HUES = 0.06  # of a full turn, to both sides of a phrase's hue
_NAMES = {MaskOutput: "a mask", ObjectsOutput: "the objects"}
_STAYS = "stays, but is empty with these parameters"
_NO_MASK = np.zeros((1, 1), np.uint8)
_THING = 0  # Ikomia's number for countable objects; stuff such as sky has another


class SegmentOutputs:
    """The outputs of a task: the image, the first mask, on request the objects, and further masks.

    They exist, empty, as soon as the parameters are known, so that they can be connected before a run. A workflow never
    frees an output that was added to one of its tasks, so outputs are reused, not replaced.
    """

    def __init__(self, task: dataprocess.CSemanticSegmentationTask, workflow: OwnWorkflow) -> None:
        self._task = weakref.proxy(task)  # a cycle would keep the task, and with it the model, in memory
        self._workflow = workflow
        self._image = ImageOutput()
        self._masks = [MaskOutput()]  # as many as were ever needed
        self._objects = ObjectsOutput()
        # indices, from the first mask on, of connected outputs that the parameters do not imply, or not with that type
        self._without_use: set[int] = set()
        self._retyped: set[int] = set()
        self._video_folders = VideoFolders()
        task.set_output(self._image, 0)
        task.set_output(self._masks[0], 1)

    def arrange(self, masks: int, *, objects: bool) -> None:
        """Make the outputs exist that a run with the same parameters fills. If one comes or goes, all become empty.

        An output that is connected to another task stays, because the workflow would fail without it.

        Args:
            masks: number of masks.
            objects: whether there is an output of objects.
        """
        image, *before = self._task.get_outputs()
        after = self._ordered(masks, objects=objects)
        if before != after:
            after = self._with_connected(before, after)
        if before != after:
            self._task.set_outputs([image, *after])
            self.clear()

    def _with_connected(self, before: _Outputs, after: _Outputs) -> _Outputs:
        """Return the outputs after a change, together with those that stay because they are connected."""
        gone = {index for index, output in enumerate(before) if output not in after[index : index + 1]}
        connected = {index - 1 for index in self._workflow.connected_outputs()} & gone if gone else set()
        if connected:
            objects = self._objects in (*after, *(before[index] for index in connected - self._retyped))
            masks = len(after) - (self._objects in after)
            after = self._ordered(max(masks, 1 + max(connected) - objects), objects=objects)
        retyped = {index for index in connected if type(after[index]) is not type(before[index])}
        restored = retyped & self._retyped
        for index in sorted(connected - self._without_use - restored):
            is_now = f"is now {_NAMES[type(after[index])]}" if index in retyped else _STAYS
            logger.warning("Output %d, which is connected to another task, %s.", index + 1, is_now)
        self._without_use = connected - restored
        self._retyped ^= retyped
        return after

    def _ordered(self, masks: int, *, objects: bool) -> _Outputs:
        """Return the outputs after the image."""
        self._masks += [MaskOutput() for _ in range(masks - len(self._masks))]
        first, *further = self._masks[:masks]
        return [first, *([self._objects] if objects else []), *further]

    def start(self) -> None:
        """Prepare a run: empty all outputs."""
        image = self._task.get_output(0)
        if type(image) is dataprocess.CImageIO:  # Ikomia exchanges this output for a video, and after it
            self._image.auto_save = image.auto_save
            self._task.set_output(self._image, 0)
        self.clear()
        for output in (self._image, *self._masks, self._objects):
            output.redirect(None)  # what an earlier run chose, if Ikomia did not save

    def clear(self) -> None:
        """Empty all outputs but the image."""
        for mask in self._masks:
            mask.set_mask(_NO_MASK)  # clear_data() alone leaves the polygons of the last mask
        for output in self._ordered(len(self._masks), objects=True):
            output.clear_data()
            output.description = ""
            output.auto_save = self._masks[0].auto_save

    def discard(self) -> None:
        """Empty all outputs but the image, and let Ikomia save nothing."""
        self.clear()
        self._video_folders.choose(self._task)  # Ikomia saves each frame nonetheless
        self._redirect({})

    def write(
        self,
        prompt: Prompt | None,
        segments: Sequence[Segment],
        width: int,
        height: int,
        *,
        classes: Sequence[str] | None = None,
        objects: bool,
        unused: Sequence[str] = (),
    ) -> None:
        """Write the segments of a run.

        Args:
            prompt: the prompt of the run; None if there was none.
            segments: what the predictor returned.
            width: of the image, in pixels.
            height: of the image, in pixels.
            classes: the labels that the mask numbers; None: it numbers the instances.
            objects: also write the segments to an output of objects.
            unused: what is set or drawn but not used; the descriptions of the masks name it.
        """
        colors = _colors(prompt, segments)
        masks = len(segments) if isinstance(prompt, GeometricPrompt) else 1
        self.arrange(masks, objects=objects)
        if isinstance(prompt, GeometricPrompt):
            self._write_outlines(prompt, segments, colors)
        elif classes is not None:
            self._write_class_map(prompt, segments, classes, width, height)
        else:
            self._write_label_map(prompt, segments, colors, width, height)
        if unused:
            for output in self._masks[:masks]:
                output.description += f"; not used: {', '.join(unused)}"
        if objects:
            self._write_objects(prompt, segments, colors, width, height)
        self._fill_others(width, height)

    def finish(self) -> None:
        """End a run: make the image fit for display, and choose the files that Ikomia saves the outputs to.

        Raises:
            OSError: the folder for a video cannot be created.
        """
        self._make_displayable(self._task.get_output(0))
        self._video_folders.choose(self._task)
        self._redirect(self._file_ends())

    def _make_displayable(self, output: dataprocess.CImageIO) -> None:
        """Convert the image to 8-bit RGB if Ikomia cannot draw on it."""
        image = output.get_image()
        if image.dtype != np.uint8 or image.ndim == 3 and image.shape[2] not in (1, 3):
            with contextlib.suppress(ImageError):  # without a prompt, images that nobody can use are no error
                output.set_image(as_rgb8(image))

    def _file_ends(self) -> dict[str, AutoSaved]:
        """Return the outputs that Ikomia saves, by the end of the file's name."""
        first, *further = self._masks
        ends = {".png": self._image, ".json": first, "_objects.json": self._objects}
        ends.update((f"_{number}.json", mask) for number, mask in enumerate(further, 2))
        saved = [output for output in self._saved_outputs() if output.auto_save]
        return {end: output for end, output in ends.items() if output in saved}

    def _redirect(self, outputs: Mapping[str, AutoSaved]) -> None:
        """Let Ikomia save to new files, one for each of the outputs that are given by the end of the file's name."""
        new_files = NewFiles(self._task.output_folder, self._task.get_input(0).source_file_path, outputs)
        for output in self._saved_outputs():
            if output.auto_save:
                output.redirect(new_files)

    def _saved_outputs(self) -> list[AutoSaved]:
        """Return the outputs of the task except a video, which Ikomia puts in the place of the image."""
        return [output for output in self._task.get_outputs() if isinstance(output, AutoSaved)]

    def _write_label_map(
        self, prompt: Prompt | None, segments: Sequence[Segment], colors: Sequence[Color], width: int, height: int
    ) -> None:
        """Write one mask that numbers the instances of all concepts, or everything, parts on top of the whole."""
        from .sam3_engine.segments import best, label_map

        in_map = best(segments, MAX_LABELS)
        shown = [segments[index] for index in in_map]
        if len(shown) < len(segments):
            logger.warning(
                "%d instances were found, but a mask can hold only %d: it contains those with the highest scores.",
                len(segments),
                len(shown),
            )
        self._fill(
            self._masks[0],
            label_map(shown, width, height, smallest_on_top=isinstance(prompt, EverythingPrompt)),
            _numbered(segment.label for segment in shown),
            [colors[index] for index in in_map],
            _description(prompt, shown),
        )

    def _write_class_map(
        self, prompt: Prompt | None, segments: Sequence[Segment], classes: Sequence[str], width: int, height: int
    ) -> None:
        """Write one mask that numbers the concepts."""
        from .sam3_engine.segments import label_map

        self._fill(
            self._masks[0],
            label_map(segments, width, height, classes),
            classes,
            [_class_color(index, len(classes)) for index in range(len(classes))],
            _description(prompt, segments),
        )

    def _write_outlines(self, prompt: GeometricPrompt, segments: Sequence[Segment], colors: Sequence[Color]) -> None:
        """Write one mask per object and candidate."""
        from .sam3_engine.segments import masks_of

        boxes = max(1, len(prompt.boxes))
        candidates = len(segments) // boxes
        masks = zip(self._masks, segments, colors, masks_of(segments), strict=False)
        for index, (output, segment, color, mask) in enumerate(masks):
            description = segment.label
            if boxes > 1:
                description += f" of box {index // candidates + 1} of {boxes}"
            if candidates > 1:
                description += f", candidate {index % candidates + 1} of {candidates}"
            description += f", score {segment.score:.3f}"
            self._fill(output, mask, [segment.label], [color], description)

    def _write_objects(
        self, prompt: Prompt | None, segments: Sequence[Segment], colors: Sequence[Color], width: int, height: int
    ) -> None:
        """Write the segments to the output of objects."""
        from .sam3_engine.segments import bounding_box, masks_of

        objects, names = self._objects, prompt.names if prompt else ()
        objects.init(self._task.name, 0, width, height)
        for index, (segment, color, mask) in enumerate(zip(segments, colors, masks_of(segments), strict=True)):
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
                color,
            )
        objects.description = f"{len(segments)} object(s)"

    def _fill_others(self, width: int, height: int) -> None:
        """Fill the outputs that stay because they are connected: Ikomia's tasks refuse an input without data."""
        for output in self._task.get_outputs()[1:]:
            if output.is_data_available():
                continue
            if output is self._objects:
                self._write_objects(None, [], [], width, height)
            else:
                self._fill(output, np.zeros((height, width), np.uint8), [], [], "no mask with these parameters")

    def _fill(
        self, output: MaskOutput, mask: np.ndarray, names: Sequence[str], colors: Sequence[Color], description: str
    ) -> None:
        """Fill a mask output; pixel value k stands for the k-th of ``names``, 0 for background."""
        output.set_class_names(["background", *names])
        output.set_class_colors([_BACKGROUND_COLOR, *colors])
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
        if scores:
            parts.append(f"{len(scores)} x {name}, scores {', '.join(scores)}")
        else:
            parts.append(f"no {name} found" + ("" if is_plain_phrase(name) else f" ({PHRASES_EXPECTED})"))
    return "; ".join(parts)


def _colors(prompt: Prompt | None, segments: Sequence[Segment]) -> list[Color]:
    """Return the color of each segment, the same in every run."""
    if not isinstance(prompt, ConceptPrompt) or len(prompt.phrases) < 2:
        return [_object_color(index) for index in range(len(segments))]
    shades = {name: itertools.count() for name in prompt.phrases}
    count = len(prompt.phrases)
    return [_shade(prompt.phrases.index(segment.label), next(shades[segment.label]), count) for segment in segments]


def _class_color(concept: int, concepts: int) -> Color:
    """Return the color of a concept: that of its first instance."""
    return _object_color(0) if concepts < 2 else _shade(concept, 0, concepts)


def _object_color(index: int) -> Color:
    """Return the color of the ``index``-th object."""
    return _rgb(0.55 + _GOLDEN_ANGLE * index, _SATURATIONS[index % len(_SATURATIONS)], 1.0)


def _shade(concept: int, index: int, concepts: int) -> Color:
    """Return the color of the ``index``-th instance of one of several concepts; each concept has its own hues."""
    if index < len(_SHADES):
        place, saturation, value = _SHADES[index]
    else:  # steps that fill a cube evenly
        place, saturation, value = (index * step % 1 for step in (0.5497, 0.8192, 0.6711))
        place, saturation, value = 2 * place - 1, 1 - 0.8 * saturation, 1 - 0.48 * value
    nearest = min(abs((_GOLDEN_ANGLE * other + 0.5) % 1 - 0.5) for other in range(1, concepts))
    return _rgb(0.38 + _GOLDEN_ANGLE * concept + place * min(_WIDEST_HUES, nearest / 3.5), saturation, value)


def _rgb(hue: float, saturation: float, value: float) -> Color:
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value)]
