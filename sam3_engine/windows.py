"""Segment a large image in windows, each of which the network sees at its full resolution.

Importing this module imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .detector import Detector, Examples, select_instances
from .embedding import ImageEmbedding
from .fitting import FittedPrompt, fit_prompt
from .images import content_digest
from .joining import Joined, View, join, settle
from .mask_crops import Window
from .options import CANDIDATES, Options
from .prompts import Box, ConceptPrompt, GeometricPrompt
from .segments import Segment, crop_masks
from .tiling import tile_levels, windows_around

if TYPE_CHECKING:
    from .predictor import Predictor

Result = TypeVar("Result")

_LOOKS = 2  # at what is unclear: the second one is at what the first one cuts


class ImageWindows:
    """One image, looked at in windows.

    Args:
        predictor: runs the network.
        rgb: (H, W, 3) uint8.
        options: ``tile_size`` and ``tile_overlap``, and all others.
        on_encoded: called when each tile and the whole image is encoded; for points and boxes, once.
        on_step: called before each window is encoded, and before each phrase or pass of boxes in it.
    """

    def __init__(
        self,
        predictor: Predictor,
        rgb: np.ndarray,
        options: Options,
        on_encoded: Callable[[], None],
        on_step: Callable[[], None],
    ) -> None:
        self.options = options
        self.on_encoded = on_encoded
        self.on_step = on_step
        self.height, self.width = rgb.shape[:2]
        self._predictor = predictor
        self._rgb = rgb.copy()  # the caller may write to the image while this waits for the model

    @property
    def image(self) -> Window:
        """The window that is the whole image."""
        return (0, 0, self.width, self.height)

    def find(self, detector: Detector, prompt: ConceptPrompt) -> list[Segment]:
        """Return the instances of a concept prompt, phrase by phrase, each by descending score.

        All tiles and the whole image are looked at, see :func:`~.tiling.tile_levels`, then windows around what none of
        them shows well, see :func:`~.joining.join`.
        """
        search = _Search(self, detector, prompt)
        search.encode_examples()
        smallest, *larger = (
            search.look_at(dict.fromkeys(level, prompt.names), self.on_encoded) for level in search.levels
        )
        windows = list(itertools.chain.from_iterable(search.levels))
        joined = {
            name: join(smallest[name], [view for level in larger for view in level[name]], windows, self.image)
            for name in prompt.names
        }
        for _ in range(_LOOKS):
            joined = search.look_again(joined)
        found = {
            name: [
                Segment(None, self.width, self.height, view.score, name, crop=view.crop)
                for view in sorted(joined[name].objects, key=lambda view: -view.score)
            ]
            for name in prompt.names
        }
        detector.warn_of_limits(prompt, found, search.crowded, self.options)
        return select_instances([segment for name in prompt.names for segment in found[name]], self.options)

    def outline(self, prompt: GeometricPrompt) -> list[Segment]:
        """Return the objects of a geometric prompt in the order of its boxes, each seen in a window around it."""
        marked = prompt.boxes if len(prompt.boxes) > 1 else (_bounds(prompt),)
        candidates = CANDIDATES if self.options.multimask else 1
        outlined: dict[int, Segment] = {}
        for window, members in windows_around(marked, self.width, self.height, self.options.tile_size):
            fitted = _moved(prompt, members, window)
            ask = functools.partial(self._predictor.segment, prompt=fitted, options=self.options, on_step=self.on_step)
            segments = self.look(window, ask)
            for number, crop in enumerate(crop_masks(segments, *window[:2])):
                place = members[number // candidates] * candidates + number % candidates
                outlined[place] = dataclasses.replace(
                    segments[number], mask_logits=None, width=self.width, height=self.height, crop=crop
                )
        self.on_encoded()
        return [outlined[place] for place in sorted(outlined)]

    def key(self, window: Window) -> Hashable:
        """Return what identifies the embedding of a window: equal pixels have the same."""
        return (content_digest(self._pixels(window)), self.options.size_percent, self._predictor.resolution)

    def is_cached(self, window: Window) -> bool:
        """Return whether the embedding of a window is cached."""
        return self.key(window) in self._predictor.model.tiles

    def look(
        self, window: Window, ask: Callable[[ImageEmbedding], Result], on_encoded: Callable[[], None] = lambda: None
    ) -> Result:
        """Return ``ask(embedding)`` of a window; ``on_encoded`` is called before."""
        self.on_step()
        percent = self.options.size_percent
        if window == self.image:
            return self._predictor.answer(lambda: self._predictor.encode_image(self._rgb, percent), ask, on_encoded)
        pixels, key = self._pixels(window), self.key(window)
        return self._predictor.answer(lambda: self._predictor.encode_part(pixels, key, percent), ask, on_encoded)

    def run(self, embedding: ImageEmbedding, compute: Callable[[], Result]) -> Result:
        """Return ``compute()``, which runs a head on an embedding; see :meth:`~.predictor.Predictor.ask`."""
        return self._predictor.ask(embedding, compute)

    def _pixels(self, window: Window) -> np.ndarray:
        x1, y1, x2, y2 = window
        return np.ascontiguousarray(self._rgb[y1:y2, x1:x2])


class _Search:
    """Looks for the concepts of a prompt, window by window.

    Attributes:
        levels: tiles that cover the image, by ascending size.
        crowded: concepts with as many instances in a window as the network can return.
    """

    def __init__(self, windows: ImageWindows, detector: Detector, prompt: ConceptPrompt) -> None:
        self.levels = tile_levels(
            windows.width, windows.height, windows.options.tile_size, windows.options.tile_overlap
        )
        self.crowded: set[str] = set()
        self._windows = windows
        self._detector = detector
        self._prompt = prompt
        self._examples_from = _smallest_around(prompt.boxes, self.levels)
        boxes = _relative(prompt.boxes, self._examples_from)
        self._examples = self._shown_elsewhere = Examples(tuple(zip(boxes, prompt.box_labels, strict=True)))

    def encode_examples(self) -> None:
        """Prepare the example boxes, if there are any, for all windows but the one that they lie in."""
        if not self._examples.boxes:
            return
        source = self._windows.key(self._examples_from)
        self._shown_elsewhere = self._windows.look(
            self._examples_from,
            lambda embedding: self._windows.run(
                embedding, lambda: self._detector.encode_examples(embedding, self._prompt, self._examples, source)
            ),
        )

    def look_at(
        self, names: Mapping[Window, Iterable[str]], on_encoded: Callable[[], None] = lambda: None
    ) -> dict[str, list[View]]:
        """Return what windows show of some concepts, by concept.

        Args:
            names: the concepts to look for in each window.
            on_encoded: called when each window is encoded.
        """
        views: dict[str, list[View]] = {name: [] for name in self._prompt.names}
        # cached embeddings first: the rest of many tiles would evict them
        for window in sorted(names, key=lambda window: not self._windows.is_cached(window)):
            ask = functools.partial(self._find, window=window, names=names[window])
            found = self._windows.look(window, ask, on_encoded)
            self.crowded |= self._detector.crowded(found)
            for name, segments in found.items():
                for segment, crop in zip(segments, crop_masks(segments, *window[:2]), strict=True):
                    if crop.area:
                        views[name].append(View(crop, segment.score, window, _tolerance(segment)))
        return views

    def look_again(self, joined: Mapping[str, Joined]) -> dict[str, Joined]:
        """Look at what is unclear in windows around it, the largest first; at most as many as smallest tiles."""
        unclear = [(name, mask) for name, one in joined.items() for mask in one.unclear]
        unclear.sort(key=lambda one: -one[1].area)
        boxes: list[Box] = [tuple(map(float, mask.box)) for _, mask in unclear]  # type: ignore[misc]
        options = self._windows.options
        around = windows_around(boxes, self._windows.width, self._windows.height, options.tile_size)
        names: dict[Window, dict[str, None]] = {}  # a dict instead of a set keeps the order
        for window, members in around[: len(self.levels[0])]:
            names.setdefault(window, {}).update(dict.fromkeys(unclear[member][0] for member in members))
        views = self.look_at(names)
        return {name: settle(one, views[name], self._windows.image) for name, one in joined.items()}

    def _find(self, embedding: ImageEmbedding, window: Window, names: Iterable[str]) -> dict[str, list[Segment]]:
        examples = self._examples if window == self._examples_from else self._shown_elsewhere
        return self._windows.run(
            embedding,
            lambda: self._detector.find(
                embedding, self._prompt, names, examples, self._windows.options, self._windows.on_step
            ),
        )


def _tolerance(segment: Segment) -> int:
    """Return the side of a logit in pixels, rounded up: a mask may end that far from where it is cut."""
    assert segment.mask_logits is not None
    rows, columns = segment.mask_logits.shape
    return max(-(-segment.height // rows), -(-segment.width // columns))


def _smallest_around(boxes: Sequence[Box], levels: Sequence[Sequence[Window]]) -> Window:
    """Return the smallest tile that contains all boxes; of several, the one whose borders are farthest from them."""
    (image,) = levels[-1]
    if not boxes:
        return image
    x1, y1 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x2, y2 = max(box[2] for box in boxes), max(box[3] for box in boxes)

    def room(window: Window) -> float:
        return min(x1 - window[0], y1 - window[1], window[2] - x2, window[3] - y2)

    return next((widest for level in levels if room(widest := max(level, key=room)) >= 0), image)


def _relative(boxes: Sequence[Box], window: Window) -> list[Box]:
    """Return boxes as fractions of a window's width and height."""
    left, top, right, bottom = window
    x, y = 1 / (right - left), 1 / (bottom - top)
    return [((x1 - left) * x, (y1 - top) * y, (x2 - left) * x, (y2 - top) * y) for x1, y1, x2, y2 in boxes]


def _bounds(prompt: GeometricPrompt) -> Box:
    """Return the bounds of all points and boxes."""
    corners = [*prompt.points, *(corner for x1, y1, x2, y2 in prompt.boxes for corner in ((x1, y1), (x2, y2)))]
    xs, ys = zip(*corners, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _moved(prompt: GeometricPrompt, members: Sequence[int], window: Window) -> FittedPrompt:
    """Return the part of a prompt that is in a window, in pixels of the window.

    Args:
        prompt: in source pixels.
        members: the indices of its boxes that are in the window.
        window: contains them, and all points.
    """
    left, top, right, bottom = window
    boxes = [prompt.boxes[member] for member in members if prompt.boxes]
    part = GeometricPrompt(
        boxes=[(x1 - left, y1 - top, x2 - left, y2 - top) for x1, y1, x2, y2 in boxes],  # type: ignore[arg-type]
        points=[(x - left, y - top) for x, y in prompt.points],  # type: ignore[arg-type]
        point_labels=prompt.point_labels,
        categories=[prompt.categories[member] for member in members if prompt.categories],  # type: ignore[arg-type]
    )
    return fit_prompt(part, right - left, bottom - top)
