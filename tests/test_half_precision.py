"""Where half precision gives NaN or infinity, the model computes in float32; only then are its weights blamed."""

import numpy as np
import pytest
import torch

from sam3_engine.errors import CheckpointError, DeviceMemoryError
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, EverythingPrompt, GeometricPrompt
from sam3_engine.segments import label_map
from sam3_engine.weight_precision import cast_encoder_weights
from testbed.layout_files import as_fine_tuned, as_transformers_click_head, read_contents, write_safetensors

CPU = torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)
SCALE = 2.0**24  # of values in a layer; the next layer divides by it: exact in float32, too large for float16
BOX = (60.0, 80.0, 300.0, 330.0)
PROMPTS = {
    "phrase": ConceptPrompt(("shoe",)),
    "example": ConceptPrompt(boxes=(BOX,), box_labels=(1,)),
    "point": GeometricPrompt(points=((210.0, 150.0),), point_labels=(1,)),
    "boxes": GeometricPrompt(boxes=(BOX, (5.0, 5.0, 635.0, 420.0))),
    "everything": EverythingPrompt(3),
}
EVERY_MASK = Options(confidence_threshold=0, multimask=True, predicted_iou_threshold=0, stability_score_threshold=0)
# projection to values (the last rows if there are others), projection behind it, prompts that run it
OVERFLOWING = {
    "image encoder": (
        "detector.backbone.vision_backbone.trunk.blocks.1.attn.qkv",
        "detector.backbone.vision_backbone.trunk.blocks.1.attn.proj",
        list(PROMPTS),
    ),
    "text encoder": (
        "detector.backbone.language_backbone.encoder.transformer.resblocks.0.attn.in_proj_",
        "detector.backbone.language_backbone.encoder.transformer.resblocks.0.attn.out_proj",
        ["phrase", "example"],
    ),
    "detector": (
        "detector.transformer.encoder.layers.0.self_attn.in_proj_",
        "detector.transformer.encoder.layers.0.self_attn.out_proj",
        ["phrase", "example"],
    ),
    "click head": (
        "tracker.sam_mask_decoder.transformer.layers.0.cross_attn_token_to_image.v_proj",
        "tracker.sam_mask_decoder.transformer.layers.0.cross_attn_token_to_image.out_proj",
        ["point", "boxes"],
    ),
}
WITH_PROMPTS = [(part, kind) for part, (_, _, kinds) in OVERFLOWING.items() for kind in kinds]


@pytest.fixture
def overflowing(small_checkpoint, tmp_path):
    """Return a function that writes a checkpoint that overflows float16, with the answers of the small one."""

    def write(part):
        contents = torch.load(small_checkpoint, weights_only=True)
        tensors = dict(contents["model"])
        values, behind, _ = OVERFLOWING[part]
        for kind in ("weight", "bias"):
            name = values + kind if values.endswith("_") else f"{values}.{kind}"
            scaled = tensors[name].clone()
            rows = len(scaled) if "v_proj" in name else len(scaled) // 3
            scaled[-rows:] *= SCALE
            tensors[name] = scaled
        tensors[f"{behind}.weight"] = tensors[f"{behind}.weight"] / SCALE
        path = tmp_path / "overflowing.pt"
        torch.save({**contents, "model": tensors}, path)
        return path

    return write


def warned(caplog):
    """Return the engine's warnings about the precision."""
    return [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelname) == ("sam3_engine.model", "WARNING") and "float32" in record.getMessage()
    ]


def segments(predictor, image, kind, embedding=None):
    embedding = embedding or predictor.encode_image(image)
    return predictor.segment(embedding, PROMPTS[kind], EVERY_MASK)


def answer(*arguments):
    return [(one.score, one.box, one.mask.tobytes(), one.mask_logits.dtype) for one in segments(*arguments)]


def with_rounded_encoders(model):
    """Round the weights of a model's encoders to float16, and keep them in float32."""
    for precision in (torch.float16, torch.float32):
        cast_encoder_weights(model.network, CPU, precision)
    return model


@pytest.mark.parametrize(("part", "kind"), WITH_PROMPTS)
def test_a_network_that_overflows_float16_answers_as_in_float32(
    small_checkpoint, overflowing, photograph, caplog, part, kind
):
    model = load_model(overflowing(part), CPU, torch.float16)
    found = answer(Predictor(model), photograph, kind)
    assert warned(caplog) == [
        "SAM 3 returned NaN or infinity in float16. It runs in float32 from now on, which is slower."
    ]
    assert answer(Predictor(model), photograph[::-1], kind)
    assert model.precision == torch.float32
    assert len(warned(caplog)) == 1
    if part != "image encoder":  # the image was encoded in float16
        model.embeddings.clear()
        found = answer(Predictor(model), photograph, kind)
    assert found == answer(Predictor(load_model(small_checkpoint, CPU, torch.float32)), photograph, kind)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", PROMPTS)
def test_a_network_without_overflow_stays_in_half_precision(small_checkpoint, photograph, caplog, kind, precision):
    model = load_model(small_checkpoint, CPU, precision)
    assert answer(Predictor(model), photograph, kind)
    assert model.precision == precision
    assert warned(caplog) == []


def gives_nan_in(precision):
    """Return a hook that spoils what a layer returns in one precision, as some GPUs do."""
    return lambda _layer, _arguments, result: result * torch.nan if result.dtype == precision else result


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", ["phrase", "example", "boxes"])
def test_a_layer_that_fails_in_half_precision_is_computed_in_float32(
    small_checkpoint, photograph, caplog, kind, precision
):
    model = load_model(small_checkpoint, CPU, precision)
    network = model.network
    for layer in (
        network.transformer.decoder.layers[0].linear2,
        network.inst_interactive_predictor.model.sam_mask_decoder.transformer.layers[0].mlp,
    ):
        layer.register_forward_hook(gives_nan_in(precision))
    answer(Predictor(model), photograph, kind)
    assert (model.precision, len(warned(caplog))) == (torch.float32, 1)
    model.embeddings.clear()
    wanted = answer(Predictor(load_model(small_checkpoint, CPU, torch.float32)), photograph, kind)
    assert answer(Predictor(model), photograph, kind) == wanted


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("kind", PROMPTS)
def test_an_image_encoder_that_fails_in_half_precision_is_run_in_float32(
    small_checkpoint, photograph, caplog, kind, precision
):
    model = load_model(small_checkpoint, CPU, precision)
    predictor = Predictor(model)
    model.network.backbone.vision_backbone.trunk.blocks[0].attn.proj.register_forward_hook(gives_nan_in(precision))
    steps = []
    found = predictor.predict(
        photograph, PROMPTS[kind], EVERY_MASK, on_encoded=lambda: steps.append("encoded"), on_step=lambda: None
    )
    assert (model.precision, len(warned(caplog)), steps) == (torch.float32, 1, ["encoded"])
    wanted = answer(Predictor(load_model(small_checkpoint, CPU, torch.float32)), photograph, kind)
    assert [(one.score, one.box, one.mask.tobytes(), one.mask_logits.dtype) for one in found] == wanted


@pytest.mark.parametrize("kind", PROMPTS)
def test_an_embedding_with_nan_in_half_precision_is_refused_without_blaming_the_weights(
    small_checkpoint, photograph, kind
):
    model = load_model(small_checkpoint, CPU, torch.bfloat16)
    predictor = Predictor(model)
    model.network.backbone.vision_backbone.trunk.blocks[0].attn.proj.register_forward_hook(gives_nan_in(torch.bfloat16))
    embedding = predictor.encode_image(photograph)
    for _ in range(2):
        with pytest.raises(ValueError, match="was made in bfloat16 and contains NaN or infinity. Encode") as refused:
            segments(predictor, photograph, kind, embedding)
        assert not isinstance(refused.value, CheckpointError)
    assert segments(predictor, photograph, kind)


def test_embeddings_and_predictors_from_before_the_switch_stay_usable(overflowing, small_checkpoint, photograph):
    model = load_model(overflowing("click head"), CPU, torch.float16)
    predictors = [Predictor(model, size) for size in (0, 56, 168, 224)]  # more than the model keeps
    embeddings = [predictor.encode_image(photograph) for predictor in predictors]
    cached = answer(predictors[0], photograph, "phrase", embeddings[0])
    half = [answer(*pair, "example") for pair in zip(predictors, [photograph] * 4, strict=True)]
    assert answer(predictors[1], photograph, "boxes", embeddings[1])
    assert model.precision == torch.float32
    assert answer(predictors[0], photograph, "phrase", embeddings[0]) == cached
    mixed = ConceptPrompt(("shoe", "yellow school bus"))  # the first is cached
    options = Options(confidence_threshold=0, iou_threshold=0.9, min_region_percent=1)
    found = predictors[0].segment(embeddings[0], mixed, options)
    assert {one.mask_logits.dtype for one in found} == {torch.float16, torch.float32}
    assert set(np.unique(label_map(found, 640, 427))) >= {1, len(found)}
    reference = load_model(small_checkpoint, CPU, torch.float32)
    for predictor, embedding, before in zip(predictors, embeddings, half, strict=True):
        for kind in PROMPTS:
            assert answer(predictor, photograph, kind, embedding)
        now = answer(predictor, photograph, "example")
        assert now == answer(Predictor(reference, predictor.input_size), photograph, "example") != before


def test_weights_that_are_held_in_half_precision_are_wide_only_while_they_are_used(
    overflowing, small_checkpoint, photograph
):
    """On a GPU, the weights of the encoders are in half precision: switching must not need their memory twice."""
    model = load_model(overflowing("detector"), CPU, torch.float16)
    cast_encoder_weights(model.network, CPU, torch.float16)
    earlier = Predictor(model, 168)
    held = [weight.dtype for weight in model.network.parameters()]
    assert held.count(torch.float16) > 40
    answer(Predictor(model), photograph, "phrase")
    assert model.precision == torch.float32
    reference = with_rounded_encoders(load_model(small_checkpoint, CPU, torch.float32))
    model.embeddings.clear()
    for predictor in (Predictor(model), earlier, Predictor(model, 224)):
        for kind in PROMPTS:
            wanted = answer(Predictor(reference, predictor.input_size), photograph, kind)
            assert answer(predictor, photograph, kind) == wanted
        assert [weight.dtype for weight in model.network_at(predictor.resolution).parameters()] == held


def test_weights_beyond_the_range_of_float16_are_kept(overflowing, small_checkpoint, photograph):
    path = overflowing("image encoder")
    model = load_model(path, CPU, torch.float16)
    attention = model.network.backbone.vision_backbone.trunk.blocks[1].attn
    attention.qkv.weight.data *= 2.0**12
    attention.qkv.weight.data[:-32] *= 2.0**-12
    attention.qkv.bias.data[-32:] *= 2.0**12
    attention.proj.weight.data *= 2.0**-12
    assert attention.qkv.weight.abs().max() > torch.finfo(torch.float16).max
    expected = attention.qkv.weight.clone()
    cast_encoder_weights(model.network, CPU, torch.float16)
    assert torch.equal(attention.qkv.weight, expected)
    assert attention.proj.weight.dtype == torch.float16
    assert answer(Predictor(model), photograph, "point")
    assert model.precision == torch.float32


LONE_HEADS = {
    "phrase": ("detector", as_fine_tuned),
    "point": ("click head", as_transformers_click_head),
}


@pytest.mark.parametrize("kind", LONE_HEADS)
@pytest.mark.parametrize("part", [None, "image encoder"])
def test_a_checkpoint_with_one_head_switches_too(small_checkpoint, overflowing, photograph, tmp_path, part, kind):
    head, layout = LONE_HEADS[kind]
    contents = read_contents(overflowing(part or head))
    path = tmp_path / "one_head.safetensors"
    write_safetensors(path, layout(contents.tensors), contents.architecture)
    predictor = Predictor(load_model(path, CPU, torch.float16))
    embedding = None if part else predictor.encode_image(photograph)
    assert answer(predictor, photograph, kind, embedding)
    assert predictor.model.precision == torch.float32
    predictor.model.embeddings.clear()
    reference = Predictor(load_model(small_checkpoint, CPU, torch.float32))
    assert answer(predictor, photograph, kind) == answer(reference, photograph, kind)


# --- a GPU without native bfloat16


@pytest.mark.parametrize("part", OVERFLOWING)
def test_a_gpu_that_overflows_float16_answers_as_in_float32(overflowing, photograph, emulated_cuda, caplog, part):
    emulated_cuda.gpus[0].capability = (7, 5)
    model = load_model(overflowing(part), torch.device("cuda", 0))
    reference = with_rounded_encoders(load_model(model.checkpoint, CPU, torch.float32))
    assert model.precision == torch.float16
    held = {weight.dtype for weight in model.network.parameters()}
    assert answer(Predictor(model, 168), photograph, OVERFLOWING[part][2][0])
    assert (model.precision, len(warned(caplog))) == (torch.float32, 1)
    assert {weight.dtype for weight in model.network.parameters()} == held
    for kind in PROMPTS:
        found = segments(Predictor(model), photograph, kind)
        wanted = segments(Predictor(reference), photograph, kind)
        assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-3)
        # a GPU's resize rounds the image differently
        assert all(np.mean(one.mask == other.mask) > 0.995 for one, other in zip(found, wanted, strict=True))


# --- damaged weights, memory


@pytest.mark.parametrize("precision", [*HALF, torch.float32])
@pytest.mark.parametrize("part", OVERFLOWING)
def test_weights_are_blamed_only_in_float32(small_checkpoint, photograph, tmp_path, caplog, part, precision):
    contents = torch.load(small_checkpoint, weights_only=True)
    _, name, kinds = OVERFLOWING[part]
    spoilt = {**contents["model"], f"{name}.bias": contents["model"][f"{name}.bias"] * torch.nan}
    path = tmp_path / "spoilt.pt"
    torch.save({**contents, "model": spoilt}, path)
    predictor = Predictor(load_model(path, CPU, precision))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="spoilt.pt .* NaN or infinity: its weights are damaged"):
            predictor.predict(photograph, PROMPTS[kinds[0]])
    assert len(warned(caplog)) == (precision != torch.float32)


@pytest.mark.parametrize("failures", [1, 2])
def test_memory_may_run_out_while_a_step_is_repeated(overflowing, photograph, monkeypatch, failures):
    model = load_model(overflowing("click head"), CPU, torch.float16)
    predict, in_float16 = model.network.predict_inst, []

    def run_out(*arguments, **options):
        in_float16.append(torch.is_autocast_enabled("cpu"))
        if 1 < len(in_float16) <= 1 + failures:
            raise MemoryError
        return predict(*arguments, **options)

    monkeypatch.setattr(model.network, "predict_inst", run_out)
    if failures == 2:
        with pytest.raises(DeviceMemoryError):
            answer(Predictor(model), photograph, "point")
    assert answer(Predictor(model), photograph, "point")
    assert in_float16 == [True, *[False] * (failures + 1)]
