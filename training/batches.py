"""Batches of synthetic scenes with prompts and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional

from sam3_engine.architecture import Architecture
from testbed.scenes import COLORS, DOT_COLORS, KINDS, Region, Scene, draw_scene

from .questions import (
    EXEMPLAR_KINDS,
    OUTLINE_KINDS,
    OutlineQuestion,
    ask_by_exemplar,
    ask_for_absent,
    ask_for_outline,
    ask_for_present,
)

DETECTOR_PROMPTS_PER_SCENE = 2
OUTLINES_PER_SCENE = {"point": 5, "points": 2, "box": 4, "box and point": 3}
WITH_EXEMPLARS = 0.25  # share of the detector's prompts; the others are phrases only
ABSENT = 0.3  # of the prompts that are phrases only, the share that names nothing in the scene
DOTS = 0.2  # of the same prompts, the share about dots; more than in the evaluation, since many scenes have no dot
EXEMPLAR_SHARES = dict(zip(EXEMPLAR_KINDS, (0.35, 0.15, 0.2, 0.3), strict=True))
NO_PHRASE = "visual"  # the package's own text for exemplar boxes without a phrase
NOTHING = -100  # PyTorch's cross entropy ignores this index

BOX_CORNERS = (2, 3)  # labels of a box's corners, which the mask decoder reads as points


@dataclass(frozen=True)
class DenseTargets:
    """What is at each position of a feature map, for B scenes.

    Attributes:
        object: (B, side, side) 0..1, the share that any shape covers.
        dots: (B, D, side, side) 0..1, the share that a dot of each of DOT_COLORS covers.
        kind: (B, side, side) index in KINDS of the shape there, or NOTHING.
        color: (B, side, side) index in COLORS of the shape there, or NOTHING.
        box: (B, 4, side, side) the box of that shape, x1, y1, x2, y2 in 0..1.
    """

    object: torch.Tensor
    dots: torch.Tensor
    kind: torch.Tensor
    color: torch.Tensor
    box: torch.Tensor


@dataclass(frozen=True)
class ShapeTargets:
    """All shapes of B scenes, at most M per scene.

    Attributes:
        boxes: for each scene, (n, 4) center, width and height in 0..1.
        kind: (B, M) index in KINDS, or NOTHING where a scene has fewer shapes.
        color: (B, M) index in COLORS, or NOTHING where a scene has fewer shapes.
    """

    boxes: list[torch.Tensor]
    kind: torch.Tensor
    color: torch.Tensor


@dataclass(frozen=True)
class DetectorPrompt:
    """A phrase with exemplar boxes.

    Attributes:
        scene: index of the scene in the batch.
        phrase: as the text encoder reads it.
        boxes: (n, 4) center, width and height in 0..1.
        labels: (n,) 1 positive, 0 negative.
        answers: indices of the correct regions in the batch.
    """

    scene: int
    phrase: str
    boxes: torch.Tensor
    labels: torch.Tensor
    answers: list[int]


@dataclass(frozen=True)
class OutlinePrompts:
    """Point and box prompts with the same number of points; a box counts as two.

    Attributes:
        scenes: (N,) indices of the scenes in the batch.
        points: (N, n, 2) x and y in 0..1.
        labels: (N, n) 1 foreground, 0 background, or :data:`BOX_CORNERS`.
        answers: (N,) indices of the correct regions in the batch.
        acceptable: for each prompt, the indices of all plausible regions in the batch.
    """

    scenes: torch.Tensor
    points: torch.Tensor
    labels: torch.Tensor
    answers: torch.Tensor
    acceptable: list[list[int]]


@dataclass(frozen=True)
class Batch:
    """B scenes with prompts and targets.

    Attributes:
        images: (B, 3, resolution, resolution) uint8 RGB.
        dense: targets at the resolution of the masks and of the image tokens.
        shapes: all shapes of the scenes.
        masks: (R, side, side) 0..1, the coverage of every region that prompts ask for, at the resolution of the masks.
        boxes: (R, 4) the boxes of these regions: center, width and height in 0..1.
        detector_prompts: phrases and exemplar boxes.
        outlines: points and boxes, for the mask decoder.
    """

    images: torch.Tensor
    dense: tuple[DenseTargets, DenseTargets]
    shapes: ShapeTargets
    masks: torch.Tensor
    boxes: torch.Tensor
    detector_prompts: list[DetectorPrompt]
    outlines: list[OutlinePrompts]


class Batches(torch.utils.data.Dataset[Batch]):
    """An endless sequence of batches; each depends only on the seed and on its index."""

    def __init__(self, architecture: Architecture, seed: int, scenes: int, *, prompts: bool) -> None:
        """Make batches of ``scenes`` scenes; if ``prompts`` is False, they have only dense targets."""
        self.architecture, self.seed, self.scenes, self.prompts = architecture, seed, scenes, prompts

    def __getitem__(self, number: int) -> Batch:
        random = np.random.default_rng([self.seed, number])
        resolution, grid = self.architecture.resolution, self.architecture.grid
        scenes = [_scene(random, resolution) for _ in range(self.scenes)]
        regions = _Regions(4 * grid)
        detector_prompts, outlines = [], []
        if self.prompts:
            for k, scene in enumerate(scenes):
                detector_prompts += _detector_prompts(random, k, scene, regions)
                outlines += [
                    (k, scene, ask_for_outline(random, scene, kind))
                    for kind in OUTLINE_KINDS
                    for _ in range(OUTLINES_PER_SCENE[kind])
                ]
        grouped = _grouped_outlines(outlines, regions)
        return Batch(
            images=torch.stack([_resized(scene.image, resolution) for scene in scenes]),
            dense=(_dense_targets(scenes, 4 * grid), _dense_targets(scenes, grid)),
            shapes=_shape_targets(scenes),
            masks=regions.masks,
            boxes=regions.boxes,
            detector_prompts=detector_prompts,
            outlines=grouped,
        )


def _scene(random: np.random.Generator, resolution: int) -> Scene:
    """Draw a scene with as many pixels as the network's input, and a random aspect ratio."""
    aspect = np.exp(random.uniform(-np.log(2), np.log(2))) if random.random() < 0.75 else 1.0
    width = round(resolution * np.sqrt(aspect))
    return draw_scene(random, width, round(resolution**2 / width))


def _resized(image: np.ndarray, resolution: int) -> torch.Tensor:
    """Resize an image to (3, resolution, resolution), as the predictor's preprocessing does."""
    return functional.resize(torch.from_numpy(image).permute(2, 0, 1), [resolution, resolution], antialias=True)


def _shrunk(coverage: np.ndarray, side: int) -> torch.Tensor:
    """Downsample coverage to (side, side) by averaging."""
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(coverage)[None], side)[0]


def _relative_corners(boxes: Sequence[Sequence[float]], scene: Scene) -> torch.Tensor:
    """Convert boxes x1, y1, x2, y2 from pixels to 0..1."""
    height, width = scene.image.shape[:2]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / torch.tensor([width, height, width, height])


def _relative(boxes: Sequence[Sequence[float]], scene: Scene) -> torch.Tensor:
    """Convert boxes x1, y1, x2, y2 in pixels to center, width and height in 0..1."""
    return box_convert(_relative_corners(boxes, scene), "xyxy", "cxcywh")


class _Regions:
    """The regions that a batch asks for, without duplicates."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._numbers: dict[Region, int] = {}
        self._masks: list[torch.Tensor] = []
        self._boxes: list[torch.Tensor] = []

    def number(self, region: Region, scene: Scene) -> int:
        """Return the index of a region; add the region if it is new."""
        if region not in self._numbers:
            self._numbers[region] = len(self._numbers)
            self._masks.append(_shrunk(region.coverage, self._side))
            self._boxes.append(_relative([region.box], scene)[0])
        return self._numbers[region]

    @property
    def masks(self) -> torch.Tensor:
        return torch.stack(self._masks) if self._masks else torch.zeros(0, self._side, self._side)

    @property
    def boxes(self) -> torch.Tensor:
        return torch.stack(self._boxes) if self._boxes else torch.zeros(0, 4)


def _detector_prompts(
    random: np.random.Generator, number: int, scene: Scene, regions: _Regions
) -> list[DetectorPrompt]:
    prompts = []
    for _ in range(DETECTOR_PROMPTS_PER_SCENE):
        if random.random() < WITH_EXEMPLARS:
            kind = random.choice(list(EXEMPLAR_SHARES), p=list(EXEMPLAR_SHARES.values()))
            shown = ask_by_exemplar(random, scene, kind)
            phrase, answers = shown.phrase or NO_PHRASE, shown.answers
            boxes, labels = _relative(shown.boxes, scene), torch.tensor(shown.labels)
        else:
            ask = ask_for_absent if random.random() < ABSENT else ask_for_present
            question = ask(random, scene, DOTS)
            phrase, answers = question.phrase, question.answers
            boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
        numbers = [regions.number(region, scene) for region in answers]
        prompts.append(DetectorPrompt(number, phrase, boxes, labels, numbers))
    return prompts


def _grouped_outlines(questions: list[tuple[int, Scene, OutlineQuestion]], regions: _Regions) -> list[OutlinePrompts]:
    """Group questions by their number of points: the mask decoder takes prompts of equal length."""
    groups: dict[int, list[tuple[int, Scene, OutlineQuestion]]] = {}
    for asked in questions:
        question = asked[2]
        groups.setdefault(len(question.points) + (2 if question.box else 0), []).append(asked)
    return [
        OutlinePrompts(
            scenes=torch.tensor([number for number, _, _ in group]),
            points=torch.stack([_points(question, scene) for _, scene, question in group]),
            labels=torch.stack([_labels(question) for _, _, question in group]),
            answers=torch.tensor([regions.number(question.answer, scene) for _, scene, question in group]),
            acceptable=[
                [regions.number(region, scene) for region in question.acceptable] for _, scene, question in group
            ],
        )
        for group in groups.values()
    ]


def _points(question: OutlineQuestion, scene: Scene) -> torch.Tensor:
    """Return the points (n, 2) in 0..1, the corners of the box first, as the package orders them."""
    height, width = scene.image.shape[:2]
    corners = np.array(question.box or (), float).reshape(-1, 2)
    return torch.from_numpy(np.concatenate([corners, question.points]) / [width, height]).float()


def _labels(question: OutlineQuestion) -> torch.Tensor:
    """Return the labels (n,) of the points of :func:`_points`."""
    return torch.tensor([*(BOX_CORNERS if question.box else ()), *question.labels.tolist()], dtype=torch.int32)


def _dense_targets(scenes: list[Scene], side: int) -> DenseTargets:
    maps: list[list[torch.Tensor]] = []
    for scene in scenes:
        coverages = torch.stack([_shrunk(shape.whole.coverage, side) for shape in scene.shapes])
        dots = torch.zeros(len(DOT_COLORS), side, side)
        for shape in scene.shapes:
            if shape.dot:
                dots[DOT_COLORS.index(str(shape.dot_color))] += _shrunk(shape.dot.coverage, side)
        most, shape_there = coverages.max(dim=0)
        kinds = torch.tensor([KINDS.index(shape.kind) for shape in scene.shapes])[shape_there]
        colors = torch.tensor([COLORS.index(shape.color) for shape in scene.shapes])[shape_there]
        boxes = _relative_corners([shape.whole.box for shape in scene.shapes], scene)
        nowhere = most < 0.4
        maps.append(
            [
                coverages.sum(dim=0).clamp(max=1),
                dots,
                kinds.masked_fill(nowhere, NOTHING),
                colors.masked_fill(nowhere, NOTHING),
                boxes[shape_there].permute(2, 0, 1),
            ]
        )
    return DenseTargets(*(torch.stack(of_all) for of_all in zip(*maps, strict=True)))


def _shape_targets(scenes: list[Scene]) -> ShapeTargets:
    kinds = [torch.tensor([KINDS.index(shape.kind) for shape in scene.shapes]) for scene in scenes]
    colors = [torch.tensor([COLORS.index(shape.color) for shape in scene.shapes]) for scene in scenes]
    return ShapeTargets(
        boxes=[_relative([shape.whole.box for shape in scene.shapes], scene) for scene in scenes],
        kind=pad_sequence(kinds, batch_first=True, padding_value=NOTHING),
        color=pad_sequence(colors, batch_first=True, padding_value=NOTHING),
    )
