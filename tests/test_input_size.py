"""The network at another input size shares its weights and gives the results of a network built at that size."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from sam3_engine.checkpoints.checkpoint import checkpoint_contents
from sam3_engine.contexts import importing_sam3
from sam3_engine.internals import mask_logits_side
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor, _can_shrink_on_cuda
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


# --- very large images on a GPU

# width, height, input size, bytes of shared memory: refused on an NVIDIA H200 with PyTorch 2.11
REFUSED = [
    (12000, 9000, 112, 49292),
    (26000, 112, 112, 60172),
    (32000, 168, 168, 49420),
    (60000, 224, 224, 69132),
    (90000, 336, 336, 69132),
]
SHARED_MEMORY = 48 * 1024


def shared_memory_of_resize(width, height, size):
    """Return the bytes that PyTorch's antialiased resize to a square needs on CUDA."""
    columns, rows = (2 * math.ceil(max(1, side / size)) + 1 for side in (width, height))
    return 4 * (32 * columns + 33 * rows)


def shrinks_on_cuda(width, height, size):
    return _can_shrink_on_cuda(torch.empty((3, height, width), device="meta"), size)


@pytest.mark.parametrize(("width", "height", "size", "needed"), REFUSED)
def test_images_that_a_gpu_cannot_shrink_are_known(width, height, size, needed):
    assert shared_memory_of_resize(width, height, size) == needed > SHARED_MEMORY
    assert not shrinks_on_cuda(width, height, size)


def test_what_a_gpu_shrinks_is_well_within_its_shared_memory():
    random = np.random.default_rng(0)
    needed = []
    for width, height, size in zip(
        *random.integers((1, 1, 1), (60000, 60000, 145), (20000, 3)).T.tolist(), strict=True
    ):
        if shrinks_on_cuda(width, height, 14 * size):
            needed.append(shared_memory_of_resize(width, height, 14 * size))
    assert len(needed) > 1000
    assert SHARED_MEMORY / 2 < max(needed) < SHARED_MEMORY * 3 / 4
    assert shrinks_on_cuda(12000, 9000, 224)
    assert shrinks_on_cuda(24000, 24000, 1008)


@pytest.mark.parametrize("size_percent", [100, 90])
@pytest.mark.parametrize("shape", [(2, 16000, 3), (16000, 2, 3)])
def test_an_image_that_a_gpu_cannot_shrink_is_shrunk_on_the_cpu(small_checkpoint, emulated_cuda, shape, size_percent):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    on_gpu = Predictor(load_model(small_checkpoint, torch.device("cuda", 0), torch.float32))
    refusal = RuntimeError("Too much shared memory required: 73996 vs 49152")
    with emulated_cuda.failing(refusal, "_upsample_bilinear2d_aa", times=99):
        found = on_gpu.encode_image(image, size_percent)
        with pytest.raises(RuntimeError, match="shared memory"):  # other images are shrunk on the GPU
            on_gpu.encode_image(image[:300, :300], size_percent)
    wanted = Predictor(load_model(small_checkpoint, CPU, torch.float32)).encode_image(image, size_percent)
    for features in ("backbone_fpn", "vision_pos_enc"):
        for ours, theirs in zip(found.features[features], wanted.features[features], strict=True):
            assert ours.device.type == "cuda"
            assert torch.allclose(ours.cpu(), theirs, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("width", "height", "size", "_needed"), REFUSED)
def test_a_gpu_segments_images_that_it_cannot_shrink(small_checkpoint, width, height, size, _needed):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    predictor = Predictor(load_model(small_checkpoint, torch.device("cuda", 0)), size)
    (found,) = predictor.predict(image, GeometricPrompt(boxes=((0.0, 0.0, width / 2, height / 2),)))
    assert found.mask.shape == (height, width)
