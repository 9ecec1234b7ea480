"""Evaluate a network on synthetic scenes that it was not trained on.

    python -m training.evaluate demo/sam3_shapes.pt    # a quarter of an hour on two cores
    python -m training.evaluate demo/sam3_shapes.pt --input-sizes 252 336 504    # compare input sizes of the network
    python -m training.evaluate demo/sam3_shapes.pt --min-region-percents 0 0.1 1    # compare smallest regions

Prints Markdown tables. All prompts go through the plugin in an Ikomia workflow.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam3_engine.devices import choose_precision
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt, Prompt
from sam3_engine.segments import bounding_box
from testbed.plugin import Plugin, log_levels, masks_of
from testbed.scenes import Region, Scene, draw_scene, iou

from .pillow_scenes import draw_with_pillow
from .questions import (
    EXEMPLAR_KINDS,
    OUTLINE_KINDS,
    ExemplarQuestion,
    OutlineQuestion,
    ask_by_exemplar,
    ask_for_absent,
    ask_for_outline,
    ask_for_present,
    ask_for_two,
)

HELD_OUT_SEED = 10_000_000
SIZES = ((448, 448), (640, 448), (448, 640), (800, 400))  # width and height
PRESENT_PHRASES, ABSENT_PHRASES = 3, 2  # per scene
MATCH_IOU = 0.5
BOX_TOLERANCES = (3, 12)  # pixels
TIMED_RUNS = 30

Mask = np.ndarray  # (H, W) bool


@dataclass
class Share:
    """How many of how many."""

    good: int = 0
    all: int = 0

    def add(self, good: bool) -> None:
        """Count one more."""
        self.good += good
        self.all += 1

    def __str__(self) -> str:
        return f"{self.good / self.all:.3f} ({self.all})" if self.all else "-"


@dataclass
class Detections:
    """Counts of masks found and of objects present, over several questions.

    Attributes:
        questions: how many were asked.
        matched, found, true: matches, masks and objects.
        ious: of each match.
        box_errors: of each match, the largest distance in pixels between the same side of both bounding boxes.
    """

    questions: int = 0
    matched: int = 0
    found: int = 0
    true: int = 0
    ious: list[float] = field(default_factory=list)
    box_errors: list[float] = field(default_factory=list)

    def add(self, masks: list[Mask], answers: list[Region]) -> None:
        """Match masks to answers, best pairs first; a pair matches if its IoU is above :data:`MATCH_IOU`."""
        ious = np.array([[iou(mask, answer.mask) for answer in answers] for mask in masks])
        ious = ious.reshape(len(masks), len(answers))
        for mask, answer, matched_iou in best_pairs(ious):
            self.ious.append(matched_iou)
            sides = zip(bounding_box(masks[mask]), answers[answer].box, strict=True)
            self.box_errors.append(max(abs(side - true_side) for side, true_side in sides))
            self.matched += 1
        self.questions += 1
        self.found += len(masks)
        self.true += len(answers)

    @property
    def precision(self) -> float:
        """The share of masks that match an object; 1 if there are no masks."""
        return self.matched / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """The share of objects that are matched; 1 if there are no objects."""
        return self.matched / self.true if self.true else 1.0

    @property
    def mean_iou(self) -> float:
        """The mean IoU of the matches."""
        return float(np.mean(self.ious)) if self.ious else 0.0


def best_pairs(ious: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield pairs of a mask and an answer, best first, each at most once, and their IoU, above :data:`MATCH_IOU`.

    Args:
        ious: (masks, answers) of all pairs.
    """
    left = ious.copy()
    while left.size and left.max() > MATCH_IOU:
        mask, answer = np.unravel_index(left.argmax(), left.shape)
        yield int(mask), int(answer), float(left[mask, answer])
        left[mask, :], left[:, answer] = -1, -1


@dataclass
class Outlines:
    """IoUs of the masks for points and boxes."""

    single: list[float] = field(default_factory=list)
    best_of_three: list[float] = field(default_factory=list)

    def add(self, question: OutlineQuestion, single: Mask, three: list[Mask]) -> None:
        """Add the masks for a question."""
        self.single.append(iou(single, question.answer.mask))
        self.best_of_three.append(max(iou(candidate, question.answer.mask) for candidate in three))


@dataclass
class Results:
    """The measures of one network on one set of scenes.

    Attributes:
        found: by kind of phrase or example.
        absent_asked: number of phrases that describe nothing in the scene.
        absent_answered: how many of these returned a mask.
        outlines: by kind of point and box prompt.
    """

    found: dict[str, Detections] = field(default_factory=dict)
    absent_asked: int = 0
    absent_answered: int = 0
    outlines: dict[str, Outlines] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            "| all instances by | questions | instances | precision | recall | mean IoU of matches |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {kind} | {of_kind.questions} | {of_kind.true} | {of_kind.precision:.3f} | {of_kind.recall:.3f} "
            f"| {of_kind.mean_iou:.3f} |"
            for kind, of_kind in self.found.items()
        ]
        share = self.absent_answered / max(1, self.absent_asked)
        asked = f"{share:.1%} of {self.absent_asked} questions"
        lines += ["", f"For phrases that describe nothing in the scene, {asked} returned a mask."]
        lines += ["", "| one object by | questions | mean IoU | mean IoU, best of three |", "|---|---|---|---|"]
        lines += [
            f"| {kind} | {len(ious.single)} | {np.mean(ious.single):.3f} | {np.mean(ious.best_of_three):.3f} |"
            for kind, ious in self.outlines.items()
        ]
        return "\n".join(lines)


class Examinee:
    """A checkpoint in the plugin that answers one question at a time.

    Args:
        weights: path of the checkpoint.
        cuda: run on the GPU.
        parameters: of the plugin, for all questions.
    """

    def __init__(self, weights: Path, *, cuda: bool = False, **parameters: Any) -> None:
        self._plugin = Plugin(model_weight_file=weights, cuda=cuda, **parameters)

    def find(self, image: np.ndarray, phrase: str) -> list[Mask]:
        """Return the instances of a phrase."""
        (output,) = self._plugin.segment(image, input_text=phrase)
        return list(masks_of(output))

    def find_each(self, image: np.ndarray, phrases: list[str]) -> list[list[Mask]]:
        """Return the instances of each of several phrases, asked in a single run."""
        objects = self._plugin.segment(image, input_text=phrases, instance_output=True)[-1].get_objects()
        return [
            [found.mask.astype(bool) for found in objects if found.class_index == index]
            for index in range(len(phrases))
        ]

    def outline(self, image: np.ndarray, question: OutlineQuestion, *, multimask: bool) -> list[Mask]:
        """Return one mask for a point or box prompt, or three candidates."""
        points = {"input_point": question.points.tolist(), "input_point_label": question.labels.tolist()}
        prompt: dict[str, Any] = points if len(question.points) else {}
        if question.box:
            prompt["input_box"] = [list(question.box)]
        outputs = self._plugin.segment(image, multimask_output=multimask, **prompt)
        return [mask for output in outputs for mask in masks_of(output)]

    def find_like(self, image: np.ndarray, question: ExemplarQuestion) -> list[Mask]:
        """Return the instances that exemplar boxes ask for."""
        boxes = {"input_box": question.boxes, "input_box_label": question.labels}
        (output,) = self._plugin.segment(image, input_text=question.phrase or "", **boxes)
        return list(masks_of(output))


def held_out_scenes(count: int, random: np.random.Generator) -> Iterable[Scene]:
    """Yield new scenes from the generator that training uses."""
    for number in range(count):
        yield draw_scene(random, *SIZES[number % len(SIZES)])


def pillow_scenes(count: int, random: np.random.Generator) -> Iterable[Scene]:
    """Yield scenes from another renderer."""
    for _ in range(count):
        yield draw_with_pillow(random)


def evaluate(
    examinee: Examinee,
    scenes: Iterable[Scene],
    random: np.random.Generator,
    *,
    outline_kinds: Sequence[str] = OUTLINE_KINDS,
    exemplar_kinds: Sequence[str] = EXEMPLAR_KINDS,
) -> Results:
    """Ask questions about scenes and compare the answers with the truth.

    For each scene: several phrases, two phrases in a single run, and one question of each kind of outline and exemplar.
    Two phrases and negative boxes are skipped where all shapes of a scene are alike.
    """
    (random_of_two,) = random.spawn(1)
    results = Results(found={"phrases": Detections()}, outlines={kind: Outlines() for kind in outline_kinds})
    for scene in scenes:
        for _ in range(PRESENT_PHRASES):
            question = ask_for_present(random, scene)
            masks = examinee.find(scene.image, question.phrase)
            for kind in ("phrases", f"phrases: {question.kind}"):
                results.found.setdefault(kind, Detections()).add(masks, question.answers)
        two = ask_for_two(random_of_two, scene)
        for question, masks in zip(two, examinee.find_each(scene.image, [one.phrase for one in two]), strict=True):
            results.found.setdefault("phrases: two at once", Detections()).add(masks, question.answers)
        for _ in range(ABSENT_PHRASES):
            results.absent_asked += 1
            results.absent_answered += bool(examinee.find(scene.image, ask_for_absent(random, scene).phrase))
        for kind, measure in results.outlines.items():
            outline = ask_for_outline(random, scene, kind)
            (single,) = examinee.outline(scene.image, outline, multimask=False)
            measure.add(outline, single, examinee.outline(scene.image, outline, multimask=True))
        differing = not all(shape.is_like(scene.shapes[0]) for shape in scene.shapes)
        for kind in exemplar_kinds:
            if differing or "negative" not in kind:
                shown = ask_by_exemplar(random, scene, kind)
                results.found.setdefault(kind, Detections()).add(examinee.find_like(scene.image, shown), shown.answers)
    results.found = dict(sorted(results.found.items(), key=lambda row: (row[0] in EXEMPLAR_KINDS, row[0])))
    return results


def milliseconds(weights: Path) -> dict[str, float]:
    """Measure the engine on one CPU core: median times of encoding an image and of prompts, masks included."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor = Predictor(load_model(weights, torch.device("cpu")))
        image = draw_scene(np.random.default_rng(HELD_OUT_SEED)).image
        embedding = predictor.encode_image(image)
        # images and phrases that were seen before are cached
        unseen_images = (np.roll(image, shift, axis=1) for shift in itertools.count(1))
        unseen_phrases = (f"star {number}" for number in itertools.count(1))

        def ask(prompt: Prompt) -> object:
            return [segment.mask for segment in predictor.segment(embedding, prompt)]

        point = GeometricPrompt(points=((100.0, 100.0),), point_labels=(1,))
        return {
            "encode an image": _median_milliseconds(lambda: predictor.encode_image(next(unseen_images))),
            "phrase": _median_milliseconds(lambda: ask(ConceptPrompt((next(unseen_phrases),)))),
            "point": _median_milliseconds(lambda: ask(point)),
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


def with_progress(scenes: Iterable[Scene], count: int) -> Iterable[Scene]:
    """Yield the scenes, and print progress to stderr, away from the tables."""
    for number, scene in enumerate(scenes):
        print(f"\rscene {number + 1} of {count}", end="", file=sys.stderr, flush=True)
        yield scene
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)


def by_input_size(weights: Path, sizes: Iterable[int], cuda: bool, ask: Callable[[Examinee], Results]) -> str:
    """Return a table of results at several input sizes of the network.

    Args:
        weights: path of the checkpoint.
        sizes: sides of the network's input, in pixels.
        cuda: run on the GPU.
        ask: asks an examinee the same questions each time.
    """
    lines = _comparison_header("input")
    for size in sizes:
        results = ask(Examinee(weights, cuda=cuda, model_input_size=size))
        lines.append(f"| {size}×{size} | {_comparison_figures(results)} |")
    return "\n".join(lines)


def by_min_region(weights: Path, percents: Iterable[float], cuda: bool, ask: Callable[[Examinee], Results]) -> str:
    """Return a table of results with several values of ``min_region_percent``, and one of the errors of boxes.

    Args:
        weights: path of the checkpoint.
        percents: values of the parameter.
        cuda: run on the GPU.
        ask: asks an examinee the same questions each time.
    """
    lines = _comparison_header("`min_region_percent`")
    off = " | ".join(f"off by more than {pixels} pixels" for pixels in BOX_TOLERANCES)
    boxes = [
        f"| `min_region_percent` | phrases: boxes | {off} | largest error |",
        "|---" * (3 + len(BOX_TOLERANCES)) + "|",
    ]
    for percent in percents:
        results = ask(Examinee(weights, cuda=cuda, min_region_percent=percent))
        lines.append(f"| {percent:g} | {_comparison_figures(results, decimals=4)} |")
        errors = np.array(results.found["phrases"].box_errors)
        counts = " | ".join(str(np.count_nonzero(errors > pixels)) for pixels in BOX_TOLERANCES)
        boxes.append(f"| {percent:g} | {len(errors)} | {counts} | {errors.max(initial=0):.0f} |")
    return "\n".join([*lines, "", *boxes])


def _comparison_header(first_column: str) -> list[str]:
    kinds = " | ".join(f"{kind}: mean IoU" for kind in OUTLINE_KINDS)
    return [
        f"| {first_column} | phrases: precision | recall | mean IoU | {kinds} |",
        "|---" * (4 + len(OUTLINE_KINDS)) + "|",
    ]


def _comparison_figures(results: Results, decimals: int = 3) -> str:
    phrases = results.found["phrases"]
    figures = [phrases.precision, phrases.recall, phrases.mean_iou]
    figures += [float(np.mean(results.outlines[kind].single)) for kind in OUTLINE_KINDS]
    return " | ".join(f"{figure:.{decimals}f}" for figure in figures)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scenes", type=int, default=330, help="number of scenes from each renderer (default: 330)")
    parser.add_argument(
        "--seed", type=int, default=HELD_OUT_SEED, help="seed of the scenes; training uses small numbers"
    )
    parser.add_argument("--cuda", action="store_true", help="run on the GPU; times are still measured on the CPU")
    comparisons = parser.add_mutually_exclusive_group()
    comparisons.add_argument(
        "--input-sizes", type=int, nargs="+", help="compare these input sizes of the network instead"
    )
    comparisons.add_argument(
        "--min-region-percents",
        type=float,
        nargs="+",
        help="compare these values of min_region_percent instead",
    )
    arguments = parser.parse_args()
    if not arguments.weights.is_file():
        parser.error(f"the file {arguments.weights} does not exist")
    with log_levels(ikomia=logging.WARNING):  # Ikomia logs every run
        for title, source in (
            ("New scenes from the training generator", held_out_scenes),
            ("Scenes from another renderer", pillow_scenes),
        ):
            print(f"### {title}\n\n{_table(arguments, source)}\n", flush=True)
    if not (arguments.input_sizes or arguments.min_region_percents):
        _print_times(arguments.weights)


def _table(arguments: argparse.Namespace, source: Callable[[int, np.random.Generator], Iterable[Scene]]) -> str:
    def ask(examinee: Examinee, **kinds: Sequence[str]) -> Results:
        random = np.random.default_rng(arguments.seed)
        scenes = with_progress(source(arguments.scenes, random), arguments.scenes)
        return evaluate(examinee, scenes, random, **kinds)

    weights, cuda = arguments.weights, arguments.cuda
    if arguments.input_sizes:
        return by_input_size(weights, arguments.input_sizes, cuda, lambda examinee: ask(examinee, exemplar_kinds=()))
    if arguments.min_region_percents:
        percents = arguments.min_region_percents
        return by_min_region(weights, percents, cuda, lambda examinee: ask(examinee, exemplar_kinds=()))
    return str(ask(Examinee(weights, cuda=cuda)))


def _print_times(weights: Path) -> None:
    precision = str(choose_precision(torch.device("cpu"))).removeprefix("torch.")
    machine = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    print(f"### Time on one CPU core\n\n{machine}, {precision}, torch {torch.__version__}\n\n| step | ms |\n|---|---|")
    for step, median in milliseconds(weights).items():
        print(f"| {step} | {median:.0f} |")


if __name__ == "__main__":
    main()
