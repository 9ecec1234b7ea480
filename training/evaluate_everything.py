"""Evaluate segmenting everything on synthetic scenes that the network was not trained on.

    python -m training.evaluate_everything demo/sam3_shapes.pt    # an hour on two cores
    python -m training.evaluate_everything demo/sam3_shapes.pt --thresholds 0.7 0.9 --thresholds 0.85 0.8

Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

from sam3_engine.embedding import ImageEmbedding
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor, open_predictor
from sam3_engine.prompts import EverythingPrompt, Point
from sam3_engine.segments import masks_of
from testbed.scenes import Region, Scene, iou

from .evaluate import Mask, Share, held_out_scenes, pillow_scenes, with_progress

HELD_OUT_SEED = 40_000_000
FOUND_IOU = 0.5


@dataclass
class Results:
    """What was found in scenes.

    Attributes:
        shapes: that a mask shows, at an IoU of at least 0.5.
        ious: of the best mask of each of these.
        dotted: shapes with a dot of which one mask shows the whole, and another one the dot.
        wrong: masks that show neither a shape, nor a dot, nor the ring around one.
        scenes: how many there were.
    """

    shapes: Share = field(default_factory=Share)
    ious: list[float] = field(default_factory=list)
    dotted: Share = field(default_factory=Share)
    wrong: Share = field(default_factory=Share)
    scenes: int = 0

    def add(self, scene: Scene, masks: list[Mask]) -> None:
        """Compare the masks of a scene with its regions."""
        self.scenes += 1
        is_right = np.zeros(len(masks), bool)
        for shape in scene.shapes:
            of_whole = _ious(masks, shape.whole)
            best = of_whole.max(initial=0.0)
            self.shapes.add(best >= FOUND_IOU)
            self.ious += [best] if best >= FOUND_IOU else []
            is_right |= of_whole >= FOUND_IOU
            if shape.dot:
                of_dot = _ious(masks, shape.dot)
                both = best >= FOUND_IOU and of_dot.max() >= FOUND_IOU
                self.dotted.add(both and of_whole.argmax() != of_dot.argmax())
                is_right |= (of_dot >= FOUND_IOU) | (_ious(masks, shape.ring) >= FOUND_IOU)
        for right in is_right.tolist():
            self.wrong.add(not right)

    def figures(self) -> list[str]:
        """Return the columns of a table."""
        mean = f"{np.mean(self.ious):.3f}" if self.ious else "-"
        return [str(self.shapes), mean, str(self.dotted), str(self.wrong), f"{self.wrong.all / self.scenes:.1f}"]


COLUMNS = ("shapes found", "mean IoU", "whole and dot", "wrong masks", "masks per scene")


def judge(
    predictor: Predictor, scenes: Iterable[Scene], prompt: EverythingPrompt, compared: Sequence[Options]
) -> list[Results]:
    """Segment everything in scenes, with each of several options."""
    results = [Results() for _ in compared]
    for scene in scenes:
        with _asking_once(predictor):
            for options, of_options in zip(compared, results, strict=True):
                segments = predictor.predict(scene.image, prompt, options)
                of_options.add(scene, [mask.view(np.bool_) for mask in masks_of(segments)])
    return results


@contextlib.contextmanager
def _asking_once(predictor: Predictor) -> Iterator[None]:
    """Remember the candidates of each point of one image: thresholds do not change them."""
    head = predictor._click_head
    assert head is not None
    ask = head.candidates
    known: dict[Sequence[Point], tuple[np.ndarray, np.ndarray]] = {}

    def remembered(embedding: ImageEmbedding, points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
        if points not in known:
            known[points] = ask(embedding, points)
        return known[points]

    with mock.patch.object(head, "candidates", remembered):
        yield


def _ious(masks: list[Mask], region: Region) -> np.ndarray:
    return np.array([iou(mask, region.mask) for mask in masks])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_everything", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scenes", type=int, default=330, help="number of scenes from each renderer (default: 330)")
    parser.add_argument("--points-per-side", type=int, default=32, help="of the grid (default: 32)")
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs=2,
        action="append",
        metavar=("PREDICTED_IOU", "STABILITY"),
        help="predicted_iou_threshold and stability_score_threshold; repeat to compare (default: those of Options)",
    )
    parser.add_argument(
        "--seed", type=int, default=HELD_OUT_SEED, help="seed of the scenes; training uses small numbers"
    )
    parser.add_argument("--cuda", action="store_true", help="run on the GPU")
    arguments = parser.parse_args()
    predictor = open_predictor(arguments.weights, cuda=arguments.cuda)
    prompt = EverythingPrompt(arguments.points_per_side)
    defaults = Options()
    thresholds = arguments.thresholds or [[defaults.predicted_iou_threshold, defaults.stability_score_threshold]]
    for title, source in (
        ("New scenes from the training generator", held_out_scenes),
        ("Scenes from another renderer", pillow_scenes),
    ):
        print(f"### {title}\n\n| predicted IoU | stability | {' | '.join(COLUMNS)} |")
        print("|---" * (2 + len(COLUMNS)) + "|", flush=True)
        compared = [
            Options(predicted_iou_threshold=predicted_iou, stability_score_threshold=stability)
            for predicted_iou, stability in thresholds
        ]
        scenes = with_progress(source(arguments.scenes, np.random.default_rng(arguments.seed)), arguments.scenes)
        for (predicted_iou, stability), results in zip(
            thresholds, judge(predictor, scenes, prompt, compared), strict=True
        ):
            print(f"| {predicted_iou:g} | {stability:g} | {' | '.join(results.figures())} |", flush=True)
        print()


if __name__ == "__main__":
    main()
