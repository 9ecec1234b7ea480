"""How good a network is at drawn scenes that it was not trained on.

    python -m demo.evaluate demo/sam3_shapes.pt

Prints a table. The scenes come from seeds that training does not use.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor, Segment
from sam3_engine.prompts import GeometricPrompt, TextPrompt
from sam3_engine.runtime import choose_device

from .questions import OUTLINE_KINDS, OutlineQuestion, ask_for_absent, ask_for_outline, ask_for_present
from .scenes import Region, draw_scene

HELD_OUT_SEED = 10_000_000
SIZES = ((448, 448), (640, 448), (448, 640), (800, 400))  # width and height
MATCH_IOU = 0.5


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


@dataclass
class Detections:
    """Counts of what a text prompt found against what is there."""

    matched: int = 0
    found: int = 0
    true: int = 0
    ious: list[float] = field(default_factory=list)

    def add(self, masks: list[np.ndarray], answers: list[Region]) -> None:
        """Match masks to answers, best pairs first; a pair counts above :data:`MATCH_IOU`."""
        ious = np.array([[iou(mask, answer.mask) for answer in answers] for mask in masks])
        ious = ious.reshape(len(masks), len(answers))
        while ious.size and ious.max() > MATCH_IOU:
            mask, answer = np.unravel_index(ious.argmax(), ious.shape)
            self.ious.append(float(ious[mask, answer]))
            self.matched += 1
            ious[mask, :], ious[:, answer] = -1, -1
        self.found += len(masks)
        self.true += len(answers)

    def __str__(self) -> str:
        precision, recall = self.matched / max(1, self.found), self.matched / max(1, self.true)
        return f"precision {precision:.3f}, recall {recall:.3f}, mean IoU of matches {np.mean(self.ious or [0]):.3f}"


@dataclass
class Outlines:
    """IoUs of what points and boxes gave."""

    single: list[float] = field(default_factory=list)
    single_acceptable: list[float] = field(default_factory=list)
    best_of_three: list[float] = field(default_factory=list)

    def add(self, question: OutlineQuestion, single: Segment, three: list[Segment]) -> None:
        """Note the masks for one question."""
        self.single.append(iou(single.mask, question.answer.mask))
        self.single_acceptable.append(max(iou(single.mask, region.mask) for region in question.acceptable))
        self.best_of_three.append(max(iou(candidate.mask, question.answer.mask) for candidate in three))

    def __str__(self) -> str:
        return (
            f"mean IoU {np.mean(self.single):.3f} (with any acceptable answer {np.mean(self.single_acceptable):.3f}), "
            f"best of three {np.mean(self.best_of_three):.3f}"
        )


def evaluate(predictor: Predictor, scenes: int, seed: int = HELD_OUT_SEED) -> dict[str, object]:
    """Ask a predictor about drawn scenes.

    Args:
        predictor: of a network that should know the shapes.
        scenes: how many to draw.
        seed: of the scenes and questions.

    Returns:
        Rows of the table: the kind of prompt, and its measure as something that prints as text.
    """
    random = np.random.default_rng(seed)
    present, outlines = Detections(), {kind: Outlines() for kind in OUTLINE_KINDS}
    absent_asked = absent_answered = 0
    for number in range(scenes):
        scene = draw_scene(random, *SIZES[number % len(SIZES)])
        embedding = predictor.encode_image(scene.image)
        for _ in range(3):
            question = ask_for_present(random, scene)
            segments = predictor.segment(embedding, TextPrompt(question.phrase))
            present.add([segment.mask for segment in segments], question.answers)
        for _ in range(2):
            absent_asked += 1
            absent_answered += bool(predictor.segment(embedding, TextPrompt(ask_for_absent(random, scene).phrase)))
        for kind, measure in outlines.items():
            outline = ask_for_outline(random, scene, kind)
            prompt = GeometricPrompt(
                (outline.box,) if outline.box else (),
                tuple((x, y) for x, y in outline.points.tolist()),
                tuple(outline.labels.tolist()),
            )
            (single,) = predictor.segment(embedding, prompt)
            measure.add(outline, single, predictor.segment(embedding, prompt, multimask=True))
    return {
        "text": present,
        "absent phrase": f"answered {absent_answered / max(1, absent_asked):.1%} of {absent_asked}",
        **outlines,
    }


def main() -> None:
    """Evaluate the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scenes", type=int, default=330)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--cuda", action="store_true")
    arguments = parser.parse_args()
    predictor = Predictor(load_model(arguments.weights, choose_device(arguments.cuda)))
    print("| prompt | measure |\n|---|---|")
    for prompt, measure in evaluate(predictor, arguments.scenes, arguments.seed).items():
        print(f"| {prompt} | {measure} |")


if __name__ == "__main__":
    main()
