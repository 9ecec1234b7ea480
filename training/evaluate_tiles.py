"""Evaluate tiles on large scenes of many shapes that the network was not trained on.

    python -m training.evaluate_tiles demo/sam3_shapes.pt    # 20 minutes on two cores
    python -m training.evaluate_tiles demo/sam3_shapes.pt --smallest 40 --overlaps 0 0.2 0.5

Prints Markdown tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from sam3_engine.mask_crops import MaskCrop, Window
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor, open_predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.segments import Segment, crop_masks, crops_of
from sam3_engine.tiling import tile_image
from testbed.scenes import KINDS

from .evaluate import Share, best_pairs
from .large_scenes import STYLES, LargeScene, LargeShape, draw_large_scene

HELD_OUT_SEED = 30_000_000
SCENES = ((3000, 2000, 60), (3000, 2000, 120), (6000, 4000, 300))  # width, height and number of shapes
TILE = 672
SMALLEST_RADIUS = 0.06  # of the shapes that the network was trained on, relative to the sides of the image
OUTLINED = 12  # shapes per scene that are asked for by a box, and by a point
SAME = 0.5  # share of the smaller of two masks


@dataclass
class Results:
    """What was found in large scenes.

    Attributes:
        precision, recall: of all instances of phrases, at an IoU of 0.5.
        small: recall of shapes that are smaller in a tile than those of the training.
        single: shapes that a tile's border cuts and that exactly one mask shows.
        large: recall of shapes that are larger than a tile.
        apart: pairs of touching shapes of one kind that are found as two.
        cut_ious: of the masks of shapes that a tile's border cuts.
        ious, edges: of the masks for boxes and points, and how far their edges are from the true ones, in pixels: the
            mean of each.
    """

    precision: Share = field(default_factory=Share)
    recall: Share = field(default_factory=Share)
    small: Share = field(default_factory=Share)
    single: Share = field(default_factory=Share)
    large: Share = field(default_factory=Share)
    apart: Share = field(default_factory=Share)
    cut_ious: list[float] = field(default_factory=list)
    ious: dict[str, list[float]] = field(default_factory=lambda: {"box": [], "point": []})
    edges: dict[str, list[float]] = field(default_factory=lambda: {"box": [], "point": []})

    def add(self, scene: LargeScene, found: Sequence[MaskCrop], shapes: Sequence[LargeShape]) -> None:
        """Compare the masks for a phrase with the shapes that it names."""
        height, width = scene.image.shape[:2]
        tiles = tile_image(width, height, TILE, Options().tile_overlap)
        ious = np.array([[mask.iou(shape.crop) for shape in shapes] for mask in found]).reshape(len(found), len(shapes))
        pairs = {answer: (mask, iou) for mask, answer, iou in best_pairs(ious)}
        matched = {mask for mask, _ in pairs.values()}
        for mask in range(len(found)):
            self.precision.add(mask in matched)
        for number, shape in enumerate(shapes):
            is_found = number in pairs
            self.recall.add(is_found)
            if shape.diameter < 2 * SMALLEST_RADIUS * TILE:
                self.small.add(is_found)
            if shape.diameter > TILE:
                self.large.add(is_found)
            if any(_cuts(tile, shape.crop.box) for tile in tiles):
                showing = [mask.intersection(shape.crop) > SAME * min(mask.area, shape.crop.area) for mask in found]
                self.single.add(sum(showing) == 1)
                self.cut_ious += [pairs[number][1]] if is_found else []
            other = None if shape.neighbor is None else scene.shapes[shape.neighbor]
            if other in shapes[:number]:
                self.apart.add(is_found and shapes.index(other) in pairs)

    def add_outline(self, kind: str, found: MaskCrop, shape: LargeShape) -> None:
        """Compare the mask for a box or a point with the shape that it marks."""
        self.ious[kind].append(found.iou(shape.crop))
        self.edges[kind].append(_edge_distance(found, shape.crop))

    def figures(self) -> list[str]:
        """Return the columns of a table."""
        outlines = [f"{np.mean(self.ious[kind]):.3f}; {np.median(self.edges[kind]):.1f} px" for kind in self.ious]
        shares = (self.precision, self.recall, self.small, self.single, self.large, self.apart)
        return [*map(str, shares), f"{np.mean(self.cut_ious):.3f}" if self.cut_ious else "-", *outlines]


COLUMNS = (
    "precision",
    "recall",
    "recall, small",
    "cut: exactly one",
    "larger than a tile",
    "touching: two",
    "cut: mean IoU",
    "box: mean IoU; edges off by",
    "point: mean IoU; edges off by",
)


def judge(predictor: Predictor, scenes: Iterable[LargeScene], options: Options, outlined: int = OUTLINED) -> Results:
    """Ask for every kind of shape by its name, and for some shapes by a box and by a point."""
    results = Results()
    for scene in scenes:
        segments = predictor.predict(scene.image, ConceptPrompt(KINDS), options)
        crops = _crops(segments)
        for kind in KINDS:
            found = [crop for crop, segment in zip(crops, segments, strict=True) if segment.label == kind]
            results.add(scene, found, [shape for shape in scene.shapes if shape.kind == kind])
        for shape in scene.shapes[:outlined]:
            point = middle_of(shape.crop)
            for kind, prompt in (
                ("box", GeometricPrompt(boxes=(shape.crop.box,))),
                ("point", GeometricPrompt(points=(point,), point_labels=(1,))),
            ):
                (outline,) = _crops(predictor.predict(scene.image, prompt, options))
                results.add_outline(kind, outline, shape)
    return results


def large_scenes(seed: int, scenes: Sequence[tuple[int, int, int]], style: str, smallest: int) -> Iterator[LargeScene]:
    """Yield scenes of these widths, heights and numbers of shapes."""
    random = np.random.default_rng(seed)
    for width, height, count in scenes:
        yield draw_large_scene(random, width, height, count, style, smallest)


def _crops(segments: Sequence[Segment]) -> list[MaskCrop]:
    return crops_of(segments) or crop_masks(segments, 0, 0)


def _cuts(tile: Window, box: Window) -> bool:
    """Return whether the border of a tile runs through a box."""
    x1, y1, x2, y2 = tile
    overlap = box[0] < x2 and x1 < box[2] and box[1] < y2 and y1 < box[3]
    return overlap and not (x1 <= box[0] and box[2] <= x2 and y1 <= box[1] and box[3] <= y2)


def middle_of(crop: MaskCrop) -> tuple[float, float]:
    """Return the point of a mask that is farthest from its edge."""
    distance = distance_transform_edt(np.pad(crop.mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    return (crop.box[0] + float(column), crop.box[1] + float(row))


def _edge_distance(one: MaskCrop, other: MaskCrop) -> float:
    """Return the mean distance between the edges of two masks in pixels, from both; infinite if one is empty."""
    if not (one.area and other.area):
        return float("inf")
    boxes = np.array([one.box, other.box])
    left, top = (int(side) for side in boxes[:, :2].min(axis=0))
    right, bottom = (int(side) for side in boxes[:, 2:].max(axis=0))
    edges = []
    for crop in (one, other):
        mask = np.zeros((bottom - top + 2, right - left + 2), bool)
        x1, y1, x2, y2 = crop.box
        mask[y1 - top + 1 : y2 - top + 1, x1 - left + 1 : x2 - left + 1] = crop.mask
        edges.append(mask & ~binary_erosion(mask))
    first, second = edges
    return float((distance_transform_edt(~second)[first].mean() + distance_transform_edt(~first)[second].mean()) / 2)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_tiles", description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument(
        "--overlaps", type=float, nargs="+", default=[0.2], help="values of tile_overlap (default: 0.2)"
    )
    parser.add_argument(
        "--smallest", type=int, default=80, help="diameter of the smallest shapes in pixels (default: 80)"
    )
    parser.add_argument(
        "--seed", type=int, default=HELD_OUT_SEED, help="seed of the scenes; training uses small numbers"
    )
    parser.add_argument("--cuda", action="store_true", help="run on the GPU")
    arguments = parser.parse_args()
    predictor = open_predictor(arguments.weights, cuda=arguments.cuda)
    for style in STYLES:
        print(f"### {style.capitalize()}, shapes of {arguments.smallest} to 900 px\n")
        print(f"| tiles | {' | '.join(COLUMNS)} |\n{'|---' * (1 + len(COLUMNS))}|", flush=True)
        without = {"none": Options()}
        tiles = {
            f"{TILE}, overlap {share:g}": Options(tile_size=TILE, tile_overlap=share) for share in arguments.overlaps
        }
        for title, options in {**without, **tiles}.items():
            scenes = large_scenes(arguments.seed, SCENES, style, arguments.smallest)
            print(f"| {title} | {' | '.join(judge(predictor, scenes, options).figures())} |", flush=True)
        print()


if __name__ == "__main__":
    main()
