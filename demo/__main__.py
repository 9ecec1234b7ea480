"""Segment a picture through a real Ikomia workflow.

    make demo                                                  # a synthetic scene, with every kind of prompt
    make demo IMAGE=photograph.jpg TEXT=shoe WEIGHTS=sam3.pt   # your own picture, prompt and weights

Prints a table, and writes a picture per prompt and a sheet with all of them to demo/output.
"""

from __future__ import annotations

import argparse
import filecmp
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sam3_engine.errors import ImageError, message_of, quote
from sam3_engine.fitting import fit_prompt
from sam3_engine.prompts import ConceptPrompt, EverythingPrompt, GeometricPrompt, Prompt
from sam3_engine.settings import Settings
from testbed.plugin import Plugin, log_levels
from testbed.scenes import COLORS, KINDS, Region, Scene, draw_scene, iou, plural

from . import pictures

OUTPUT = Path(__file__).resolve().parent / "output"
SHAPES_NETWORK = Path(__file__).resolve().parent / "sam3_shapes.pt"
GATED_WEIGHTS = "facebook/sam3"
SCENE_SEED, SCENE_SIZE = 7946, (480, 360)  # has two shapes that are alike, and one with a dot
# the shapes network's masks are coarse, so those of small shapes have a low stability score: see docs/everything.md
SHAPES_STABILITY = 0.75
SHEET_COLUMNS, SHEET_CELL = 4, (480, 960)  # maximum width and height of a cell

SHAPES_NOTICE = f"""\
Weights: the small network of this repository, which was trained on synthetic scenes. It knows only colored shapes:
{", ".join(plural(kind) for kind in KINDS)}, in {", ".join(COLORS)}, and white or black dots on them.
"""
PHOTOGRAPH_NOTICE = f"""\
On other pictures, such as photographs, ITS MASKS MEAN NOTHING. Use SAM 3's own weights for these: WEIGHTS=sam3.pt
if you have the file, or WEIGHTS={GATED_WEIGHTS} to download them once you have access (see docs/weights.md). Without
make, use --weights.
"""

# command line options, the plugin's parameters that they set, and their values
PROMPT_OPTIONS = {
    "text": ("input_text", 'a noun phrase, or a list of noun phrases ["shoe", "person"]'),
    "point": ("input_point", "[[x, y], ...] in pixels"),
    "label": ("input_point_label", "[1, 0, ...], one label per point: 1 foreground, 0 background"),
    "box": ("input_box", "[[x1, y1, x2, y2], ...] in pixels"),
    "box_label": ("input_box_label", "[1, 0, ...], turns boxes into examples: 1 positive, 0 negative"),
    "multimask": ("multimask_output", "True: three candidate masks per object"),
    "points_per_side": ("points_per_side", "segment everything, by a grid of this many points on each side"),
}
GIVING = {"text", "point", "box", "points_per_side"}  # say what to segment
OTHER_OPTIONS = {
    "threshold": ("confidence_threshold", "keep instances of a text with a score above this; 0.5 by default"),
    "tile_size": ("tile_size", "side of square tiles in pixels, for small things in large images"),
    "cuda": ("cuda", "False: run on the CPU even if there is a GPU"),
}


@dataclass(frozen=True)
class Request:
    """A prompt for the plugin.

    Attributes:
        title: of its row in the table and of its picture.
        parameters: values of the plugin's parameters.
        truth: the correct regions, if known.
    """

    title: str
    parameters: dict[str, Any]
    truth: tuple[Region, ...] = ()

    @property
    def settings(self) -> Settings:
        """The parameters, checked."""
        return Settings().updated({name: str(value) for name, value in self.parameters.items()})

    @property
    def prompt(self) -> Prompt | None:
        """The prompt that the parameters describe."""
        chosen = self.settings.prompt()
        return chosen.prompt if chosen else None

    @property
    def gives_candidates(self) -> bool:
        """Whether the masks are candidates for one object."""
        return self.settings.multimask_output and isinstance(self.prompt, GeometricPrompt)

    @property
    def gives_phrases(self) -> bool:
        """Whether there are several phrases."""
        return isinstance(self.prompt, ConceptPrompt) and len(self.prompt.phrases) > 1


@dataclass(frozen=True)
class Found:
    """One object that the plugin found.

    Attributes:
        mask: (H, W) bool.
        color: RGB, 0..255.
        score: 0..1.
    """

    mask: np.ndarray
    color: Sequence[int]
    score: float


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Segment a picture through the plugin.")
    parser.add_argument(
        "--image", metavar="FILE", help="picture to segment (default: a synthetic scene of 480x360 pixels)"
    )
    for option, (parameter, meaning) in {**PROMPT_OPTIONS, **OTHER_OPTIONS}.items():
        parser.add_argument(f"--{option}", metavar="VALUE", help=f"the plugin's {parameter}: {meaning}")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help=f"weight file, or {GATED_WEIGHTS} for SAM 3's own weights (default: this repository's small network)",
    )
    given = {option: value for option, value in vars(parser.parse_args()).items() if value and value.strip()}
    if (given.keys() & {"image", *PROMPT_OPTIONS}) and not given.keys() & GIVING:
        parser.error(
            "say what to segment: TEXT=, POINT=, BOX= or POINTS_PER_SIDE= with make; else --text, --point, --box or "
            "--points_per_side"
        )

    weights = os.path.expanduser(given.get("weights", SHAPES_NETWORK))
    if os.path.isfile(weights) and filecmp.cmp(weights, SHAPES_NETWORK, shallow=False):
        print(SHAPES_NOTICE + (PHOTOGRAPH_NOTICE if "image" in given else ""))
    scene = draw_scene(np.random.default_rng(SCENE_SEED), *SCENE_SIZE)
    image = _read(given["image"]) if "image" in given else scene.image
    try:
        typed = {option: given[option] for option in PROMPT_OPTIONS if option in given}
        requests = [_typed_request(typed)] if typed else requests_about(scene)
        plugin = Plugin(
            model_weight_file="" if weights == GATED_WEIGHTS else weights,
            **{parameter: given[option] for option, (parameter, _) in OTHER_OPTIONS.items() if option in given},
        )
        # Ikomia logs every run, and the demo's engine repeats the warnings of the plugin's copy
        with log_levels(ikomia=logging.WARNING, sam3_engine=logging.ERROR):
            show(plugin, image, requests)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(message_of(error)) from error


def _read(file: str) -> np.ndarray:
    try:
        return pictures.read(Path(os.path.expanduser(file)))
    except FileNotFoundError as error:
        raise SystemExit(f"image = {quote(file)}: there is no such file; expected a picture.") from error
    except (OSError, ImageError, PIL.Image.DecompressionBombError) as error:
        raise SystemExit(f"image = {quote(file)}: {message_of(error)}; expected a picture.") from error


def _typed_request(typed: dict[str, str]) -> Request:
    title = ", ".join(f"{option} {value}" for option, value in typed.items())
    return Request(title, {PROMPT_OPTIONS[option][0]: value for option, value in typed.items()})


def requests_about(scene: Scene) -> list[Request]:
    """Return every kind of prompt.

    The scene must have a shape with a dot, two shapes that are alike, and a third of their kind in another color.
    """
    by_size = sorted(scene.shapes, key=lambda shape: -np.count_nonzero(shape.whole.mask))
    dotted = next(shape for shape in by_size if shape.dot)
    assert dotted.dot is not None
    twin, other = next(
        (shape, other)
        for shape in scene.shapes
        for other in scene.shapes
        if sum(shape.is_like(third) for third in scene.shapes) > 1
        and other.kind == shape.kind
        and not other.is_like(shape)
    )
    on_dot, on_ring = _middle(dotted.dot), _middle(dotted.ring)
    absent = next(
        phrase for phrase in (f"{color} {kind}" for color in COLORS for kind in KINDS) if not scene.instances(phrase)
    )
    box, largest = _box(dotted.whole), by_size[:3]
    return [
        Request("text 'star'", {"input_text": "star"}, tuple(scene.instances("star"))),
        Request("text 'red circle'", {"input_text": "red circle"}, tuple(scene.instances("red circle"))),
        Request(f"text '{absent}', not in the scene", {"input_text": absent}),
        Request(
            "phrases 'star' and 'circle'",
            {"input_text": ["star", "circle"]},
            (*scene.instances("star"), *scene.instances("circle")),
        ),
        Request(
            "example box",
            {"input_box": [_box(twin.whole)], "input_box_label": [1]},
            tuple(shape.whole for shape in scene.shapes if shape.is_like(twin)),
        ),
        Request(
            f"text '{twin.kind}', negative box",
            {"input_text": twin.kind, "input_box": [_box(other.whole)], "input_box_label": [0]},
            tuple(shape.whole for shape in scene.shapes if shape.kind == twin.kind and not shape.is_like(other)),
        ),
        Request("point on a dot", {"input_point": [on_dot]}, (dotted.dot,)),
        Request(
            "point, three candidates",
            {"input_point": [on_dot], "multimask_output": True},
            (dotted.dot, dotted.whole),
        ),
        Request(
            "point, background point",
            {"input_point": [on_ring, on_dot], "input_point_label": [1, 0]},
            (dotted.ring,),
        ),
        Request("box", {"input_box": [box]}, (dotted.whole,)),
        Request(
            "three boxes",
            {"input_box": [_box(shape.whole) for shape in largest]},
            tuple(shape.whole for shape in largest),
        ),
        Request(
            "box, background point",
            {"input_box": [box], "input_point": [on_dot], "input_point_label": [0]},
            (dotted.ring,),
        ),
        Request(
            "everything",
            {"points_per_side": 32, "stability_score_threshold": SHAPES_STABILITY},
            tuple(region for shape in scene.shapes for region in (shape.whole, shape.dot) if region),
        ),
    ]


def _middle(region: Region) -> list[int]:
    """Return the pixel (x, y) of a region that is farthest from its edge."""
    distance = pictures.distance_to_edge(region.mask)
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    return [int(column), int(row)]


def _box(region: Region) -> list[int]:
    return [round(coordinate) for coordinate in region.box]


def show(plugin: Plugin, image: np.ndarray, requests: list[Request]) -> None:
    """Segment an image (H, W, 3) uint8 RGB with each request, print a table and write the pictures.

    Raises:
        ValueError, RuntimeError: the plugin's own error.
    """
    print("Loading the network ...", flush=True)
    start = time.perf_counter()
    plugin.load()
    print(f"... took {time.perf_counter() - start:.1f} s\n", flush=True)

    width = max(len(request.title) for request in requests)
    print(f"{'prompt':<{width}}  masks      ms   IoU  scores", flush=True)
    cells = [pictures.captioned(pictures.scaled_to_fit(image, *SHEET_CELL), "input image")]
    files = {}
    for request in requests:
        start = time.perf_counter()
        objects = plugin.segment(image, **request.parameters, instance_output=True)[1]
        milliseconds = 1000 * (time.perf_counter() - start)
        found = [Found(one.mask.astype(bool), one.color[:3], one.confidence) for one in objects.get_objects()]
        agreement = f"{_agreement(found, request):.2f}" if request.truth else ""
        numbers = f"{len(found):>5}{milliseconds:>8.0f}{agreement:>6}"
        print(f"{request.title:<{width}}  {numbers}  {_listed(found)}", flush=True)
        overlays = _overlays(image, request, found)
        if request.gives_phrases:
            ikomias = plugin.algorithm.get_output(0).get_image_with_mask_and_graphics(objects)
            overlays.append((ikomias, "objects", "drawn by Ikomia"))
        files[file_name(request.title)] = np.hstack([pictures.captioned(*overlay) for overlay in overlays])
        cells += [
            pictures.captioned(pictures.scaled_to_fit(picture, *SHEET_CELL), *text) for picture, *text in overlays
        ]
    print("\nms:  duration of a whole run of the workflow; the first run also encodes the image.")
    if any(request.truth for request in requests):
        print("IoU: intersection over union of the mask and the true shape, 0 for a wrong or missing mask;")
        print("     the mean over all masks. Of three candidates, the best ones count.")
    files["all"] = pictures.sheet(cells, min(SHEET_COLUMNS, len(cells)))
    OUTPUT.mkdir(exist_ok=True)
    for name, picture in files.items():
        pictures.write(OUTPUT / f"{name}.png", picture)
    print(f"\nThe pictures are in {OUTPUT}; all.png shows all of them.")


def file_name(title: str) -> str:
    """Return the name of a request's picture, without its suffix."""
    return re.sub(r"\W+", "_", title).strip("_")[:60]


def _listed(found: Sequence[Found]) -> str:
    return " ".join(f"{one.score:.3f}" for one in found) or "nothing found"


def _agreement(found: Sequence[Found], request: Request) -> float:
    """Return the mean IoU of the true regions with their best masks; masks in excess of the regions count as 0."""
    ious = np.array([[iou(one.mask, region.mask) for region in request.truth] for one in found])
    if not ious.size:
        return 0.0
    return float(ious.max(axis=0).sum() / (len(request.truth) if request.gives_candidates else max(ious.shape)))


def _overlays(image: np.ndarray, request: Request, found: Sequence[Found]) -> list[tuple[np.ndarray, str, str]]:
    """Draw the masks, with title and scores; each candidate gets its own picture."""
    height, width = image.shape[:2]
    prompt = request.prompt
    overlays = []
    if isinstance(prompt, EverythingPrompt):  # parts on top of the whole
        found = sorted(found, key=lambda one: -np.count_nonzero(one.mask))
    for shown in [[one] for one in found] if request.gives_candidates else [found]:
        picture = image.copy()
        for one in shown:
            pictures.tint(picture, one.mask, one.color)
        if prompt and prompt.boxes:
            labels = prompt.box_labels if isinstance(prompt, ConceptPrompt) else ()
            pictures.draw_boxes(picture, fit_prompt(prompt, width, height).prompt.boxes, labels)
        if isinstance(prompt, GeometricPrompt):
            pictures.draw_points(picture, prompt.points, prompt.point_labels)
        overlays.append((picture, request.title, _listed(shown)))
    return overlays


if __name__ == "__main__":
    main()
