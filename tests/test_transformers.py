"""Files of Hugging Face transformers give the answers that transformers' own models give.

The models have random weights. Everything runs in float32, on an image of the network's input size, so that both see
the same pixels. With the same weights, transformers 5.24 and sam3 still differ in three ways:

* sam3 always gives the detector the class token of its geometry encoder; transformers gives it only if there are
  example boxes. So users of transformers get other scores and masks for a phrase alone. One box that is marked as
  padding turns the token on.
* ``Sam3TrackerModel`` adds the no-memory embedding to a level of the feature pyramid that it does not use, so its masks
  for points and boxes lack it. With three levels in its configuration instead of four, they have it.
* The layer norms of its ViT add 1e-6 to the variance, those of sam3 1e-5.

The comparisons use these settings of transformers; ``test_defaults_of_transformers_differ_from_sam3`` shows what its
defaults change. How much they change with Meta's weights is unknown: these are not available here.
"""

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Sam3Model, Sam3TrackerModel, Sam3VideoConfig

from sam3_engine.architecture import Architecture
from sam3_engine.checkpoints.checkpoint import fit_tensors, read_checkpoint
from sam3_engine.errors import PromptError
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.random_weights import SMALL
from testbed.direct_use import CPU
from testbed.transformers_models import (
    EPSILON,
    NECK,
    Answer,
    TransformersUse,
    click_config,
    load_reference,
    random_video_model,
    save,
    save_as_published,
    save_state,
    video_config,
)

# of scores, of boxes as fractions of the image, and of mask logits as a fraction of their spread
MOST_DIFFERENCE = 1e-4
MOST_DIFFERENCE_AT_FULL_SIZE = 1e-3
LEAST_AGREEMENT = 0.999  # of the pixels
PUBLISHED_SIZE = 3_439_938_512  # of model.safetensors of facebook/sam3, in bytes

# like SAM 3, and unlike SMALL, it ends with a global block: sam3 drops what follows the last one, transformers does not
ARCHITECTURE = dataclasses.replace(SMALL, vit_depth=4, vit_global_blocks=(1, 3))
SEED = 3  # its scores and the areas of its masks are far from 0 and 1

# in fractions of the image
ONE_BOX = (0.1, 0.2, 0.5, 0.6)
THREE_BOXES = (ONE_BOX, (0.01, 0.01, 0.99, 0.97), (0.55, 0.25, 0.8, 0.9))
POINTS = ((0.36, 0.45), (0.7, 0.6))
CONCEPTS = {
    "phrase": ConceptPrompt(("yellow school bus",)),
    "phrase and positive example": ConceptPrompt(("shoe",), (ONE_BOX,), (1,)),
    "phrase and negative example": ConceptPrompt(("shoe",), (ONE_BOX,), (0,)),
    "phrase and three examples": ConceptPrompt(("shoe",), THREE_BOXES, (1, 0, 1)),
    "example": ConceptPrompt((), (ONE_BOX,), (1,)),
    "three examples": ConceptPrompt((), THREE_BOXES, (1, 0, 1)),
}
CLICKS = {
    "point": GeometricPrompt((), POINTS[:1], (1,)),
    "points": GeometricPrompt((), POINTS, (1, 0)),
    "box": GeometricPrompt((ONE_BOX,)),
    "box and point": GeometricPrompt((ONE_BOX,), POINTS[:1], (0,)),
    "box and points": GeometricPrompt((ONE_BOX,), POINTS, (1, 0)),
}


@dataclass(frozen=True)
class Files:
    """Files of the same ``Sam3VideoModel`` or of one of its parts, by how they were made."""

    published: Path
    saved: Path
    shards: Sequence[Path]
    detector: Path
    click_head: Path
    click_head_without_prefix: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("transformers")
    model = random_video_model(video_config(ARCHITECTURE), SEED)
    published = save_as_published(model, folder / "published", ARCHITECTURE)
    click_head = load_reference(Sam3TrackerModel, published.parent, click_config(ARCHITECTURE, neck=NECK))
    return Files(
        published,
        saved=save(model, folder / "saved", ARCHITECTURE)[0],
        shards=save(model, folder / "sharded", ARCHITECTURE, max_shard_size="1MB"),
        detector=save(model.detector_model, folder / "detector", ARCHITECTURE)[0],
        click_head=save(click_head, folder / "click_head", ARCHITECTURE)[0],
        click_head_without_prefix=save_state(click_head, folder / "click_head.safetensors", ARCHITECTURE),
    )


@pytest.fixture(scope="module")
def image(photograph) -> np.ndarray:
    return resized(photograph, ARCHITECTURE.resolution)


@pytest.fixture(scope="module")
def reference(files, image) -> TransformersUse:
    folder = files.published.parent
    return TransformersUse(
        image, load_reference(Sam3Model, folder), load_reference(Sam3TrackerModel, folder, click_config(ARCHITECTURE))
    )


@pytest.fixture(scope="module")
def predictor(files) -> Predictor:
    return open_predictor(files.published)


@pytest.mark.parametrize("kind", CONCEPTS)
def test_concepts_agree(predictor, reference, image, kind):
    assert_agree(engine_concept(predictor, image, kind), reference_concept(reference, image, kind))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", CLICKS)
def test_points_and_boxes_agree(predictor, reference, image, kind, multimask):
    assert_agree(engine_click(predictor, image, kind, multimask), reference_click(reference, image, kind, multimask))


def test_answers_depend_on_the_prompt(reference, image):
    """If two prompts had the same answer, the comparisons above would not notice a prompt that is ignored."""
    answers = [reference_concept(reference, image, kind) for kind in CONCEPTS]
    answers += [reference_click(reference, image, kind, multimask=True) for kind in CLICKS]
    for index, answer in enumerate(answers):
        for other in answers[:index]:
            if answer.mask_logits.shape == other.mask_logits.shape:
                assert logit_difference(answer, other) > 100 * MOST_DIFFERENCE


def test_both_rules_for_a_single_mask_apply(reference, image):
    """The one mask of a click is a fourth one, or the best of the three if that one is unstable."""
    is_fourth = {
        reference_click(reference, image, kind, multimask=False).scores[0]
        not in reference_click(reference, image, kind, multimask=True).scores
        for kind in CLICKS
    }
    assert is_fourth == {True, False}


def test_files_of_save_pretrained_hold_the_same_network(files, predictor):
    assert files.saved.name == "model.safetensors"
    assert len(files.shards) > 2
    index = files.shards[0].with_name("model.safetensors.index.json")
    published = predictor.model
    for path in (files.saved, files.shards[0], files.shards[-1], index):
        model = load_model(path, CPU, torch.float32)
        assert model.description == published.description == "SAM 3, transformers layout"
        assert_same_tensors(model.network, published.network)


def test_a_detector_alone_answers_concepts_only(files, predictor, image):
    detector = open_predictor(files.detector)
    assert detector.model.description == "SAM 3 detector without click head, transformers layout"
    assert_same_tensors(detector.model.network, predictor.model.network)
    for kind in CONCEPTS:
        assert_agree(engine_concept(detector, image, kind), engine_concept(predictor, image, kind))
    for kind in CLICKS:
        with pytest.raises(PromptError, match="without click head"):
            engine_click(detector, image, kind, multimask=False)


@pytest.mark.parametrize("form", ["click_head", "click_head_without_prefix"])
def test_a_click_head_alone_answers_points_and_boxes_only(files, predictor, image, form):
    click_head = open_predictor(getattr(files, form))
    assert click_head.model.description == "SAM 3 click head without detector, transformers layout"
    assert_same_tensors(click_head.model.network, predictor.model.network)
    for kind in CLICKS:
        answers = [engine_click(used, image, kind, multimask=True) for used in (click_head, predictor)]
        assert_agree(*answers)
    for kind in CONCEPTS:
        with pytest.raises(PromptError, match="without detector"):
            engine_concept(click_head, image, kind)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_the_engine_reads_every_tensor_that_transformers_uses(files, predictor, image):
    used = used_by_transformers(files.published.parent, image)
    read = read_by_engine(files.published, predictor.model.network)
    assert used - read == set()
    # masks as prompts: the click head can take them, but nobody gives any
    assert {name for name in read - used if not name.startswith("tracker_model.prompt_encoder.mask_embed.")} == set()


def test_defaults_of_transformers_differ_from_sam3(files, reference, image):
    """Here, the three differences change mask logits by 0.46, 0.40 and 0.00001 of their spread."""
    folder, default = files.published.parent, Sam3VideoConfig()
    phrase = CONCEPTS["phrase"].phrases[0]
    expected, without_class_token = reference.concept(phrase), reference.concept(phrase, class_token=False)
    assert logit_difference(without_class_token, expected) > 0.1

    assert default.tracker_config.vision_config.scale_factors == list(NECK)
    four_levels = load_reference(Sam3TrackerModel, folder, click_config(ARCHITECTURE, neck=NECK))
    without_memory = load_reference(Sam3TrackerModel, folder, click_config(ARCHITECTURE))
    torch.nn.init.zeros_(without_memory.no_memory_embedding)
    answers = [
        reference_click(TransformersUse(image, click_head=model), image, "point", multimask=True)
        for model in (four_levels, without_memory)
    ]
    assert_agree(*answers)
    assert logit_difference(answers[0], reference_click(reference, image, "point", multimask=True)) > 0.1

    assert default.detector_config.vision_config.backbone_config.layer_norm_eps == EPSILON
    config = video_config(ARCHITECTURE, EPSILON).detector_config
    with_epsilon = TransformersUse(image, load_reference(Sam3Model, folder, config)).concept(phrase)
    assert 0 < logit_difference(with_epsilon, expected) < MOST_DIFFERENCE


@pytest.mark.slow
def test_the_full_size_network_agrees(full_size_file, photograph):
    """The layer norms have transformers' default. The models are in memory one after the other: 9 GB at most."""
    assert full_size_file.stat().st_size == PUBLISHED_SIZE
    sizes, folder = Architecture(), full_size_file.parent
    image = resized(photograph, sizes.resolution)
    concepts, clicks = ["phrase", "phrase and positive example"], ["point", "box"]

    detector = TransformersUse(image, load_reference(Sam3Model, folder))
    expected = [reference_concept(detector, image, kind) for kind in concepts]
    del detector
    gc.collect()
    config = click_config(sizes, EPSILON)
    click_head = TransformersUse(image, click_head=load_reference(Sam3TrackerModel, folder, config))
    expected += [reference_click(click_head, image, kind, multimask=True) for kind in clicks]
    del click_head
    gc.collect()

    predictor = open_predictor(full_size_file)
    answers = [engine_concept(predictor, image, kind) for kind in concepts]
    answers += [engine_click(predictor, image, kind, multimask=True) for kind in clicks]
    for answer, reference in zip(answers, expected, strict=True):
        assert_agree(answer, reference, MOST_DIFFERENCE_AT_FULL_SIZE)


@pytest.fixture
def full_size_file(tmp_path):
    """Write a ``Sam3VideoModel`` of SAM 3's own sizes, 3.4 GB, and delete it after the test."""
    path = save_as_published(random_video_model(Sam3VideoConfig(), SEED), tmp_path / "full_size", architecture=None)
    gc.collect()
    yield path
    path.unlink()


def resized(image, side):
    return np.array(Image.fromarray(image).resize((side, side)))


def open_predictor(path):
    """Load a file in float32. Holes in masks stay: transformers does not fill them either."""
    model = load_model(path, CPU, torch.float32)
    model.architecture = dataclasses.replace(model.architecture, fill_hole_area=0)
    return Predictor(model)


def engine_concept(predictor, image, kind):
    prompt = scaled(CONCEPTS[kind], image)
    segments = predictor.predict(image, prompt, Options(confidence_threshold=0.0))
    boxes = np.array([segment.detected_box for segment in segments]) / image.shape[0]
    return answer_of(segments, boxes)


def engine_click(predictor, image, kind, multimask):
    return answer_of(predictor.predict(image, scaled(CLICKS[kind], image), Options(multimask=multimask)))


def answer_of(segments, boxes=None):
    scores = np.array([segment.score for segment in segments])
    return Answer(scores, torch.stack([segment.mask_logits for segment in segments]).numpy(), boxes)


def reference_concept(reference, image, kind):
    prompt = scaled(CONCEPTS[kind], image)
    return reference.concept("".join(prompt.phrases), prompt.boxes, prompt.box_labels)


def reference_click(reference, image, kind, multimask):
    prompt = scaled(CLICKS[kind], image)
    return reference.click(multimask, prompt.points, prompt.point_labels, prompt.boxes)


def scaled(prompt, image):
    """Convert a prompt from fractions of the image to pixels."""
    coordinates = {"boxes": prompt.boxes, **({"points": prompt.points} if isinstance(prompt, GeometricPrompt) else {})}
    pixels = {
        name: tuple(tuple(value * image.shape[0] for value in row) for row in rows)
        for name, rows in coordinates.items()
    }
    return dataclasses.replace(prompt, **pixels)


def assert_agree(answer, expected, most_difference=MOST_DIFFERENCE):
    matching = expected_of_each(answer, expected)
    expected = Answer(
        expected.scores[matching],
        expected.mask_logits[matching],
        None if expected.boxes is None else expected.boxes[matching],
    )
    np.testing.assert_allclose(answer.scores, expected.scores, atol=most_difference, rtol=0)
    if expected.boxes is not None:
        np.testing.assert_allclose(answer.boxes, expected.boxes, atol=most_difference, rtol=0)
    assert logit_difference(answer, expected) < most_difference
    assert np.mean((answer.mask_logits > 0) == (expected.mask_logits > 0)) > LEAST_AGREEMENT


def expected_of_each(answer, expected):
    """Return which of the expected results each result is, by scores and boxes: the order of near ties is arbitrary."""
    features = [
        np.column_stack([given.scores, *([] if given.boxes is None else [given.boxes])]) for given in (answer, expected)
    ]
    assert features[0].shape == features[1].shape
    matching = np.abs(features[0][:, None] - features[1]).max(axis=2).argmin(axis=1)
    assert sorted(matching) == list(range(len(expected.scores)))
    return matching


def logit_difference(answer, expected):
    """Return the largest difference of mask logits, as a fraction of their spread."""
    return np.abs(answer.mask_logits - expected.mask_logits).max() / np.ptp(expected.mask_logits)


def assert_same_tensors(network, whole):
    """Check that a network, or the part of it that a file has, holds the tensors of the whole network."""
    expected = whole.state_dict()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@torch.backends.mkldnn.flags(enabled=False)  # beside ikomia, its backward convolution does not end
def used_by_transformers(folder, image):
    """Return the names, as in the published file, of the tensors that answers of transformers' models depend on."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    detector = load_reference(Sam3Model, folder)
    found = detector(
        pixel_values=pixels,
        input_ids=torch.tensor([[49406, 1929, 49407]]),
        input_boxes=torch.tensor([[[0.3, 0.4, 0.4, 0.4]]]),
        input_boxes_labels=torch.tensor([[1]]),
    )
    sum(output.sum() for output in found.values() if isinstance(output, torch.Tensor)).backward()
    used = {f"detector_model.{name}" for name, weight in detector.named_parameters() if weight.grad is not None}

    click_head = load_reference(Sam3TrackerModel, folder, click_config(ARCHITECTURE))
    for table in click_head.buffers():
        table.requires_grad_(table.is_floating_point())
    for multimask in (False, True):
        found = click_head(
            pixel_values=pixels,
            input_points=torch.tensor([[[[40.0, 50.0]]]]),
            input_labels=torch.tensor([[[1]]]),
            multimask_output=multimask,
        )
        (found.pred_masks.sum() + found.iou_scores.sum() + found.object_score_logits.sum()).backward()
    for name, weight in [*click_head.named_parameters(), *click_head.named_buffers()]:
        if weight.grad is not None and name in click_head.state_dict():
            used.add(published_name(name))
    return used


def published_name(name):
    """Return a name of ``Sam3TrackerModel`` as in the published file."""
    if name.startswith("vision_encoder.neck."):
        return name.replace("vision_encoder.neck.", "tracker_neck.")
    return ("detector_model." if name.startswith("vision_encoder.") else "tracker_model.") + name


def read_by_engine(path, network):
    """Return the names of the tensors that the engine reads from a file."""
    checkpoint = read_checkpoint(path)
    read = []

    class Recorder:
        path, tensors, architecture = checkpoint.file.path, checkpoint.file.tensors, checkpoint.file.architecture

        def load(self, names):
            names = list(names)
            read.extend(names)
            return checkpoint.file.load(names)

    fit_tensors(dataclasses.replace(checkpoint, file=Recorder()), network.state_dict())
    return set(read)
