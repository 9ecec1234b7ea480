"""Segment everything: what is at each point of a grid.

The method is that of Segment Anything's automatic mask generator: three candidates for each point, of which those stay
that the network itself thinks well of and whose edges are clear; of masks that show the same, one stays. See "Fully
automatic stage" in the paper, https://arxiv.org/abs/2304.02643, and ``SamAutomaticMaskGenerator`` in
https://github.com/facebookresearch/segment-anything. Unlike there, duplicates are found by their masks, not by their
boxes, and masks that do not contain their point are dropped: where there is nothing, the network shows parts of what is
elsewhere.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .embedding import ImageEmbedding
from .nms import drop_duplicates
from .options import CANDIDATES, Options
from .prompts import UNNAMED, EverythingPrompt, Point
from .segments import Segment, by_descending_score
from .selection import duplicate_iou

if TYPE_CHECKING:
    from .click_head import ClickHead

_STABILITY_OFFSET = 1.0  # by which the logits may be off
_MOST_UNCOMPARED = 256  # masks; bounds the memory


def find_everything(
    head: ClickHead,
    embedding: ImageEmbedding,
    prompt: EverythingPrompt,
    options: Options,
    run: Callable[[Callable[[], list[Segment]]], list[Segment]],
    on_step: Callable[[], None],
    on_row: Callable[[], None],
) -> list[Segment]:
    """Return what is at the points of a grid, by descending score.

    Args:
        head: answers points.
        embedding: of the image, or of a part of it.
        prompt: the grid.
        options: the thresholds of the masks, and of the IoU of duplicates.
        run: runs the head, see :meth:`~.predictor.Predictor.ask`.
        on_step: called before each pass of several points.
        on_row: called after each row of the grid.
    """
    most_alike = duplicate_iou(prompt, options)
    found: list[Segment] = []
    compared = 0
    for row in prompt.rows:
        for points in _split(row, head.points_per_pass):
            on_step()
            found += run(functools.partial(_good_candidates, head, embedding, points, options))
        if len(found) - compared > _MOST_UNCOMPARED:
            found = drop_duplicates(found, most_alike)
            compared = len(found)
        on_row()
    found = drop_duplicates(found, most_alike)
    return head.fill_holes([found[index] for index in by_descending_score(found)])


def _split(points: Sequence[Point], size: int) -> Iterator[Sequence[Point]]:
    for start in range(0, len(points), size):
        yield points[start : start + size]


def _good_candidates(
    head: ClickHead, embedding: ImageEmbedding, points: Sequence[Point], options: Options
) -> list[Segment]:
    """Return the candidates for several points that pass the thresholds."""
    mask_logits, scores = head.candidates(embedding, points)
    of_point = np.repeat(np.array(points), CANDIDATES, axis=0)
    good = np.flatnonzero(scores >= options.predicted_iou_threshold)
    good = good[_contain(mask_logits[good], of_point[good])]
    good = good[_stability_scores(mask_logits[good]) >= options.stability_score_threshold]
    return [
        # a copy: views would keep all candidates in memory
        Segment(logits.clone(), embedding.width, embedding.height, float(score), UNNAMED)
        for logits, score in zip(head.to_device(mask_logits[good]), scores[good], strict=True)
    ]


def _contain(mask_logits: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return (N,) whether each mask (N, h, w) contains its point (N, 2), or one of the 8 logits around it."""
    count, height, width = mask_logits.shape
    columns, rows = (points * (width, height)).astype(int).T
    found = np.zeros(count, bool)
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        near_rows, near_columns = (rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)
        found |= mask_logits[np.arange(count), near_rows, near_columns] > 0
    return found


def _stability_scores(mask_logits: np.ndarray) -> np.ndarray:
    """Return (N,) how little each mask (N, h, w) changes if all logits are higher, or lower, by 1: 0..1.

    It is the IoU of the masks that result from cutting the logits off at +1 and at -1: the first lies in the second.
    """
    inner = np.count_nonzero(mask_logits > _STABILITY_OFFSET, axis=(1, 2))
    outer = np.count_nonzero(mask_logits > -_STABILITY_OFFSET, axis=(1, 2))
    return inner / np.maximum(1, outer)
