"""Segments, which the predictor returns, and their masks at the source image's size.

Importing this module imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .errors import quote
from .interpolation import masks_at_source_size
from .mask_crops import MaskCrop
from .memory import retry_without_caches
from .options import MAX_LABELS
from .prompts import Box

_MAX_MASK_PIXELS = 2**27  # bounds the memory of several masks


@dataclass(frozen=True, eq=False)
class Segment:
    """One segmented object.

    Its mask is either that of ``mask_logits`` or, with tiles, ``crop``; all segments of an image have the same kind.

    Attributes:
        mask_logits: (h, w) at the network's mask resolution, covering the whole image, in the network's dtype; or None.
        width, height: of the source image, in pixels.
        score: instances: SAM 3's confidence, 0..1. Points and boxes: its estimate of the mask's IoU, 0..1; that of SAM
            3.1 may be outside this range.
        label: the phrase, the category of the box, or "object".
        detected_box: the detector's (x1, y1, x2, y2) in source pixels, clipped to the image; instances without tiles
            only.
        crop: the mask at source size, or None.
    """

    mask_logits: torch.Tensor | None
    width: int
    height: int
    score: float
    label: str
    detected_box: Box | None = None
    crop: MaskCrop | None = None

    @property
    def mask(self) -> np.ndarray:
        """The mask (height, width) bool at source size. Computed on each access: many segments take little memory."""
        (mask,) = masks_of([self])
        return mask.view(np.bool_)

    @property
    def box(self) -> Box:
        """The box (x1, y1, x2, y2) in source pixels: the detected one, or that of the mask; all 0 if that is empty."""
        if self.crop is not None:
            x1, y1, x2, y2 = self.crop.box
            return (float(x1), float(y1), float(x2), float(y2))
        return self.detected_box or bounding_box(self.mask)


def label_map(
    segments: Sequence[Segment],
    width: int,
    height: int,
    classes: Sequence[str] | None = None,
    *,
    smallest_on_top: bool = False,
) -> np.ndarray:
    """Paint segments into one map: pixel value k for the k-th segment or class, 0 for background.

    Where segments overlap the higher score wins, of equal scores the earlier. Painting happens on the device of the
    mask logits; only the map is copied to the CPU.

    Args:
        segments: at most 255, or any number of them with ``classes``.
        width: of the source image, in pixels.
        height: of the source image, in pixels.
        classes: if given, number these labels instead of the segments. At most 255; every label must be one of them.
        smallest_on_top: where segments overlap, the smaller one wins instead, so that a part of a whole stays visible.

    Returns:
        (height, width) uint8.

    Raises:
        ValueError: 8 bits cannot number them, or a label is not one of ``classes``.
        DeviceMemoryError: the device ran out of memory, also after clearing the caches on it.
    """
    numbered, noun = (segments, "segments") if classes is None else (classes, "classes")
    if len(numbered) > MAX_LABELS:
        raise ValueError(f"{len(numbered)} {noun}: a label map can number at most {MAX_LABELS}.")
    if not segments:
        return np.zeros((height, width), np.uint8)
    values = range(1, len(segments) + 1) if classes is None else _class_numbers(segments, classes)

    def paint() -> np.ndarray:
        order = by_descending_score(segments)[::-1]
        if smallest_on_top:
            areas = areas_of(segments)
            order.sort(key=lambda index: -areas[index])
        return _paint_label_map(segments, values, order, width, height)

    return retry_without_caches(_device_of(segments), paint)


def _class_numbers(segments: Sequence[Segment], classes: Sequence[str]) -> list[int]:
    numbers = {label: number for number, label in enumerate(classes, 1)}
    unknown = next((segment.label for segment in segments if segment.label not in numbers), None)
    if unknown is not None:
        raise ValueError(f"label = {quote(unknown)}: this is not one of the classes.")
    return [numbers[segment.label] for segment in segments]


def _paint_label_map(
    segments: Sequence[Segment], values: Sequence[int], order: Sequence[int], width: int, height: int
) -> np.ndarray:
    """Paint segments in an order, each over those before it."""
    painted = torch.zeros((height, width), dtype=torch.uint8, device=_device_of(segments))
    masks = _masks_in_place([segments[index] for index in order], width, height)
    for index, (rows, columns, mask) in zip(order, masks, strict=True):
        painted[rows, columns].masked_fill_(mask, values[index])
    return painted.cpu().numpy()


def masks_of(segments: Sequence[Segment]) -> Iterator[np.ndarray]:
    """Yield the mask of each segment of an image, (height, width) uint8 with values 0 and 1.

    As in :func:`label_map`, painting happens on the device of the mask logits; masks are copied several at a time.

    Raises:
        DeviceMemoryError: the device ran out of memory, also after clearing the caches on it.
    """
    if not segments:
        return
    device, width, height = _device_of(segments), segments[0].width, segments[0].height
    block_size = max(1, _MAX_MASK_PIXELS // (width * height))
    for start in range(0, len(segments), block_size):
        block = segments[start : start + block_size]
        yield from retry_without_caches(device, functools.partial(_paint_masks, block, width, height))


def _paint_masks(segments: Sequence[Segment], width: int, height: int) -> np.ndarray:
    """Return (segments, height, width) uint8."""
    painted = torch.zeros((len(segments), height, width), dtype=torch.uint8, device=_device_of(segments))
    masks = _masks_in_place(segments, width, height)
    for whole, (rows, columns, mask) in zip(painted, masks, strict=True):
        whole[rows, columns] = mask
    return painted.cpu().numpy()


def crop_masks(segments: Sequence[Segment], left: int, top: int) -> list[MaskCrop]:
    """Return the mask of each segment of a part of an image, in pixels of the image.

    Args:
        segments: of the part.
        left: x of the part's first column in the image.
        top: y of its first row.

    Raises:
        DeviceMemoryError: the device ran out of memory, also after clearing the caches on it.
    """
    if not segments:
        return []
    return retry_without_caches(_device_of(segments), lambda: list(_crop_masks(segments, left, top)))


def _crop_masks(segments: Sequence[Segment], left: int, top: int) -> Iterator[MaskCrop]:
    waiting: list[tuple[slice, slice, torch.Tensor]] = []
    for placed in _masks_in_place(segments, segments[0].width, segments[0].height):
        if waiting and sum(mask.numel() for *_, mask in (*waiting, placed)) > _MAX_MASK_PIXELS:
            yield from _copied(waiting, left, top)
            waiting = []
        waiting.append(placed)
    yield from _copied(waiting, left, top)


def _copied(masks: Sequence[tuple[slice, slice, torch.Tensor]], left: int, top: int) -> Iterator[MaskCrop]:
    # all at once: to wait for a GPU for each would take longer than the rest
    flat = torch.cat([mask.flatten() for *_, mask in masks]).cpu().numpy()
    start = 0
    for rows, columns, mask in masks:
        stop = start + mask.numel()
        yield MaskCrop.of(flat[start:stop].reshape(mask.shape), left + columns.start, top + rows.start)
        start = stop


def areas_of(segments: Sequence[Segment]) -> list[int]:
    """Return the number of pixels of each segment's mask at source size, of segments of one image.

    Counting happens on the device of the mask logits, one mask at a time.
    """
    if not segments:
        return []
    masks = _masks_in_place(segments, segments[0].width, segments[0].height)
    counts = [torch.count_nonzero(mask) for _, _, mask in masks]  # sum() is slower for booleans
    return torch.stack(counts).tolist()  # all at once: to wait for a GPU for each would take longer than the rest


def logits_of(segments: Sequence[Segment]) -> list[torch.Tensor]:
    """Return the mask logits of each segment; none if their masks are crops."""
    return [segment.mask_logits for segment in segments if segment.mask_logits is not None]


def crops_of(segments: Sequence[Segment]) -> list[MaskCrop]:
    """Return the crop of each segment; none if their masks are logits."""
    return [segment.crop for segment in segments if segment.crop is not None]


def _masks_in_place(
    segments: Sequence[Segment], width: int, height: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield for each segment the rows and columns that its mask may cover, and the mask there, bool."""
    for crop in crops_of(segments):
        x1, y1, x2, y2 = crop.box
        yield slice(y1, y2), slice(x1, x2), torch.from_numpy(crop.mask)
    if logits := logits_of(segments):
        yield from masks_at_source_size(logits, width, height)


def _device_of(segments: Sequence[Segment]) -> torch.device:
    return next((logits.device for logits in logits_of(segments)), torch.device("cpu"))


def bounding_box(mask: np.ndarray) -> Box:
    """Return the box (x1, y1, x2, y2) of the nonzero pixels of a mask (height, width); all 0 if there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def by_descending_score(segments: Sequence[Segment]) -> list[int]:
    """Return the indices of segments, best first; equal scores keep their order."""
    return sorted(range(len(segments)), key=lambda index: -segments[index].score)


def best(segments: Sequence[Segment], count: int) -> list[int]:
    """Return the indices of the ``count`` best segments, all if there are fewer, in the order of ``segments``."""
    return sorted(by_descending_score(segments)[:count])
