"""A network answers the same from every layout of file, and no tensor of one is ever ignored by mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_accuracy import FEW_SCENES, OUTLINES, PHRASES, examine_briefly, good
from transformers import Sam3Model, Sam3TrackerConfig, Sam3TrackerModel, Sam3VideoModel

from sam3_engine.architecture import Architecture
from sam3_engine.checkpoints.checkpoint import fit_tensors, read_checkpoint
from sam3_engine.checkpoints.layout import Layout, Source
from sam3_engine.errors import CheckpointError, PromptError
from sam3_engine.model import Model, build_image_network, load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt, Prompt
from sam3_engine.segments import Segment
from testbed.layout_files import (
    LAYOUTS,
    SAM3,
    SAM31,
    Contents,
    Tensors,
    as_fine_tuned,
    as_transformers_click_head,
    as_transformers_detector,
    as_transformers_video,
    read_contents,
    without,
    write_torch,
)
from testbed.plugin import Plugin
from testbed.scenes import Scene, draw_scene
from testbed.transformers_models import video_config
from training.evaluate import Examinee
from training.questions import EXEMPLAR_KINDS, OUTLINE_KINDS, ask_by_exemplar, ask_for_outline, ask_for_two

CPU = torch.device("cpu")
SEED = 20_000_300  # of a scene that training never saw, with several kinds of shapes and dots
OTHER_INPUT_SIZE = 252


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt, and whether to ask for candidates."""

    prompt: Prompt
    options: Options = Options()

    @property
    def by_concept(self) -> bool:
        return isinstance(self.prompt, ConceptPrompt)


def concept_questions(scene: Scene, random: np.random.Generator) -> Iterator[Question]:
    first, second = ask_for_two(random, scene)
    yield Question(ConceptPrompt((first.phrase,)))
    yield Question(ConceptPrompt((first.phrase, second.phrase)))
    for kind in EXEMPLAR_KINDS:
        shown = ask_by_exemplar(random, scene, kind)
        yield Question(ConceptPrompt((shown.phrase,) if shown.phrase else (), tuple(shown.boxes), tuple(shown.labels)))


def click_questions(scene: Scene, random: np.random.Generator) -> Iterator[Question]:
    prompts = [GeometricPrompt(boxes=tuple(shape.whole.box for shape in scene.shapes))]
    for kind in OUTLINE_KINDS:
        asked = ask_for_outline(random, scene, kind)
        points, labels = tuple(map(tuple, asked.points.tolist())), tuple(asked.labels.tolist())
        prompts.append(GeometricPrompt((asked.box,) if asked.box else (), points, labels))
    for prompt in prompts:
        yield Question(prompt)
        yield Question(prompt, Options(multimask=True))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(np.random.default_rng(SEED))


@pytest.fixture(scope="module")
def questions(scene) -> list[Question]:
    random = np.random.default_rng(SEED)
    return [*concept_questions(scene, random), *click_questions(scene, random)]


@pytest.fixture(scope="module")
def shapes(shapes_checkpoint) -> Contents:
    return read_contents(shapes_checkpoint)


@pytest.fixture(scope="module")
def small(small_checkpoint) -> Contents:
    return read_contents(small_checkpoint)


@pytest.fixture(scope="module")
def saved(shapes, tmp_path_factory) -> Callable[[str], Path]:
    """Write the shapes network in a layout, once, and return its path."""

    @functools.cache
    def save(name: str) -> Path:
        return LAYOUTS[name].save(tmp_path_factory.mktemp("layout"), shapes)

    return save


def answer(model: Model, image: np.ndarray, questions: list[Question], input_size: int = 0) -> list[list[Segment]]:
    """Return the answers to the questions that the model can answer."""
    predictor = Predictor(model, input_size)
    embedding = predictor.encode_image(image)
    return [
        predictor.segment(embedding, question.prompt, question.options) for question in answerable(model, questions)
    ]


def answerable(model: Model, questions: list[Question]) -> list[Question]:
    parts = model.architecture
    return [question for question in questions if (parts.detector if question.by_concept else parts.click_head)]


def assert_identical(found: list[list[Segment]], wanted: list[list[Segment]]) -> None:
    assert len(found) == len(wanted) > 0
    for segments, expected in zip(found, wanted, strict=True):
        assert [(segment.score, segment.label, segment.detected_box) for segment in segments] == [
            (segment.score, segment.label, segment.detected_box) for segment in expected
        ]
        for segment, other in zip(segments, expected, strict=True):
            assert torch.equal(segment.mask_logits, other.mask_logits)


def assert_close(found: list[list[Segment]], wanted: list[list[Segment]], scores: float, pixels: float) -> None:
    """Compare answers that rounding may change: the largest difference of scores, and the least agreement of masks."""
    assert [len(segments) for segments in found] == [len(segments) for segments in wanted]
    agreement = []
    for segment, other in zip(itertools.chain(*found), itertools.chain(*wanted), strict=True):
        assert segment.label == other.label
        assert abs(segment.score - other.score) < scores * max(1, abs(other.score))  # SAM 3.1's have no bounds
        agreement.append(np.mean(segment.mask == other.mask))
    assert np.mean(agreement) > pixels


def align_tensors(model: Model) -> None:
    """Copy each tensor to an aligned address.

    safetensors packs tensors without gaps. PyTorch adds numbers in another order if they start at an odd address, so
    answers differ in the last bits, which are no property of a layout.
    """
    for tensor in itertools.chain(model.network.parameters(), model.network.buffers()):
        tensor.data = tensor.data.clone()
    for cache in (model.embeddings, model.phrases):
        cache.clear()


def follow_rules_of_sam31(model: Model, tensors: Tensors, input_size: int = 0) -> None:
    """Replace a SAM 3 model's mask decoder by the package's own, with SAM 3.1's options and the same weights.

    Args:
        model: a model of SAM 3.
        tensors: of its checkpoint, with Meta's names.
        input_size: replace it in the network of this input size.
    """
    from sam3.sam.mask_decoder import MaskDecoder  # sam3_engine has imported sam3 without its side effects

    sizes = model.architecture
    network = model.network_at(input_size or sizes.resolution)
    tracker = network.inst_interactive_predictor.model
    decoder = MaskDecoder(
        transformer_dim=sizes.width,
        transformer=tracker.sam_mask_decoder.transformer,
        iou_head_hidden_dim=sizes.iou_head_width,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=False,
        dynamic_multimask_via_stability=False,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )
    prefix = "tracker.sam_mask_decoder."
    decoder.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    tracker.sam_mask_decoder = decoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def original(shapes_checkpoint, shapes, scene, questions) -> Callable[..., list[list[Segment]]]:
    """Answer with the demo's file as it is, or with its mask decoder replaced by one that follows SAM 3.1's rules."""

    @functools.cache
    def all_answers(precision: torch.dtype, input_size: int, sam31: bool) -> dict[Prompt, list[list[Segment]]]:
        model = load_model(shapes_checkpoint, CPU, precision)
        if sam31:
            follow_rules_of_sam31(model, shapes.tensors, input_size)
        return answer(model, scene.image, questions, input_size)

    def answers(model: Model, input_size: int = 0) -> list[list[Segment]]:
        given = all_answers(model.precision, input_size, model.description == SAM31)
        can_answer = answerable(model, questions)
        return [segments for question, segments in zip(questions, given, strict=True) if question in can_answer]

    return answers


def test_the_questions_cover_every_kind_of_prompt_and_have_answers(original, shapes_checkpoint, questions):
    assert len(questions) == 2 + len(EXEMPLAR_KINDS) + 2 * (1 + len(OUTLINE_KINDS))
    answers = original(load_model(shapes_checkpoint, CPU, torch.float32))
    assert all(answers)
    boxes = next(question.prompt.boxes for question in questions if not question.by_concept)
    assert len(boxes) > 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_recognized_and_answers_as_the_original(name, saved, original, scene, questions):
    """The demo's weights are float16 numbers: in float32 and float16 nothing may change, in bfloat16 a little."""
    layout = LAYOUTS[name]
    for precision, input_sizes in ((torch.float32, (0, OTHER_INPUT_SIZE)), (torch.bfloat16, (0,))):
        model = load_model(saved(name), CPU, precision)
        assert model.description == layout.description
        if layout.dtype == torch.bfloat16:
            assert_close(answer(model, scene.image, questions), original(model), scores=0.02, pixels=0.99)
            continue
        if precision == torch.float32:
            assert_close(answer(model, scene.image, questions), original(model), scores=1e-5, pixels=0.9999)
        align_tensors(model)
        for input_size in input_sizes:
            assert_identical(answer(model, scene.image, questions, input_size), original(model, input_size))


@pytest.mark.parametrize("name", ["sam3.1", "sam3.1, converted to float16", "transformers"])
def test_other_layouts_reach_the_accuracy_of_the_original(name, saved):
    results = examine_briefly(Examinee(saved(name)))
    assert good(results.found["phrases"], PHRASES)
    assert results.absent_asked == 2 * FEW_SCENES
    assert results.absent_answered <= 1
    assert np.mean(results.outlines["box"].single) >= OUTLINES["box"]


def test_the_files_in_transformers_layout_have_the_names_and_shapes_of_its_own_models(shapes):
    config = video_config(Architecture.from_dict(shapes.architecture))
    tracker = config.tracker_config
    click_head = Sam3TrackerConfig(
        vision_config=tracker.vision_config,
        prompt_encoder_config=tracker.prompt_encoder_config,
        mask_decoder_config=tracker.mask_decoder_config,
    )
    # transformers fixes the width of the video memory, which the demo's network has narrower
    of_memory = re.compile(r".*memory_attention.*cross_attn_image\.[kv]_proj\.weight")
    for owned, own_config, convert in (
        (Sam3VideoModel, config, as_transformers_video),
        (Sam3Model, config.detector_config, as_transformers_detector),
        (Sam3TrackerModel, click_head, as_transformers_click_head),
    ):
        with torch.device("meta"):
            own = {name: tensor.shape for name, tensor in owned(own_config).state_dict().items()}
        ours = {name: tensor.shape for name, tensor in convert(shapes.tensors).items()}
        assert ours.keys() == own.keys()
        assert {name for name in own if ours[name] != own[name] and not of_memory.fullmatch(name)} == set()


# SAM 3.1's own rules


def clicks() -> list[Question]:
    points = [(float(x), float(y)) for x in range(40, 440, 80) for y in range(40, 440, 80)]
    return [Question(GeometricPrompt(points=(point,), point_labels=(1,))) for point in points]


@pytest.mark.parametrize("checkpoint", ["shapes", "small"])
def test_sam31_returns_its_own_mask_and_score_also_where_sam3_falls_back_to_a_candidate(
    checkpoint, request, scene, tmp_path
):
    contents = request.getfixturevalue(checkpoint)
    sam3 = load_model(write_torch(tmp_path / "sam3.pt", contents.tensors, contents.architecture), CPU, torch.float32)
    asked = clicks()
    fallen_back = answer(sam3, scene.image, asked)
    follow_rules_of_sam31(sam3, contents.tensors)
    wanted = answer(sam3, scene.image, asked)
    sam31 = load_model(LAYOUTS["sam3.1"].save(tmp_path, contents), CPU, torch.float32)
    found = answer(sam31, scene.image, asked)
    assert_identical(found, wanted)
    differing = [one for (one,), (other,) in zip(found, fallen_back, strict=True) if not same_mask(one, other)]
    assert differing, "no click is unstable: choose others"


def same_mask(one: Segment, other: Segment) -> bool:
    return torch.equal(one.mask_logits, other.mask_logits)


def test_sam31_scores_are_the_heads_own_output(shapes_checkpoint, saved, scene):
    asked = [Question(question.prompt, Options(multimask=True)) for question in clicks()]
    squashed = answer(load_model(shapes_checkpoint, CPU, torch.float32), scene.image, asked)
    found = answer(load_model(saved("sam3.1"), CPU, torch.float32), scene.image, asked)
    scores, others = (np.array([[one.score for one in three] for three in answers]) for answers in (found, squashed))
    assert scores.max() > 1
    assert 1 / (1 + np.exp(-scores)) == pytest.approx(others, abs=1e-6)
    assert all(same_mask(*pair) for answers in zip(found, squashed, strict=True) for pair in zip(*answers, strict=True))


# what a file does not contain

WITHOUT_CLICK_HEAD = ["fine-tuned", "transformers detector"]
WITHOUT_DETECTOR = ["transformers click head"]


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """Count the images that are encoded."""
    images: list[str] = []
    encode = Predictor._encode
    monkeypatch.setattr(Predictor, "_encode", lambda self, *rest: images.append("image") or encode(self, *rest))
    return images


@pytest.mark.parametrize("name", WITHOUT_CLICK_HEAD)
@pytest.mark.parametrize(
    ("prompt", "argument"),
    [
        (GeometricPrompt(points=((9.0, 9.0),), point_labels=(1,)), "points"),
        (GeometricPrompt(boxes=((9.0, 9.0, 90.0, 90.0),)), "boxes"),
        (GeometricPrompt(((9.0, 9.0, 90.0, 90.0),), ((20.0, 20.0),), (1,)), "points|boxes"),
    ],
)
def test_points_and_boxes_without_a_click_head_are_refused_before_encoding(
    name, prompt, argument, saved, scene, encoded
):
    predictor = Predictor(load_model(saved(name), CPU, torch.float32))
    with pytest.raises(PromptError, match="click head") as refused:
        predictor.predict(scene.image, prompt)
    assert re.fullmatch(argument, refused.value.argument)
    assert encoded == []
    embedding = predictor.encode_image(scene.image)
    assert encoded == ["image"]
    with pytest.raises(PromptError, match="click head"):
        predictor.segment(embedding, prompt)
    assert predictor.segment(embedding, ConceptPrompt(("shape",)))


@pytest.mark.parametrize("name", WITHOUT_DETECTOR)
@pytest.mark.parametrize(
    ("prompt", "argument"),
    [
        (ConceptPrompt(("star",)), "phrases"),
        (ConceptPrompt(boxes=((9.0, 9.0, 90.0, 90.0),), box_labels=(1,)), "boxes|box_labels"),
        (ConceptPrompt(("star",), ((9.0, 9.0, 90.0, 90.0),), (1,)), "phrases|boxes"),
    ],
)
def test_phrases_and_examples_without_a_detector_are_refused_before_encoding(
    name, prompt, argument, saved, scene, encoded
):
    predictor = Predictor(load_model(saved(name), CPU, torch.float32))
    with pytest.raises(PromptError, match="detector") as refused:
        predictor.predict(scene.image, prompt)
    assert re.fullmatch(argument, refused.value.argument)
    assert encoded == []
    embedding = predictor.encode_image(scene.image)
    with pytest.raises(PromptError, match="detector"):
        predictor.segment(embedding, prompt)
    assert predictor.segment(embedding, clicks()[0].prompt)


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("fine-tuned", GeometricPrompt((), ((20, 20), (30, 31.5)), (1, 1)), "points = '[[20, 20], [30, 31.5]]': "),
        ("fine-tuned", GeometricPrompt(boxes=((9, 9, 900, 90),)), "boxes = '[[9, 9, 900, 90]]': "),
        ("transformers click head", ConceptPrompt(("star",)), "phrases = 'star': "),
        ("transformers click head", ConceptPrompt(("star", "dot")), """phrases = "['star', 'dot']": """),
    ],
)
def test_a_prompt_that_the_file_does_not_answer_is_quoted_as_a_whole(name, prompt, message, saved, scene):
    predictor = Predictor(load_model(saved(name), CPU, torch.float32))
    for refused in (lambda: predictor.check_answers(prompt), lambda: predictor.predict(scene.image, prompt)):
        with pytest.raises(PromptError, match=f"^{re.escape(message)}"):
            refused()


PLUGIN_PROMPTS = {
    "fine-tuned": [
        ({"input_point": [[20, 20]]}, "input_point", {"input_text": "shape"}),
        ({"input_box": [9, 9, 90, 90]}, "input_box", {"input_text": "shape"}),
    ],
    "transformers click head": [
        ({"input_text": "star"}, "input_text", {"input_point": [[20, 20]]}),
        ({"input_box": [9, 9, 90, 90], "input_box_label": [1]}, "input_box", {"input_point": [[20, 20]]}),
    ],
}


@pytest.mark.parametrize("name", PLUGIN_PROMPTS)
def test_the_plugin_names_the_parameter_that_a_file_cannot_answer_and_goes_on(name, saved, scene, encoded):
    plugin = Plugin(model_weight_file=saved(name), cuda=False)
    for prompt, parameter, answered in PLUGIN_PROMPTS[name]:
        encoded.clear()
        with pytest.raises(RuntimeError, match=rf"^{parameter}\w* = "):
            plugin.segment(scene.image, **prompt)
        assert encoded == []
        assert plugin.segment(scene.image, **answered)[0].get_mask().any()


@pytest.mark.parametrize("prefix", ["", "detector."])
def test_a_detector_without_a_mask_head_is_refused(prefix, shapes, tmp_path):
    boxes_only = without(as_fine_tuned(shapes.tensors), "segmentation_head.")
    path = tmp_path / "boxes.pt"
    write_torch(path, {prefix + name: tensor for name, tensor in boxes_only.items()}, shapes.architecture)
    with pytest.raises(CheckpointError, match="no mask head.*Fine-tune with"):
        load_model(path, CPU)


def test_transformers_without_a_mask_head_gets_no_advice_about_the_trainer_of_meta(shapes, tmp_path):
    boxes_only = without(as_transformers_detector(shapes.tensors), "mask_decoder.")
    with pytest.raises(CheckpointError, match="no mask head") as refused:
        load_model(write_torch(tmp_path / "boxes.pt", boxes_only, shapes.architecture), CPU)
    assert "Fine-tune" not in str(refused.value)


# every tensor of every layout

# what a human calls unused for images, in the names of each family of files
EXAMPLE_POINTS = r"geometry_encoder\.points_(direct|pool|pos_enc)_project\.(weight|bias)"
PHRASE_AS_ONE_VECTOR = r"backbone\.language_backbone\.encoder\.text_projection"
TRANSFORMERS_VIDEO = (
    r"(memory_\w+|object_pointer_proj|temporal_positional_encoding_projection_layer|mask_downsample)\..*"
    r"|memory_temporal_positional_encoding|no_memory_positional_encoding|no_object_pointer"
    r"|occlusion_spatial_embedding_parameter"
)
UNUSED = {
    "sam3": [
        rf"detector\.({EXAMPLE_POINTS}|{PHRASE_AS_ONE_VECTOR})",
        r"detector\.backbone\.vision_backbone\.(sam2_)?convs\.3\.conv_\dx\d\.(weight|bias)",
        r"tracker\.(transformer|maskmem_backbone|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\..*",
        r"tracker\.(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)",
    ],
    "sam3.1": [
        rf"(detector|sam3_model)\.({EXAMPLE_POINTS}|{PHRASE_AS_ONE_VECTOR})",
        r"(detector|sam3_model)\.backbone\.vision_backbone\.propagation_convs\..*",
        r"(tracker|sam2_predictor)\.model\.(?!interactive_|interactivity_).*",
        r"(tracker|sam2_predictor)\.model\.interactive_(mask_downsample|obj_ptr_proj)\..*",
    ],
    "transformers": [
        r"(detector_model\.)?text_encoder\.text_projection\.weight",
        r"(detector_model\.vision_encoder\.neck|tracker_neck|vision_encoder\.neck)\.fpn_layers\.3\..*",
        r"tracker_model\.tracker_neck\.fpn_layers\.3\..*",
        rf"tracker_model\.({TRANSFORMERS_VIDEO})",
    ],
    "fine-tuned": [
        rf"(module\.)?({EXAMPLE_POINTS}|{PHRASE_AS_ONE_VECTOR})",
        r"(module\.)?backbone\.vision_backbone\.convs\.3\.conv_\dx\d\.(weight|bias)",
    ],
}
COMPUTED = r".*\.attn\.freqs_cis"  # may be absent, but not wrong

FAMILIES = sorted(UNUSED, key=len, reverse=True)
SAMPLE = 40
SCRUTINIZED = {  # which tensors
    "sam3": "all",
    "sam3, safetensors": "a sample",
    "sam3.1": "all",
    "sam3.1, older prefixes": "a sample",
    "sam3.1, converted to float16": "a sample",
    "transformers": "all",
    "transformers detector": "a sample",
    "transformers click head": "all",
    "transformers click head, as save_pretrained writes it": "a sample",
    "fine-tuned": "all",
    "fine-tuned, behind module.": "a sample",
}

Spoil = Callable[[Tensors, str, np.random.Generator], Tensors | None]  # None: this tensor cannot be spoilt so


def dropped(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors:
    return {other: tensor for other, tensor in tensors.items() if other != name}


def doubled(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors:
    prefix, _, rest = name.partition(".")
    copies = [f"copy.{name}", f"{name}.1", f"{prefix}.copy.{rest}", f"copy_of_{name}", rest]
    copy = copies[random.integers(len(copies))] or f"{name}.copy"
    return {**tensors, copy: tensors[name].clone()}


def reshaped(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors:
    tensor = tensors[name]
    shapes = [(1, *tensor.shape), (*tensor.shape, 1), (tensor.numel(),)]
    possible = [shape for shape in shapes if shape != tensor.shape]
    return {**tensors, name: tensor.reshape(possible[random.integers(len(possible))])}


def transposed(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors | None:
    tensor = tensors[name]
    if tensor.ndim < 2 or tensor.shape[0] == tensor.shape[1]:
        return None
    return {**tensors, name: tensor.transpose(0, 1).contiguous()}


def grown(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors:
    """Make a tensor longer along one of its axes: a reader that takes the rows it needs would not notice."""
    tensor = tensors[name]
    axis = int(random.integers(tensor.ndim))
    return {**tensors, name: torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)}


def renamed(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors:
    while True:
        at = int(random.integers(len(name)))
        character = "abcdefghijklmnopqrstuvwxyz0123456789._"[random.integers(38)]
        other = name[:at] + character + name[at + 1 :]
        if other not in tensors:
            return {other if one == name else one: tensor for one, tensor in tensors.items()}


def whole_numbers(tensors: Tensors, name: str, random: np.random.Generator) -> Tensors:
    return {**tensors, name: torch.ones(tensors[name].shape, dtype=torch.int32)}


SPOILS: tuple[Spoil, ...] = (dropped, doubled, reshaped, transposed, grown, renamed, whole_numbers)


@dataclasses.dataclass
class InMemory:
    """A weight file that was never written: a test writes no thousand files."""

    contents: Tensors
    tensors: Tensors
    architecture: object
    path: Path = Path("in_memory")

    def load(self, names):
        return {name: self.contents[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a reader makes of a file: what it says that it is, and all tensors of the network."""

    description: str
    tensors: Tensors

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Reading)
        return (
            self.description == other.description
            and self.tensors.keys() == other.tensors.keys()
            and all(
                tensor.dtype == other.tensors[name].dtype and torch.equal(tensor, other.tensors[name])
                for name, tensor in self.tensors.items()
            )
        )


Reader = Callable[[InMemory], Reading]


@functools.cache
def tensors_of_network(architecture: Architecture) -> Tensors:
    return build_image_network(architecture, CPU).state_dict()


@pytest.fixture
def strict(monkeypatch) -> Reader:
    """Read as :func:`~sam3_engine.model.load_model` does, but from memory and without assembling a network."""
    known: dict = {}
    source_of = Layout.source_of

    def remembered(layout: Layout, name: str) -> Source | None:
        key = (layout.version, layout.style, name)
        if key not in known:
            known[key] = source_of(layout, name)
        return known[key]

    monkeypatch.setattr(Layout, "source_of", remembered)  # the same every time, and slow

    def read(file: InMemory) -> Reading:
        monkeypatch.setattr("sam3_engine.checkpoints.checkpoint.open_weight_file", lambda path: file)
        recognized = read_checkpoint(file.path)
        return Reading(recognized.description, fit_tensors(recognized, tensors_of_network(recognized.architecture)))

    return read


def sloppy(file: InMemory) -> Reading:
    """Read a file of SAM 3 as ``load_state_dict(strict=False)`` would, and make everything fit."""
    tensors = {}
    for name, wanted in tensors_of_network(Architecture.from_dict(file.architecture)).items():
        prefix = "inst_interactive_predictor.model."
        in_file = "tracker." + name.removeprefix(prefix) if name.startswith(prefix) else "detector." + name
        tensor = file.contents.get(in_file, torch.zeros(wanted.shape))
        tensors[name] = tensor.to(wanted.dtype).flatten()[: wanted.numel()].reshape(wanted.shape)
    return Reading(SAM3, tensors)


def spoilt(tensors: Tensors, which: str, random: np.random.Generator) -> Iterator[tuple[str, Spoil]]:
    """Yield a sample of the tensors with every way to spoil them, and, of all, the others with one way each."""
    sample = random.choice(sorted(tensors), SAMPLE, replace=False)
    yield from itertools.product(map(str, sample), SPOILS)
    if which == "all":
        for name in sorted(tensors.keys() - set(sample)):
            yield name, SPOILS[random.integers(len(SPOILS))]


def mistakes(layout: str, small: Contents, read: Reader) -> list[str]:
    """Spoil tensors one at a time, and return what the reader took although it matters, or refused without a reason."""
    random = np.random.default_rng(list(LAYOUTS).index(layout))
    tensors = LAYOUTS[layout].tensors(small.tensors)
    headers = {name: tensor.to("meta") for name, tensor in tensors.items()}
    untouched = read(InMemory(tensors, headers, small.architecture))
    unused = UNUSED[next(family for family in FAMILIES if layout.startswith(family))]
    found = []
    for name, spoil in spoilt(tensors, SCRUTINIZED[layout], random):
        changed = spoil(tensors, name, random)
        if changed is None:
            continue
        file = InMemory(
            changed,
            {one: headers[one] if t is tensors.get(one) else t.to("meta") for one, t in changed.items()},
            small.architecture,
        )
        try:
            reading = read(file)
        except CheckpointError as error:
            culprits = {name, *changed} - (tensors.keys() - {name})
            if not any(culprit.split(".", 1)[1] in str(error) for culprit in culprits if "." in culprit):
                found.append(f"{spoil.__name__} {name}: refused without its name: {error}")
            continue
        harmless = [*unused, *([COMPUTED] if spoil is dropped else [])]
        if not any(re.fullmatch(pattern, name) for pattern in harmless):
            found.append(f"{spoil.__name__} {name}: taken")
        elif reading != untouched:
            found.append(f"{spoil.__name__} {name}: taken, and the network changed")
    return found


@pytest.mark.parametrize("layout", SCRUTINIZED)
def test_every_tensor_that_is_changed_is_refused_or_provably_unused(layout, small, strict):
    found = mistakes(layout, small, strict)
    assert not found, "\n".join(found)


ROW_LAYOUTS = ["sam3", "sam3.1", "transformers", "transformers click head"]


@pytest.mark.parametrize("layout", ROW_LAYOUTS)
@pytest.mark.parametrize("rows", [-1, 1])
def test_a_tensor_with_a_row_too_few_or_too_many_is_refused(layout, rows, small, strict):
    """A rule may take some rows of a tensor, or join several: no length but the right one may fit."""
    tensors = LAYOUTS[layout].tensors(small.tensors)
    headers = {name: tensor.to("meta") for name, tensor in tensors.items()}
    unused = UNUSED[next(family for family in FAMILIES if layout.startswith(family))]
    used = [name for name in tensors if not any(re.fullmatch(pattern, name) for pattern in unused)]
    assert len(used) > 100
    taken = []
    for name in used:
        length, *others = tensors[name].shape
        changed = headers | {name: torch.empty((length + rows, *others), dtype=tensors[name].dtype, device="meta")}
        with contextlib.suppress(CheckpointError):
            strict(InMemory(tensors, changed, small.architecture))
            taken.append(name)
    assert taken == []


@pytest.mark.parametrize(
    ("table", "reason"),
    [(torch.zeros(5, 32), "it has 5 rows, expected 4"), (torch.zeros(3, 32), "it has 3 rows"), (torch.zeros(()), "")],
)
def test_the_table_of_point_labels_has_four_rows(small, tmp_path, table, reason):
    name = "tracker_model.prompt_encoder.point_embed.weight"
    tensors = {**as_transformers_video(small.tensors), name: table}
    with pytest.raises(CheckpointError, match=f"'{name}' cannot be used: {reason}"):
        load_model(write_torch(tmp_path / "rows.pt", tensors, small.architecture), CPU)


def test_projections_of_different_lengths_are_not_joined(small, tmp_path):
    tensors = as_transformers_video(small.tensors)
    q, k = (f"detector_model.vision_encoder.backbone.layers.0.attention.{part}_proj.weight" for part in "qk")
    both = torch.cat([tensors[q], tensors[k]])
    middle = len(tensors[q]) + 8
    tensors |= {q: both[:middle].clone(), k: both[middle:].clone()}
    with pytest.raises(CheckpointError, match=f"'{q}'.* cannot be used: their shapes differ"):
        load_model(write_torch(tmp_path / "joined.pt", tensors, small.architecture), CPU)


@pytest.mark.parametrize("layout", ["sam3", "sam3.1", "transformers", "fine-tuned"])
@pytest.mark.parametrize("change", ["absent", "noise"])
def test_the_tensors_that_are_unused_do_not_change_any_answer(layout, change, small, photograph, tmp_path):
    tensors = LAYOUTS[layout].tensors(small.tensors)
    unused = [name for name in tensors if any(re.fullmatch(pattern, name) for pattern in UNUSED[layout])]
    assert len(unused) > 5
    others = {name: tensor for name, tensor in tensors.items() if name not in unused}
    if change == "noise":
        others |= {name: torch.full((3, 5), torch.nan) for name in unused}
    models = []
    for part, contents in (("whole", tensors), ("changed", others)):
        path = tmp_path / f"{part}{LAYOUTS[layout].suffix}"
        models.append(load_model(LAYOUTS[layout].write(path, contents, small.architecture), CPU, torch.float32))
    box = ((60.0, 80.0, 300.0, 330.0),)
    everything = Options(confidence_threshold=0, multimask=True)
    asked = [
        Question(ConceptPrompt(("yellow bus",)), everything),
        Question(ConceptPrompt(boxes=box, box_labels=(1,)), everything),
        Question(GeometricPrompt(points=((210.0, 150.0), (500.0, 300.0)), point_labels=(1, 0))),
        Question(GeometricPrompt(boxes=box), everything),
    ]
    for model in models:
        align_tensors(model)
    whole, changed = (answer(model, photograph, asked) for model in models)
    assert_identical(changed, whole)


def test_a_sloppy_reader_fails_the_test_of_every_tensor(small):
    found = mistakes("sam3", small, sloppy)
    for spoil in SPOILS:
        assert sum(mistake.startswith(spoil.__name__) for mistake in found) > SAMPLE / 2, spoil.__name__
