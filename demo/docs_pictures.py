"""Write the pictures of the README and the docs to images/.

python -m demo && python -m demo.panel && python -m demo.docs_pictures    # make pictures
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from testbed.plugin import Plugin, masks_of
from testbed.scenes import draw_scene
from training.large_scenes import draw_large_scene

from . import pictures
from .__main__ import OUTPUT, SCENE_SEED, SCENE_SIZE, SHAPES_NETWORK

IMAGES = Path(__file__).resolve().parent.parent / "images"
OVERLAY_PHRASE = "red circle"
TILED_SIZE, TILED_SHAPES, TILED_STYLE = (3000, 2000), 90, "training generator"
TILED_SEED, TILED_PHRASE, TILED_PANEL = 7, "star", (640, 427)

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
    "everything": "everything",
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


def tiles() -> np.ndarray:
    """Return a large scene without and with tiles on one sheet, (H, W, 3) uint8 RGB."""
    scene = draw_large_scene(np.random.default_rng(TILED_SEED), *TILED_SIZE, TILED_SHAPES, TILED_STYLE)
    plugin = Plugin(model_weight_file=SHAPES_NETWORK)
    cells = []
    for caption, parameters in (("without tiles", {}), ("tile_size 672", {"tile_size": 672})):
        plugin.segment(scene.image, input_text=TILED_PHRASE, **parameters)
        (output,) = plugin.algorithm.get_outputs()[1:]
        picture, masks = scene.image.copy(), list(masks_of(output))
        for mask, color in zip(masks, output.get_colors()[1:], strict=True):
            pictures.tint(picture, mask, color)
        shown = pictures.scaled_to_fit(picture, *TILED_PANEL)
        cells.append(pictures.captioned(shown, f"{caption}: {len(masks)} x {TILED_PHRASE}"))
    return pictures.sheet(cells, 2)


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(exist_ok=True)
    scene = draw_scene(np.random.default_rng(SCENE_SEED), *SCENE_SIZE)
    pictures.write(IMAGES / "scene.png", scene.image)
    plugin = Plugin(model_weight_file=SHAPES_NETWORK)
    plugin.segment(scene.image, input_text=OVERLAY_PHRASE)
    pictures.write(IMAGES / "overlay.png", plugin.algorithm.get_image_with_mask())
    pictures.write(IMAGES / "demo.png", overview())
    pictures.write(IMAGES / "tiles.png", tiles())
    for name, source in COPIES.items():
        shutil.copy(OUTPUT / f"{source}.png", IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
