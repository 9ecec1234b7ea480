"""The network at another input size shares its weights and gives the results of a network built at that size."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from sam3_engine.checkpoints.checkpoint import checkpoint_contents
from sam3_engine.contexts import importing_sam3
from sam3_engine.internals import mask_logits_side
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.random_weights import SMALL
from testbed.scenes import iou

with importing_sam3():
    from sam3_engine.network import build_network

CPU = torch.device("cpu")
SIZES = [56, 98, 168, 196, 336]
BOXES = [[60, 80, 300, 330], [5, 5, 635, 420]]
PROMPTS = [
    ConceptPrompt(("shoe",)),
    GeometricPrompt(points=((210, 150),), point_labels=(1,)),
    GeometricPrompt(points=((210, 150), (500, 300)), point_labels=(1, 0)),
    GeometricPrompt(boxes=tuple(map(tuple, BOXES))),
    GeometricPrompt(boxes=(tuple(BOXES[0]),), points=((210, 150),), point_labels=(0,)),
]


def network_of(predictor):
    return predictor.model.network_at(predictor.resolution)


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return load_model(small_checkpoint, CPU)


@pytest.fixture
def built_at(small_checkpoint, tmp_path):
    """Return a function that loads the small network's weights into a network built at another size."""

    def build(size):
        hole_area = round(SMALL.fill_hole_area * (size / SMALL.resolution) ** 2)
        architecture = dataclasses.replace(SMALL, resolution=size, fill_hole_area=hole_area)
        tables = checkpoint_contents(build_network(architecture, CPU), architecture)
        contents = torch.load(small_checkpoint, weights_only=True)
        tensors = {
            name: tables["model"][name] if tensor.is_complex() else tensor for name, tensor in contents["model"].items()
        }
        path = tmp_path / f"{size}.pt"
        torch.save({**tables, "model": tensors}, path)
        return load_model(path, CPU)

    return build


def answers(predictor, image):
    embedding = predictor.encode_image(image)
    return [
        (segment.score, segment.box, segment.mask.tobytes())
        for prompt in PROMPTS
        for multimask in (False, True)
        for segment in predictor.segment(embedding, prompt, Options(confidence_threshold=0, multimask=multimask))
    ]


@pytest.mark.parametrize("size", SIZES)
def test_results_equal_those_of_a_network_built_at_that_size(model, built_at, photograph, size):
    assert answers(Predictor(model, size), photograph) == answers(Predictor(built_at(size)), photograph)


def test_the_size_of_the_checkpoint_uses_its_own_network(model, photograph):
    own = Predictor(model)
    assert own.resolution == SMALL.resolution
    assert network_of(own) is network_of(Predictor(model, SMALL.resolution)) is model.network
    reference = answers(own, photograph)
    Predictor(model, 336).encode_image(photograph)
    assert answers(Predictor(model, 0), photograph) == reference


def test_different_sizes_give_different_results(model, photograph):
    assert answers(Predictor(model, 168), photograph) != answers(Predictor(model), photograph)


def test_weights_are_shared(model):
    own = model.network.state_dict()
    for name, tensor in network_of(Predictor(model, 168)).state_dict().items():
        assert tensor.data_ptr() == own[name].data_ptr() or tensor.is_complex(), name


@pytest.mark.parametrize(
    ("asked", "rounded"), [(112, 112), (113, 112), (120, 126), (700, 700), (2016, 2016), (2010, 2016)]
)
def test_a_size_is_rounded_to_whole_patches_with_a_warning(model, caplog, asked, rounded):
    assert Predictor(model, asked).resolution == rounded
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if asked == rounded:
        assert messages == []
    else:
        assert messages == [f"An input size of {asked} is rounded to {rounded}, a multiple of the patch size 14."]


def test_the_area_of_filled_holes_scales_with_the_input_size(model):
    """It is measured in mask logits, of which a larger input has more."""
    for size in (56, 112, 224):
        resized = SMALL.resized(size)
        assert mask_logits_side(network_of(Predictor(model, size))) == 4 * resized.grid
        assert resized.fill_hole_area / resized.grid**2 == SMALL.fill_hole_area / SMALL.grid**2


@pytest.mark.parametrize("percent", [100, 50])
@pytest.mark.parametrize("size", [0, 252, 672])
def test_the_demo_network_finds_a_shape_at_every_size(workflow, algorithm, shapes_checkpoint, size, percent):
    """Segment a disc on the left, given its box in source pixels."""
    rows, columns = np.mgrid[:300, :400]
    disc = (rows - 140) ** 2 + (columns - 120) ** 2 < 60**2
    image = np.where(disc[..., None], [220, 40, 40], [200, 200, 200]).astype(np.uint8)
    parameters = {
        "model_weight_file": shapes_checkpoint,
        "input_box": [58, 78, 182, 202],
        "model_input_size": size,
        "input_size_percent": percent,
    }
    workflow.set_parameters(parameters, task_obj=algorithm)
    workflow.run_on(array=image)
    mask = algorithm.get_output(1).get_mask() == 1
    assert mask.shape == disc.shape
    assert iou(mask, disc) > 0.9
