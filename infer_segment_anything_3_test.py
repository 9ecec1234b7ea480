"""The test that the Ikomia HUB runs: every kind of prompt, once.

Meta's weights are gated. Where they are not available, the test uses a small network with random weights and says so
in its log. It then shows that the plugin runs, not that its masks are right.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from ikomia import core
from ikomia.utils.tests import run_for_test

logger = logging.getLogger(__name__)

_DEFAULTS = {
    "input_text": "",
    "confidence_threshold": "0.5",
    "iou_threshold": "1.0",
    "max_detections": "0",
    "min_area_percent": "0.0",
    "max_area_percent": "100.0",
    "min_region_percent": "0.0",
    "tile_size": "0",
    "tile_overlap": "0.2",
    "points_per_side": "0",
    "predicted_iou_threshold": "0.7",
    "stability_score_threshold": "0.9",
    "input_box": "",
    "input_box_label": "",
    "input_point": "",
    "input_point_label": "",
    "multimask_output": "False",
    "mask_output": "instances",
    "instance_output": "False",
    "input_size_percent": "100",
    "model_input_size": "0",
    "embedding_cache_folder": "",
}
_FOLDER = "<temporary folder>"
_TWO_BOXES = "[[10, 10, 150, 150], [50, 50, 120, 140]]"

# for each kind of prompt: its parameters, and how many outputs follow the image
PROMPTS: dict[str, tuple[dict[str, str], int]] = {
    "text": ({"input_text": "person"}, 1),
    "several phrases, with objects": (
        {"input_text": '["person", "dog"]', "confidence_threshold": "0.3", "iou_threshold": "0.7"}
        | {"instance_output": "True"},
        2,
    ),
    "thresholds, the best of each size, numbered by phrase": (
        {"input_text": '{"person": 0.1, "dog": 0.2}', "mask_output": "classes", "max_detections": "5"}
        | {"min_area_percent": "0.1", "max_area_percent": "90"},
        1,
    ),
    "example boxes": ({"input_box": _TWO_BOXES, "input_box_label": "[1, 0]"}, 1),
    "text and negative box": (
        {"input_text": "person", "input_box": "[10, 10, 150, 150]", "input_box_label": "[0]"},
        1,
    ),
    "point": ({"input_point": "[[100, 100]]", "input_point_label": "[1]"}, 1),
    "point, three candidates": ({"input_point": "[[100, 100]]", "multimask_output": "True"}, 3),
    "two points": ({"input_point": "[[100, 100], [20, 20]]", "input_point_label": "[1, 0]"}, 1),
    "box": ({"input_box": "[10, 10, 150, 150]"}, 1),
    "two boxes, with objects": (
        {"input_box": _TWO_BOXES, "instance_output": "True", "min_region_percent": "1"},
        3,
    ),
    "box and point": (
        {"input_box": "[[10, 10, 150, 150]]", "input_point": "[[20, 20]]", "input_point_label": "[0]"},
        1,
    ),
    "point, other input sizes": (
        {"input_point": "[[100, 100]]", "input_size_percent": "50", "model_input_size": "504"},
        1,
    ),
    "phrase, tiles": ({"input_text": "cat", "tile_size": "400", "tile_overlap": "0.1"}, 1),
    "everything, with objects": (
        {"points_per_side": "4", "predicted_iou_threshold": "0", "stability_score_threshold": "0"}
        | {"instance_output": "True"},
        2,
    ),
    "box, embedding kept in a folder": (
        {"input_box": "[10, 10, 150, 150]", "embedding_cache_folder": _FOLDER},
        1,
    ),
    "nothing": ({}, 1),
}


def test(t: core.CWorkflowTask, data_dict: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Run the algorithm with every kind of prompt on one of the HUB's images.

    Args:
        t: the algorithm.
        data_dict: the HUB's test data.

    Returns:
        The parameters and "OK", or those of the first run that failed and the reason.
    """
    image = cv2.imread(data_dict["images"]["detection"]["coco"])
    t.get_input(0).set_image(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        weight_file = t.get_parameters()["model_weight_file"]
        try:
            _load_weights(t, Path(folder))
            for kind, (parameters, outputs) in PROMPTS.items():
                logger.info("Prompt: %s", kind)
                values = {name: folder if value == _FOLDER else value for name, value in parameters.items()}
                t.set_parameters({**_DEFAULTS, **values})
                used, outcome = run_for_test(t)
                found = t.get_output_count() - 1
                if outcome == "OK" and found != outputs:
                    outcome = f"{kind}: {found} outputs follow the image, expected {outputs}"
                if outcome != "OK":
                    break
        finally:
            t.set_parameters({"model_weight_file": weight_file})
    return used, outcome


def _load_weights(t: core.CWorkflowTask, folder: Path) -> None:
    """Load the weights that the algorithm finds, or write random ones to ``folder`` and load those."""
    from infer_segment_anything_3.sam3_engine import WeightsError

    try:
        t.init_long_process()
    except WeightsError as error:
        from infer_segment_anything_3.sam3_engine.random_weights import write_random_checkpoint

        logger.warning(
            "RANDOM WEIGHTS: this test uses a small network with random weights, because SAM 3's weights are not "
            "available. It shows that the plugin runs, not that its masks are right. Reason: %s",
            error,
        )
        path = folder / "random_weights.pt"
        write_random_checkpoint(path, seed=47)
        t.set_parameters({"model_weight_file": str(path)})
        t.init_long_process()
    else:
        logger.info("Weights: %s", t.get_parameters()["model_weight_file"] or "facebook/sam3")
