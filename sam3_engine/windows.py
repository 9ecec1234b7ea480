"""Segment a large image in windows, each of which the network sees at its full resolution.

Importing this module imports torch.
"""

from __future__ import annotations

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
from .joining import Joined, View, cut_sides, join, settle
from .mask_crops import MaskCrop, Window
from .options import CANDIDATES, Options
from .prompts import Box, ConceptPrompt, EverythingPrompt, GeometricPrompt
from .regions import remove_small_regions
from .segments import Segment, crop_masks
from .selection import select_instances
from .tiling import bounds_of, tile_levels, windows_around

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
        self._keys: dict[Window, Hashable] = {}

    @property
    def image(self) -> Window:
        """The window that is the whole image."""
        return (0, 0, self.width, self.height)

    def find(self, detector: Detector, prompt: ConceptPrompt) -> list[Segment]:
        """Return the instances of a concept prompt, phrase by phrase, each by descending score."""
        levels = self._levels()
        shown = _ShownExamples(self, detector, prompt, levels[0])
        larger = set(itertools.chain.from_iterable(levels[1:]))
        crowded: set[str] = set()

        def find_in(window: Window, names: Iterable[str], embedding: ImageEmbedding) -> dict[str, list[Segment]]:
            examples = shown.in_window(window)
            found = self.run(
                embedding, lambda: detector.find(embedding, prompt, names, examples, self.options, self.on_step)
            )
            if window not in larger:  # which need not show everything
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
        views = self._outline_boxes(prompt) if prompt.boxes else self._outline_points(prompt, bounds_of(_marks(prompt)))
        self.on_encoded()
        labels = [label for label in prompt.labels for _ in range(self._candidates)]
        return [self.segment_of(view, label) for view, label in zip(views, labels, strict=True)]

    def around(self, boxes: Sequence[Box]) -> list[tuple[Window, list[int]]]:
        """Return windows around boxes, see :func:`~.tiling.windows_around`."""
        return windows_around(boxes, self.width, self.height, self.options.tile_size)

    def segment_of(self, view: View, label: str) -> Segment:
        """Return a view as a segment of the image."""
        return Segment(None, self.width, self.height, view.score, label, crop=view.crop)

    def key(self, window: Window) -> Hashable:
        """Return what identifies the embedding of a window: equal pixels have the same."""
        if window not in self._keys:
            digest = content_digest(self._pixels(window))
            self._keys[window] = (digest, self.options.size_percent, self._predictor.resolution)
        return self._keys[window]

    def is_cached(self, window: Window) -> bool:
        """Return whether the embedding of a window is cached; that of the whole image is cached elsewhere."""
        return window != self.image and self.key(window) in self._predictor.model.tiles

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

    @property
    def _candidates(self) -> int:
        """The number of masks for each object."""
        return CANDIDATES if self.options.multimask else 1

    def _outline_boxes(self, prompt: GeometricPrompt) -> list[View]:
        """Return what is in boxes, in their order."""
        marked = prompt.boxes if len(prompt.boxes) > 1 else (bounds_of(_marks(prompt)),)
        outlined: dict[int, View] = {}
        for window, members in self.around(marked):
            for number, view in enumerate(self._outline_in(window, prompt, members)):
                outlined[members[number // self._candidates] * self._candidates + number % self._candidates] = view
        return [outlined[place] for place in sorted(outlined)]

    def _outline_points(self, prompt: GeometricPrompt, seen: Box) -> list[View]:
        """Return what is at points, in a window around a box that contains them.

        Points do not say how large the object is: if the window cuts the best mask, a window around that follows.
        """
        ((window, members),) = self.around((seen,))
        views = self._outline_in(window, prompt, members)
        best = max(views, key=lambda view: view.score)
        if best.crop.area and cut_sides(best, self.image):
            more = bounds_of((seen, best.crop.box))
            if self.around((more,)) != [(window, members)]:
                return self._outline_points(prompt, more)
        return views

    def _outline_in(self, window: Window, prompt: GeometricPrompt, members: Sequence[int]) -> list[View]:
        """Return the objects of a prompt in a window that contains all its points, and these of its boxes."""
        fitted = _moved(prompt, members, window)
        ask = functools.partial(self._predictor.segment, prompt=fitted, options=self.options, on_step=self.on_step)
        return _views(self.look(window, ask), window)

    def _levels(self) -> list[list[Window]]:
        return tile_levels(self.width, self.height, self.options.tile_size, self.options.tile_overlap)

    def _pixels(self, window: Window) -> np.ndarray:
        x1, y1, x2, y2 = window
        return np.ascontiguousarray(self._rgb[y1:y2, x1:x2])


class _ShownExamples:
    """The example boxes of a prompt, as the windows of an image are shown them.

    The tile that contains them all reads them itself, or a window around them if none does. All others get what the
    network makes of them there.
    """

    def __init__(
        self,
        windows: ImageWindows,
        detector: Detector,
        prompt: ConceptPrompt,
        tiles: Sequence[Window],
    ) -> None:
        self._home = _home_of(prompt.boxes, tiles, windows)
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
        return {
            name: [
                self._windows.segment_of(view, name)
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
                # before joining, which compares masks with the borders of windows
                segments = remove_small_regions(segments, self._windows.options.min_region_percent)
                views[name] += [view for view in _views(segments, window) if view.crop.area]
        return views

    def _look_again(self, joined: Mapping[str, Joined]) -> dict[str, Joined]:
        """Look at what is unclear in windows around it, the largest first; at most as many as smallest tiles.

        The rest stays unclear, for the next look.
        """
        unclear = [(name, mask) for name, one in joined.items() for mask in one.unclear]
        unclear.sort(key=lambda one: -one[1].area)
        boxes: list[Box] = [tuple(map(float, mask.box)) for _, mask in unclear]  # type: ignore[misc]
        around = self._windows.around(boxes)
        names: dict[Window, dict[str, None]] = {}  # a dict instead of a set keeps the order
        most = len(self._levels[0])
        for window, members in around[:most]:
            names.setdefault(window, {}).update(dict.fromkeys(unclear[member][0] for member in members))
        later: dict[str, list[MaskCrop]] = {name: [] for name in joined}
        for name, mask in (unclear[member] for _, members in around[most:] for member in members):
            later[name].append(mask)
        views = self._look_at(names)
        return {name: settle(one, views[name], self._windows.image, later[name]) for name, one in joined.items()}


def _views(segments: Sequence[Segment], window: Window) -> list[View]:
    """Return the segments of a window as views of the image."""
    crops = crop_masks(segments, *window[:2])
    return [
        View(crop, segment.score, window, _tolerance(segment)) for segment, crop in zip(segments, crops, strict=True)
    ]


def _tolerance(segment: Segment) -> int:
    """Return the side of a logit in pixels, rounded up: a mask may end that far from where it is cut."""
    assert segment.mask_logits is not None
    rows, columns = segment.mask_logits.shape
    return max(-(-segment.height // rows), -(-segment.width // columns))


def _home_of(boxes: Sequence[Box], tiles: Sequence[Window], windows: ImageWindows) -> Window:
    """Return the tile that contains all boxes, farthest from its borders, or else a window around them."""
    if not boxes:
        return windows.image
    x1, y1, x2, y2 = bounds = bounds_of(boxes)

    def room(window: Window) -> float:
        return min(x1 - window[0], y1 - window[1], window[2] - x2, window[3] - y2)

    ((around, _),) = windows.around((bounds,))
    widest = max(tiles, key=room)
    return widest if room(widest) >= 0 else around


def _relative(boxes: Sequence[Box], window: Window) -> list[Box]:
    """Return boxes as fractions of a window's width and height."""
    left, top, right, bottom = window
    x, y = 1 / (right - left), 1 / (bottom - top)
    return [((x1 - left) * x, (y1 - top) * y, (x2 - left) * x, (y2 - top) * y) for x1, y1, x2, y2 in boxes]


def _marks(prompt: GeometricPrompt) -> list[Box]:
    """Return the boxes and the points, these as boxes without an extent."""
    return [*prompt.boxes, *((x, y, x, y) for x, y in prompt.points)]


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
