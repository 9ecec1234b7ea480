"""The plugin gives the same masks and scores as direct use of the sam3 package, for every kind of prompt."""

import re

import numpy as np
import pytest

from sam3_engine.devices import choose_precision
from sam3_engine.model import load_model
from testbed.direct_use import CPU, DirectUse, label_map, package_network

LEAST_AGREEMENT = 0.999  # of the pixels
MOST_SCORE_DIFFERENCE = 1e-2

ONE_BOX = [60.0, 80.0, 300.0, 330.0]
THREE_BOXES = [ONE_BOX, [5.0, 5.0, 635.0, 420.0], [350.0, 100.0, 520.0, 390.0]]
POINTS = [[210.0, 150.0], [500.0, 300.0]]

NO_PROMPT = {"input_text": "", "input_box": "", "input_box_label": "", "input_point": "", "input_point_label": ""}
GEOMETRIES = {
    "point": {"input_point": [POINTS[0]]},
    "points": {"input_point": POINTS, "input_point_label": [1, 0]},
    "box": {"input_box": ONE_BOX},
    "box and point": {"input_box": [ONE_BOX], "input_point": [POINTS[0]], "input_point_label": [0]},
    "three boxes": {"input_box": THREE_BOXES},
}
EXAMPLES = {
    "positive": {"input_box": [ONE_BOX], "input_box_label": [1]},
    "positive and negative": {"input_box": THREE_BOXES, "input_box_label": [1, 0, 1]},
    "phrase and positive": {"input_text": "hat", "input_box": [ONE_BOX], "input_box_label": [1]},
    "phrase and negative": {"input_text": "hat", "input_box": THREE_BOXES[:2], "input_box_label": [0, 0]},
}


@pytest.fixture(scope="module")
def small_direct(small_checkpoint, photograph):
    model = load_model(small_checkpoint, CPU)
    return DirectUse(model.network, choose_precision(CPU), photograph, CPU, model.architecture.fill_hole_area)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_points_and_boxes_agree_on_a_small_network(workflow, algorithm, small_direct, photograph, kind, multimask):
    assert_geometry_agrees(workflow, algorithm, small_direct, photograph, GEOMETRIES[kind], multimask)


def test_text_agrees_on_a_small_network(workflow, algorithm, small_direct, photograph):
    assert_text_agrees(workflow, algorithm, small_direct, photograph, ["shoe"])


def test_several_phrases_agree_with_separate_calls_on_a_small_network(workflow, algorithm, small_direct, photograph):
    assert_text_agrees(workflow, algorithm, small_direct, photograph, ["shoe", "yellow school bus", "hat"])


@pytest.mark.parametrize("kind", EXAMPLES)
def test_example_boxes_agree_on_a_small_network(workflow, algorithm, small_direct, photograph, kind):
    assert_examples_agree(workflow, algorithm, small_direct, photograph, EXAMPLES[kind])


@pytest.mark.slow
def test_every_prompt_agrees_on_the_full_size_network(workflow, algorithm, full_checkpoint, photograph):
    direct = DirectUse(package_network(full_checkpoint), choose_precision(CPU), photograph)
    workflow.set_parameters({"model_weight_file": full_checkpoint}, task_obj=algorithm)
    assert_text_agrees(workflow, algorithm, direct, photograph, ["shoe"])
    assert_text_agrees(workflow, algorithm, direct, photograph, ["shoe", "hat"], share=0.6)
    assert_examples_agree(workflow, algorithm, direct, photograph, EXAMPLES["positive and negative"])
    for kind, prompt in GEOMETRIES.items():
        assert_geometry_agrees(workflow, algorithm, direct, photograph, prompt, multimask=kind == "three boxes")


def assert_text_agrees(workflow, algorithm, direct, image, phrases, share=0.25):
    """Check that the plugin, given all phrases at once, agrees with one call of the package per phrase."""
    answers = [direct.concept(phrase, threshold=0.0) for phrase in phrases]
    threshold = float(np.quantile(np.concatenate([scores for _, scores in answers]), share))  # drops some of them
    typed = phrases[0] if len(phrases) == 1 else phrases
    run(workflow, algorithm, image, **{**NO_PROMPT, "input_text": typed, "confidence_threshold": threshold})
    assert_instances_agree(algorithm, phrases, answers, threshold)


def assert_examples_agree(workflow, algorithm, direct, image, prompt):
    phrase, boxes, labels = prompt.get("input_text", ""), prompt["input_box"], prompt["input_box_label"]
    answer = direct.concept(phrase, 0.0, boxes, labels)
    assert not np.allclose(answer[1], direct.concept(phrase or "visual", 0.0)[1])  # the examples do have an effect
    threshold = float(np.quantile(answer[1], 0.25))
    run(workflow, algorithm, image, **{**NO_PROMPT, **prompt, "confidence_threshold": threshold})
    assert_instances_agree(algorithm, [phrase or "object"], [answer], threshold)


def assert_instances_agree(algorithm, names, answers, threshold):
    kept = [scores > threshold for _, scores in answers]
    masks = np.concatenate([masks[keep] for (masks, _), keep in zip(answers, kept, strict=True)])
    scores = np.concatenate([scores[keep] for (_, scores), keep in zip(answers, kept, strict=True)])
    assert 2 <= len(scores) <= 255

    output = algorithm.get_output(1)
    numbered = [f"{name} {k}" for name, keep in zip(names, kept, strict=True) for k in range(1, keep.sum() + 1)]
    assert output.get_class_names() == ["background", *numbered]
    assert_agree(output.get_mask(), label_map(masks, scores))
    assert_scores_agree(output, scores)


def assert_geometry_agrees(workflow, algorithm, direct, image, prompt, multimask):
    masks, scores = direct.geometry(multimask, **direct_arguments(prompt))
    run(workflow, algorithm, image, **{**NO_PROMPT, **prompt, "multimask_output": multimask})
    outputs = algorithm.get_outputs()[1:]
    assert len(outputs) == scores.size
    for output, mask, score in zip(outputs, masks.reshape(-1, *masks.shape[2:]), scores.flat, strict=True):
        assert_agree(output.get_mask(), mask)
        assert_scores_agree(output, [score])


def direct_arguments(prompt):
    """Convert the plugin's parameters to arguments of predict_inst."""
    arguments = {}
    if "input_box" in prompt:
        arguments["box"] = np.array(prompt["input_box"])
    if "input_point" in prompt:
        points = np.array(prompt["input_point"])
        arguments["point_coords"] = points
        arguments["point_labels"] = np.array(prompt.get("input_point_label", [1] * len(points)))
    return arguments


def run(workflow, algorithm, image, **parameters):
    workflow.set_parameters(parameters, task_obj=algorithm)
    workflow.run_on(array=image)


def assert_agree(mask, reference):
    assert mask.dtype == np.uint8
    assert mask.shape == reference.shape
    assert np.mean(mask == reference) > LEAST_AGREEMENT


def assert_scores_agree(output, reference):
    scores = [float(number) for number in re.findall(r"\d\.\d+", output.description)]
    np.testing.assert_allclose(scores, reference, atol=MOST_SCORE_DIFFERENCE)
