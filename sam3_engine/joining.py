"""Join the views of an object in several tiles, so that it becomes one instance.

Views of two tiles show the same object if their masks agree where both tiles look: in the strip that the tiles share.
There, both masks of an object cover the same pixels however little of it a tile shows, while neighbors that touch cover
different ones. This sets it apart from non-maximum suppression, which compares whole masks, and from SAHI, which merges
boxes by their intersection over the smaller area (``GREEDYNMM`` with ``IOS``, https://github.com/obss/sahi). That
measure is used here only to find what fragments are part of.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .mask_crops import MaskCrop, MaskIndex, Window, common

_SAME = 0.5  # IoU, from which on two masks show the same object
_FRAGMENT = 0.7  # intersection over the smaller area, from which on a mask is a part of another
_CONTINUED = 0.5  # share of an edge, from which on a mask continues beyond it


@dataclass(frozen=True, eq=False)
class View:
    """An instance as one window of the image shows it.

    Attributes:
        crop: its mask.
        score: 0..1.
        window: a tile, the whole image, or a window around something.
        tolerance: how far a mask that the border of the window cuts may end before it, in pixels.
    """

    crop: MaskCrop
    score: float
    window: Window
    tolerance: int = 0


@dataclass(frozen=True, eq=False)
class Joined:
    """What several windows show together.

    Attributes:
        objects: the objects that are known completely. Their scores are the highest of their views.
        unclear: masks of what no window shows completely; look at them again in a window around each.
    """

    objects: list[View]
    unclear: list[MaskCrop]


def join(views: Sequence[View], larger: Sequence[View], windows: Sequence[Window], image: Window) -> Joined:
    """Join the views of the smallest tiles, and of larger ones and the whole image.

    - Views of two tiles whose masks agree in the strip that both share, with an IoU of at least 0.5, show the same
      object. If a tile shows it completely, and most of what the others show, that is its mask, of several the one with
      the highest score. Otherwise, its mask consists of all of them, each up to the middle of the strips.
    - What tiles cut and no neighbor continues is unclear, unless a known object covers most of it.
    - Larger tiles and the whole image show what does not fit in a smaller tile: that is unclear, too, because it is
      seen at a lower resolution. What fits, the smaller tile sees better, also if it sees that there is nothing.

    Args:
        views: of the smallest tiles.
        larger: views of larger tiles and of the whole image, by ascending size of these.
        windows: all tiles and the whole image, also those that show nothing.
        image: (0, 0, width, height).
    """
    groups = [(group, _view_of(group, image)) for group in _groups(views)]
    objects = [known for _, known in groups if known]
    fragments = [view.crop for group, known in groups if not known for view in group]
    known, large = MaskIndex(view.crop for view in objects), []
    for view in larger:
        finer = (window for window in windows if _side(window) < _side(view.window))
        if not any(_fits(view, window, image) for window in finer) and not known.has_iou(view.crop, _SAME):
            known.add(view.crop)
            large.append(view.crop)
    return Joined(objects, [*large, *_not_covered(fragments, known)])


def settle(joined: Joined, views: Sequence[View], image: Window, later: Sequence[MaskCrop] = ()) -> Joined:
    """Take another look at what was unclear.

    Args:
        joined: what is known so far.
        views: what windows around the unclear masks show.
        image: (0, 0, width, height).
        later: the unclear masks around which there was no window yet.

    Returns:
        The objects, with those that the new views show completely. Of what was unclear, only what they show and cut
        again is left, and what is to be looked at later.
    """
    objects, cut = list(joined.objects), []
    known, unclear = MaskIndex(view.crop for view in objects), MaskIndex(joined.unclear)
    for view in _by_descending_score(views):
        near = [unclear[number] for number in unclear.near(view.crop)]
        if known.has_iou(view.crop, _SAME) or not any(_shows(view.crop, mask) for mask in near):
            continue
        if cut_sides(view, image):
            cut.append(view.crop)
        else:
            objects.append(view)
            known.add(view.crop)
    return Joined(objects, _not_covered([*cut, *later], known))


def cut_sides(view: View, image: Window) -> list[int]:
    """Return the sides of the window, inside the image, that cut the mask, as indices of (x1, y1, x2, y2)."""
    return [
        side
        for side in range(4)
        if view.window[side] != image[side] and abs(view.crop.box[side] - view.window[side]) <= view.tolerance
    ]


def _by_descending_score(views: Iterable[View]) -> list[View]:
    return sorted(views, key=lambda view: -view.score)


def _side(window: Window) -> int:
    return max(window[2] - window[0], window[3] - window[1])


def _shows(mask: MaskCrop, unclear: MaskCrop) -> bool:
    """Return whether a mask is that of an unclear one, or of what the unclear one is a part of."""
    intersection = mask.intersection(unclear)
    return intersection >= _FRAGMENT * unclear.area or mask.iou(unclear) >= _SAME


def _not_covered(masks: Sequence[MaskCrop], known: MaskIndex) -> list[MaskCrop]:
    """Return the masks, largest first, of which neither a known one nor a larger one of them covers most."""
    larger, left = MaskIndex(), []
    for mask in sorted(masks, key=lambda mask: -mask.area):
        if not known.covers(mask, _FRAGMENT) and not larger.covers(mask, _FRAGMENT):
            larger.add(mask)
            left.append(mask)
    return left


def _view_of(views: Sequence[View], image: Window) -> View | None:
    """Return the object that views of several tiles show, in the whole image; None if they do not show all of it."""
    best_first = _by_descending_score(views)
    score = best_first[0].score
    cut = [view for view in best_first if cut_sides(view, image)]
    for view in best_first:
        if view not in cut and all(view.crop.intersection(one.crop) >= _FRAGMENT * one.crop.area for one in cut):
            return View(view.crop, score, image)
    merged = _merge(best_first, image)
    return View(merged, score, image) if all(_continues(merged, view, image) for view in cut) else None


def _continues(crop: MaskCrop, view: View, image: Window) -> bool:
    """Return whether a mask continues beyond every side that cuts one of its views."""
    x1, y1, x2, y2 = view.window
    for side in cut_sides(view, image):
        depth = view.tolerance + 1
        inner: Window = [
            (x1, y1, x1 + depth, y2),
            (x1, y1, x2, y1 + depth),
            (x2 - depth, y1, x2, y2),
            (x1, y2 - depth, x2, y2),
        ][side]
        outer: Window = [
            (x1 - depth, y1, x1, y2),
            (x1, y1 - depth, x2, y1),
            (x2, y1, x2 + depth, y2),
            (x1, y2, x2, y2 + depth),
        ][side]
        if np.count_nonzero(crop.inside(outer)) < _CONTINUED * np.count_nonzero(view.crop.inside(inner)):
            return False
    return True


def _groups(views: Sequence[View]) -> list[list[View]]:
    """Return the views of each object of the tiles."""
    groups = [[index] for index in range(len(views))]  # of each view; views of one group share the list
    for _, index, other_index in sorted(_same_in_strip(views), reverse=True):
        group, other = groups[index], groups[other_index]
        if group is other or any(_are_two(views[one], views[another]) for one in group for another in other):
            continue
        group += other
        for member in other:
            groups[member] = group
    return [[views[member] for member in group] for index, group in enumerate(groups) if group[0] == index]


def _are_two(view: View, other: View) -> bool:
    """Return whether one tile shows two objects, such as a whole and its part, even if both agree with a third view."""
    return view.window == other.window and view.crop.iou(other.crop) < _SAME


def _same_in_strip(views: Sequence[View]) -> Iterator[tuple[float, int, int]]:
    """Yield the IoU in the strip, and the indices, of views of two tiles whose masks agree where both tiles look.

    Strips that are not wider than the views' tolerance say nothing.
    """
    earlier = MaskIndex()
    for index, view in enumerate(views):
        for other_index in earlier.near(view.crop):
            other = views[other_index]
            strip = common(view.window, other.window)
            narrow = min(strip[2] - strip[0], strip[3] - strip[1]) <= max(view.tolerance, other.tolerance)
            if other.window == view.window or narrow:
                continue
            both = view.crop.intersection(other.crop)
            union = np.count_nonzero(view.crop.inside(strip)) + np.count_nonzero(other.crop.inside(strip)) - both
            if both and both >= _SAME * union:
                yield both / union, index, other_index
        earlier.add(view.crop)


def _merge(views: Sequence[View], image: Window) -> MaskCrop:
    """Return the union of views; where two tiles overlap, each decides up to the middle of the strip.

    Of views in the same tile, the first decides.
    """
    boxes = np.array([view.crop.box for view in views])
    left, top = (int(side) for side in boxes[:, :2].min(axis=0))
    right, bottom = (int(side) for side in boxes[:, 2:].max(axis=0))
    merged = np.zeros((bottom - top, right - left), bool)
    nearest = np.full(merged.shape, -1, np.int32)  # distance from the border of the tile that decides so far
    for view in views:
        x1, y1, x2, y2 = window = common(view.window, (left, top, right, bottom))
        distance = np.minimum(
            _from_border(y1, y2, view.window[1::2], image[1::2])[:, np.newaxis],
            _from_border(x1, x2, view.window[0::2], image[0::2]),
        )
        place = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
        decides = distance > nearest[place]
        nearest[place][decides] = distance[decides]
        mask = np.zeros(decides.shape, bool)
        a1, b1, a2, b2 = view.crop.box
        mask[b1 - y1 : b2 - y1, a1 - x1 : a2 - x1] = view.crop.inside(window)
        merged[place] = np.where(decides, mask, merged[place])
    return MaskCrop.of(merged, left, top)


def _from_border(start: int, stop: int, window: tuple[int, ...], image: tuple[int, ...]) -> np.ndarray:
    """Return how far the pixels ``start`` to ``stop`` of an axis are from the window's borders inside the image."""
    pixels = np.arange(start, stop, dtype=np.int32)
    far = np.full(len(pixels), np.iinfo(np.int32).max, np.int32)
    from_start = far if window[0] == image[0] else pixels - window[0]
    from_stop = far if window[1] == image[1] else window[1] - 1 - pixels
    return np.minimum(from_start, from_stop)


def _fits(view: View, window: Window, image: Window) -> bool:
    """Return whether a tile shows all of a mask, and what surrounds it."""
    return all(
        window[side] == image[side] or sign * (view.crop.box[side] - window[side]) > view.tolerance
        for side, sign in enumerate((1, 1, -1, -1))
    )
