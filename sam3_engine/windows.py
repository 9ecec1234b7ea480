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

from .click_head import ClickHead
from .detector import Detector, Examples
from .embedding import ImageEmbedding
from .everything import find_everything
from .fitting import FittedPrompt, fit_prompt
from .images import content_digest
from .joining import Joined, View, join, settle
from .mask_crops import MaskCrop, Window
from .options import CANDIDATES, Options
from .prompts import Box, ConceptPrompt, EverythingPrompt, GeometricPrompt
from .segments import Segment, crop_masks
from .selection import select_instances
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
        on_step: called before each window is encoded, and before each phrase or pass of boxes or points in it.
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
        """Return the instances of a concept prompt, phrase by phrase, each by descending score."""
        levels = self._levels()
        shown = _ShownExamples(self, detector, prompt, levels)
        crowded: set[str] = set()

        def find_in(window: Window, names: Iterable[str], embedding: ImageEmbedding) -> dict[str, list[Segment]]:
            examples = shown.in_window(window)
            found = self.run(
                embedding, lambda: detector.find(embedding, prompt, names, examples, self.options, self.on_step)
            )
            crowded.update(detector.crowded(found))
            return found

        found = _Search(self, levels, prompt.names, find_in).run()
        detector.warn_of_limits(prompt, found, crowded, self.options)
        return select_instances([segment for name in prompt.names for segment in found[name]], prompt, self.options)

    def find_everything(self, head: ClickHead, prompt: EverythingPrompt, on_row: Callable[[], None]) -> list[Segment]:
        """Return everything, by descending score; each window has a grid of points of its own.

        ``on_row`` is called after each row of the grid of each tile and of the whole image.
        """
        levels = self._levels()
        counted = {window for level in levels for window in level}

        def find_in(window: Window, names: Iterable[str], embedding: ImageEmbedding) -> dict[str, list[Segment]]:
            run = functools.partial(self.run, embedding)
            of_row = on_row if window in counted else lambda: None
            found = find_everything(head, embedding, prompt, self.options, run, self.on_step, of_row)
            return dict.fromkeys(names, found)

        (found,) = _Search(self, levels, prompt.names, find_in).run().values()
        return select_instances(found, prompt, self.options)

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

    def _levels(self) -> list[list[Window]]:
        return tile_levels(self.width, self.height, self.options.tile_size, self.options.tile_overlap)

    def _pixels(self, window: Window) -> np.ndarray:
        x1, y1, x2, y2 = window
        return np.ascontiguousarray(self._rgb[y1:y2, x1:x2])


class _ShownExamples:
    """The example boxes of a prompt, as the windows of an image are shown them.

    The window that they lie in reads them itself. All others get what the network makes of them there.
    """

    def __init__(
        self,
        windows: ImageWindows,
        detector: Detector,
        prompt: ConceptPrompt,
        levels: Sequence[Sequence[Window]],
    ) -> None:
        self._home = _smallest_around(prompt.boxes, levels)
        boxes = _relative(prompt.boxes, self._home)
        self._at_home = self._elsewhere = Examples(tuple(zip(boxes, prompt.box_labels, strict=True)))
        if prompt.boxes:
            source = windows.key(self._home)
            self._elsewhere = windows.look(
                self._home,
                lambda embedding: windows.run(
                    embedding, lambda: detector.encode_examples(embedding, prompt, self._at_home, source)
                ),
            )

    def in_window(self, window: Window) -> Examples:
        """Return the examples for a window."""
        return self._at_home if window == self._home else self._elsewhere


class _Search:
    """Looks for something in all tiles of an image, and in windows around what no tile shows well.

    Args:
        windows: of the image.
        levels: tiles that cover the image, by ascending size, see :func:`~.tiling.tile_levels`.
        names: what to look for.
        find_in: returns the segments of some of the names in a window, from its embedding, in pixels of the window.
    """

    def __init__(
        self,
        windows: ImageWindows,
        levels: Sequence[Sequence[Window]],
        names: Sequence[str],
        find_in: Callable[[Window, Iterable[str], ImageEmbedding], Mapping[str, Sequence[Segment]]],
    ) -> None:
        self._windows = windows
        self._levels = levels
        self._names = names
        self._find_in = find_in

    def run(self) -> dict[str, list[Segment]]:
        """Return the segments of each name, by descending score.

        All tiles and the whole image are looked at, then windows around what none of them shows well, see
        :func:`~.joining.join`.
        """
        smallest, *larger = (
            self._look_at(dict.fromkeys(level, self._names), self._windows.on_encoded) for level in self._levels
        )
        tiles = list(itertools.chain.from_iterable(self._levels))
        joined = {
            name: join(smallest[name], [view for level in larger for view in level[name]], tiles, self._windows.image)
            for name in self._names
        }
        for _ in range(_LOOKS):
            joined = self._look_again(joined)
        width, height = self._windows.width, self._windows.height
        return {
            name: [
                Segment(None, width, height, view.score, name, crop=view.crop)
                for view in sorted(joined[name].objects, key=lambda view: -view.score)
            ]
            for name in self._names
        }

    def _look_at(
        self, names: Mapping[Window, Iterable[str]], on_encoded: Callable[[], None] = lambda: None
    ) -> dict[str, list[View]]:
        """Return what windows show, by name.

        Args:
            names: what to look for in each window.
            on_encoded: called when each window is encoded.
        """
        views: dict[str, list[View]] = {name: [] for name in self._names}
        # cached embeddings first: the rest of many tiles would evict them
        for window in sorted(names, key=lambda window: not self._windows.is_cached(window)):
            find = functools.partial(self._find_in, window, names[window])
            for name, segments in self._windows.look(window, find, on_encoded).items():
                for segment, crop in zip(segments, crop_masks(segments, *window[:2]), strict=True):
                    if crop.area:
                        views[name].append(View(crop, segment.score, window, _tolerance(segment)))
        return views

    def _look_again(self, joined: Mapping[str, Joined]) -> dict[str, Joined]:
        """Look at what is unclear in windows around it, the largest first; at most as many as smallest tiles.

        The rest stays unclear, for the next look.
        """
        unclear = [(name, mask) for name, one in joined.items() for mask in one.unclear]
        unclear.sort(key=lambda one: -one[1].area)
        boxes: list[Box] = [tuple(map(float, mask.box)) for _, mask in unclear]  # type: ignore[misc]
        windows = self._windows
        around = windows_around(boxes, windows.width, windows.height, windows.options.tile_size)
        names: dict[Window, dict[str, None]] = {}  # a dict instead of a set keeps the order
        most = len(self._levels[0])
        for window, members in around[:most]:
            names.setdefault(window, {}).update(dict.fromkeys(unclear[member][0] for member in members))
        later: dict[str, list[MaskCrop]] = {name: [] for name in joined}
        for name, mask in (unclear[member] for _, members in around[most:] for member in members):
            later[name].append(mask)
        views = self._look_at(names)
        return {name: settle(one, views[name], windows.image, later[name]) for name, one in joined.items()}


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
