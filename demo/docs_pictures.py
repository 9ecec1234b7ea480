"""Write the pictures of the README and the docs to images/.

python -m demo && python -m demo.panel && python -m demo.docs_pictures    # make pictures
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from testbed.plugin import Plugin
from testbed.scenes import draw_scene

from . import pictures
from .__main__ import OUTPUT, SCENE_SEED, SCENE_SIZE, SHAPES_NETWORK

IMAGES = Path(__file__).resolve().parent.parent / "images"
OVERLAY_PHRASE = "red circle"

# names in images/, without .png, to those in the demo's output
COPIES = {
    "text": "text_red_circle",
    "several_phrases": "phrases_star_and_circle",
    "example_box": "example_box",
    "negative_box": "text_circle_negative_box",
    "point_candidates": "point_three_candidates",
    "points": "point_background_point",
    "box": "box",
    "several_boxes": "three_boxes",
    "box_and_point": "box_background_point",
    "panel": "panel_filled",
}

# the README's overview: pictures of the demo, and their captions
OVERVIEW = {
    "text_red_circle": "text: red circle",
    "phrases_star_and_circle": "two phrases: star, circle",
    "example_box": "example box",
    "point_on_a_dot": "point",
    "three_boxes": "three boxes",
    "box_background_point": "box and background point",
}
OVERVIEW_COLUMNS, OVERVIEW_PANEL = 3, (320, 240)  # width and height: legible on a page 1,000 pixels wide


def overview() -> np.ndarray:
    """Return the first panel of each picture in :data:`OVERVIEW` on one sheet, (H, W, 3) uint8 RGB."""
    width, height = SCENE_SIZE
    cells = []
    for name, caption in OVERVIEW.items():
        picture = pictures.read(OUTPUT / f"{name}.png")[-height:, :width]
        cells.append(pictures.captioned(pictures.scaled_to_fit(picture, *OVERVIEW_PANEL), caption))
    return pictures.sheet(cells, OVERVIEW_COLUMNS)


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    scene = draw_scene(np.random.default_rng(SCENE_SEED), *SCENE_SIZE)
    pictures.write(IMAGES / "scene.png", scene.image)
    plugin = Plugin(model_weight_file=SHAPES_NETWORK)
    plugin.segment(scene.image, input_text=OVERLAY_PHRASE)
    pictures.write(IMAGES / "overlay.png", plugin.algorithm.get_image_with_mask())
    pictures.write(IMAGES / "demo.png", overview())
    for name, source in COPIES.items():
        shutil.copy(OUTPUT / f"{source}.png", IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
