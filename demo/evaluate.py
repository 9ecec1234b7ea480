"""How good a network is at drawn scenes that it was not trained on.

    python -m demo.evaluate demo/sam3_shapes.pt

Prints Markdown tables. All prompts go through the plugin in an Ikomia workflow, except example boxes, which the plugin
does not have: these go through the sam3 package's own processor.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import GeometricPrompt, TextPrompt
from sam3_engine.runtime import importing_sam3

from .pillow_scenes import draw_with_pillow
from .plugin import Plugin
from .questions import (
    EXEMPLAR_KINDS,
    OUTLINE_KINDS,
    POSITIVE,
    ExemplarQuestion,
    OutlineQuestion,
    ask_by_exemplar,
    ask_for_absent,
    ask_for_outline,
    ask_for_present,
)
from .scenes import Region, Scene, draw_scene

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor

HELD_OUT_SEED = 10_000_000
SIZES = ((448, 448), (640, 448), (448, 640), (800, 400))  # width and height
PRESENT_PHRASES, ABSENT_PHRASES = 3, 2  # asked of each scene
MATCH_IOU = 0.5
TIMED_RUNS = 30

Mask = np.ndarray  # (H, W) bool


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two boolean masks."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


@dataclass
class Detections:
    """What was found against what is there."""

    matched: int = 0
    found: int = 0
    true: int = 0
    ious: list[float] = field(default_factory=list)

    def add(self, masks: list[Mask], answers: list[Region]) -> None:
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

    @property
    def precision(self) -> float:
        """Of what was found, how much is right; 1 if nothing was found."""
        return self.matched / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Of what is there, how much was found; 1 if nothing is there."""
        return self.matched / self.true if self.true else 1.0

    @property
    def mean_iou(self) -> float:
        """Of the matches."""
        return float(np.mean(self.ious)) if self.ious else 0.0


@dataclass
class Outlines:
    """IoUs of what points and boxes gave."""

    single: list[float] = field(default_factory=list)
    best_of_three: list[float] = field(default_factory=list)

    def add(self, question: OutlineQuestion, single: Mask, three: list[Mask]) -> None:
        """Note the masks for one question."""
        self.single.append(iou(single, question.answer.mask))
        self.best_of_three.append(max(iou(candidate, question.answer.mask) for candidate in three))


@dataclass
class Results:
    """The measures of one network on one set of scenes.

    Attributes:
        found: for each kind of phrase or example.
        absent_asked, absent_answered: phrases for what is not there, and those that found something.
        outlines: for each kind of point and box prompt.
    """

    found: dict[str, Detections] = field(default_factory=dict)
    absent_asked: int = 0
    absent_answered: int = 0
    outlines: dict[str, Outlines] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = ["| all instances of | asked | precision | recall | mean IoU of matches |", "|---|---|---|---|---|"]
        lines += [
            f"| {kind} | {rows.true} | {rows.precision:.3f} | {rows.recall:.3f} | {rows.mean_iou:.3f} |"
            for kind, rows in self.found.items()
        ]
        share = self.absent_answered / max(1, self.absent_asked)
        lines += ["", f"Phrases for what is not there: {share:.1%} of {self.absent_asked} found something."]
        lines += ["", "| one object by | asked | mean IoU | best of three |", "|---|---|---|---|"]
        lines += [
            f"| {kind} | {len(rows.single)} | {np.mean(rows.single):.3f} | {np.mean(rows.best_of_three):.3f} |"
            for kind, rows in self.outlines.items()
        ]
        return "\n".join(lines)


class Examinee:
    """A checkpoint in the plugin (and for example boxes in the package's processor), asked one question at a time."""

    def __init__(self, weights: Path, *, cuda: bool = False) -> None:
        self._plugin = Plugin(model_weight_file=weights, cuda=cuda)
        device = torch.device("cuda" if cuda else "cpu")
        self._model = load_model(weights, device)
        resolution = self._model.network.inst_interactive_predictor.model.image_size
        with self._model.running():
            self._processor = Sam3Processor(self._model.network, resolution=resolution, device=device)

    def find(self, image: np.ndarray, phrase: str) -> list[Mask]:
        """The instances of a phrase."""
        (output,) = self._plugin.segment(image, input_text=phrase)
        numbers = output.get_mask()
        return [numbers == number for number in range(1, len(output.get_class_names()))]

    def outline(self, image: np.ndarray, question: OutlineQuestion, *, multimask: bool) -> list[Mask]:
        """One mask for a point or box prompt, or three."""
        points = {"input_point": question.points.tolist(), "input_point_label": question.labels.tolist()}
        prompt: dict[str, Any] = points if len(question.points) else {}
        if question.box:
            prompt["input_box"] = [list(question.box)]
        outputs = self._plugin.segment(image, multimask_output=multimask, **prompt)
        return [output.get_mask() == 1 for output in outputs]

    def find_like(self, image: np.ndarray, question: ExemplarQuestion) -> list[Mask]:
        """The instances that example boxes ask for."""
        with self._model.running():
            state = self._processor.set_image(torch.from_numpy(image).permute(2, 0, 1))
            if question.phrase:
                self._processor.set_text_prompt(question.phrase, state)
            height, width = image.shape[:2]
            for box, label in zip(question.boxes, question.labels, strict=True):
                x1, y1, x2, y2 = np.array(box) / [width, height, width, height]
                centred = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
                state = self._processor.add_geometric_prompt(centred, label == POSITIVE, state)
        return list(state["masks"][:, 0].cpu().numpy())


def held_out_scenes(count: int, random: np.random.Generator) -> Iterable[Scene]:
    """Scenes of the training's own generator."""
    for number in range(count):
        yield draw_scene(random, *SIZES[number % len(SIZES)])


def pillow_scenes(count: int, random: np.random.Generator) -> Iterable[Scene]:
    """Scenes of another renderer."""
    for _ in range(count):
        yield draw_with_pillow(random)


def evaluate(examinee: Examinee, scenes: Iterable[Scene], random: np.random.Generator) -> Results:
    """Ask about scenes: of each some phrases, and a question of each kind of outline and example."""
    results = Results(found={"phrases": Detections()}, outlines={kind: Outlines() for kind in OUTLINE_KINDS})
    for scene in scenes:
        for _ in range(PRESENT_PHRASES):
            question = ask_for_present(random, scene)
            masks = examinee.find(scene.image, question.phrase)
            for kind in ("phrases", f"phrases: {question.kind}"):
                results.found.setdefault(kind, Detections()).add(masks, question.answers)
        for _ in range(ABSENT_PHRASES):
            results.absent_asked += 1
            results.absent_answered += bool(examinee.find(scene.image, ask_for_absent(random, scene).phrase))
        for kind, measure in results.outlines.items():
            outline = ask_for_outline(random, scene, kind)
            (single,) = examinee.outline(scene.image, outline, multimask=False)
            measure.add(outline, single, examinee.outline(scene.image, outline, multimask=True))
        for kind in EXEMPLAR_KINDS:
            shown = ask_by_exemplar(random, scene, kind)
            results.found.setdefault(kind, Detections()).add(examinee.find_like(scene.image, shown), shown.answers)
    results.found = dict(sorted(results.found.items(), key=lambda row: (row[0] in EXEMPLAR_KINDS, row[0])))
    return results


def milliseconds(weights: Path) -> dict[str, float]:
    """Median times on one CPU core, in the engine, of encoding an image and of asking about it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor = Predictor(load_model(weights, torch.device("cpu")))
        image = draw_scene(np.random.default_rng(HELD_OUT_SEED)).image
        embedding = predictor.encode_image(image)
        point = GeometricPrompt(points=((100.0, 100.0),), point_labels=(1,))
        return {
            "encode an image": _median_milliseconds(lambda: predictor.encode_image(image)),
            "phrase": _median_milliseconds(lambda: predictor.segment(embedding, TextPrompt("star"))),
            "point": _median_milliseconds(lambda: predictor.segment(embedding, point)),
        }
    finally:
        torch.set_num_threads(threads)


def _median_milliseconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def main() -> None:
    """Evaluate the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scenes", type=int, default=330)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--cuda", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("ikomia").setLevel(logging.WARNING)  # else a line for each run
    examinee = Examinee(arguments.weights, cuda=arguments.cuda)
    for title, drawn in (("Scenes held out", held_out_scenes), ("Scenes of another renderer", pillow_scenes)):
        random = np.random.default_rng(arguments.seed)
        print(f"### {title}\n\n{evaluate(examinee, drawn(arguments.scenes, random), random)}\n", flush=True)
    print("### Time on one CPU core\n\n| step | ms |\n|---|---|")
    for step, median in milliseconds(arguments.weights).items():
        print(f"| {step} | {median:.0f} |")


if __name__ == "__main__":
    main()
