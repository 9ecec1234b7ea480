"""What Ikomia's HUB runs when the plugin is submitted: every kind of prompt, once."""

import logging

import cv2
from ikomia.utils.tests import run_for_test

logger = logging.getLogger(__name__)

PROMPTS = {
    "text": {"input_text": "person", "confidence_threshold": "0.5"},
    "point": {"input_point": "[[100, 100]]", "input_point_label": "[1]"},
    "three candidates of a point": {"input_point": "[[100, 100]]", "multimask_output": "True"},
    "two points": {"input_point": "[[100, 100], [20, 20]]", "input_point_label": "[1, 0]"},
    "box": {"input_box": "[10, 10, 150, 150]"},
    "two boxes": {"input_box": "[[10, 10, 150, 150], [50, 50, 120, 140]]"},
    "box and point": {"input_box": "[[10, 10, 150, 150]]", "input_point": "[[20, 20]]", "input_point_label": "[0]"},
    "nothing": {},
}


def test(t, data_dict):
    """Run the algorithm ``t`` with every kind of prompt on one of the HUB's pictures.

    Args:
        t: the algorithm.
        data_dict: the HUB's test data.

    Returns:
        The parameters and "OK", or those of the first run that failed and its traceback.
    """
    image = cv2.imread(data_dict["images"]["detection"]["coco"])
    t.get_input(0).set_image(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    blank = {"input_text": "", "input_box": "", "input_point": "", "input_point_label": "", "multimask_output": "False"}
    for kind, prompt in PROMPTS.items():
        logger.info("Segmenting by %s", kind)
        t.set_parameters({**blank, **prompt})
        parameters, outcome = run_for_test(t)
        if outcome != "OK":
            break
    return parameters, outcome
