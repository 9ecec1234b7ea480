"""Segment a photograph with every kind of prompt, through a real Ikomia workflow.

    python -m demo                                          # a network of random weights: real work, meaningless masks
    python -m demo --weights sam3.pt --image photograph.jpg

Writes an overlay for each prompt, and one sheet with them all, to demo/output.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import ikomia  # noqa: F401 - puts the cv2 that it ships on the path

# isort: split
import cv2
import numpy as np
from ikomia.dataprocess.registry import ik_registry
from ikomia.dataprocess.workflow import Workflow
from sklearn.datasets import load_sample_image

from .random_weights import FULL_SIZE_FILE, full_size_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
PLUGIN = "infer_segment_anything_3"
OUTPUT = Path(__file__).resolve().parent / "output"
SHEET_COLUMNS = 3

# boxes and points as fractions of width and height, since the picture may be of any size
PROMPTS: dict[str, dict[str, Any]] = {
    "text": {"input_text": "building", "confidence_threshold": "0.2"},
    "point": {"input_point": [[0.45, 0.55]]},
    "point, best of three": {"input_point": [[0.45, 0.55]], "multimask_output": "True"},
    "two points": {"input_point": [[0.45, 0.55], [0.1, 0.1]], "input_point_label": [1, 0]},
    "box": {"input_box": [[0.2, 0.3, 0.7, 0.9]]},
    "three boxes": {"input_box": [[0.05, 0.1, 0.95, 0.95], [0.2, 0.3, 0.7, 0.9], [0.6, 0.5, 0.9, 0.8]]},
    "box and background point": {
        "input_box": [[0.2, 0.3, 0.7, 0.9]],
        "input_point": [[0.25, 0.35]],
        "input_point_label": [0],
    },
}
NO_PROMPT = {"input_text": "", "input_box": "", "input_point": "", "input_point_label": "", "multimask_output": "False"}


def main() -> None:
    """Run the demo as the command line asks for it."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Segment a photograph by every kind of prompt.")
    parser.add_argument("--image", type=Path, help="a photograph; by default one that scikit-learn ships")
    parser.add_argument("--weights", type=Path, help="a SAM 3 checkpoint; by default one of random weights is made")
    arguments = parser.parse_args()

    image = _read(arguments.image) if arguments.image else load_sample_image("china.jpg")
    if not arguments.weights:
        print(
            "These are RANDOM WEIGHTS in a network of SAM 3's size: the masks mean nothing, all else is as it will be."
        )
        if not FULL_SIZE_FILE.exists():
            print("Making them (once, a minute, 3.45 GB in .cache).")
    run_prompts(image, arguments.weights or full_size_checkpoint())


def run_prompts(image: np.ndarray, weights: Path) -> None:
    """Segment ``image`` (H, W, 3 uint8 RGB) by each prompt; print a table and write the pictures."""
    logging.getLogger("ikomia").setLevel(logging.WARNING)  # else a line for each run comes between those of the table
    workflow, algorithm = plugin_workflow()
    workflow.set_parameters({"model_weight_file": str(weights)}, task_obj=algorithm)
    OUTPUT.mkdir(exist_ok=True)
    print(f"{'prompt':<26}{'masks':>6}{'seconds':>9}  description of the first mask")
    pictures = []
    for kind, prompt in PROMPTS.items():
        workflow.set_parameters({**NO_PROMPT, **_in_pixels(prompt, image)}, task_obj=algorithm)
        start = time.perf_counter()
        workflow.run_on(array=image)
        seconds = time.perf_counter() - start
        masks = algorithm.get_outputs()[1:]
        print(f"{kind:<26}{len(masks):>6}{seconds:>9.1f}  {masks[0].description[:60]}")
        pictures.append(_captioned(algorithm.get_output(0).get_image_with_mask(masks[0]), kind))
        _write(OUTPUT / f"{kind.replace(',', '').replace(' ', '_')}.png", pictures[-1])
    _write(OUTPUT / "all.png", _sheet(pictures))
    print(f"Pictures are in {OUTPUT}")


def plugin_workflow() -> tuple[Workflow, Any]:
    """A workflow with this checkout of the plugin as its only task, and the task."""
    plugins = Path(tempfile.mkdtemp(prefix="ikomia_plugins_"))
    (plugins / "Python").mkdir()
    (plugins / "Python" / PLUGIN).symlink_to(REPOSITORY, target_is_directory=True)
    ik_registry.set_plugins_directory(f"{plugins}/")
    workflow = Workflow()
    return workflow, workflow.add_task(name=PLUGIN, auto_connect=True)


def _in_pixels(prompt: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
    height, width = image.shape[:2]
    scaled = dict(prompt)
    for name in ("input_box", "input_point"):
        if name in prompt:
            rows = np.array(prompt[name])
            scaled[name] = np.rint(rows * np.resize([width, height], rows.shape[1])).astype(int).tolist()
    return scaled


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    band = np.full((32, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, caption, (8, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([band, picture])


def _sheet(pictures: list[np.ndarray]) -> np.ndarray:
    missing = -len(pictures) % SHEET_COLUMNS
    cells = [*pictures, *[np.full_like(pictures[0], 255)] * missing]
    rows = [np.hstack(cells[start : start + SHEET_COLUMNS]) for start in range(0, len(cells), SHEET_COLUMNS)]
    return np.vstack(rows)


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise SystemExit(f"{path} cannot be read as an image.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _write(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
