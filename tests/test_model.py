"""Checkpoints load completely or not at all, and all users of a checkpoint share one model."""

import contextlib
import gc
import pickle
import re
import shutil
import weakref
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.intruder import Intruder

from sam3_engine.architecture import Architecture
from sam3_engine.checkpoints.checkpoint import checkpoint_contents
from sam3_engine.errors import CheckpointError
from sam3_engine.model import build_image_network, load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.random_weights import SMALL, write_random_checkpoint
from sam3_engine.shared_models import shared_model
from sam3_engine.weight_precision import cast_encoder_weights
from testbed.layout_files import LAYOUTS, read_contents, write_torch

CPU = torch.device("cpu")


@pytest.fixture
def contents(small_checkpoint):
    return torch.load(small_checkpoint, weights_only=True)


@pytest.fixture
def saved(tmp_path):
    """Save any object as a checkpoint, and return its path."""

    def save(anything):
        path = tmp_path / "checkpoint.pt"
        torch.save(anything, path)
        return path

    return save


# what segmenting images does not use: video memory, a phrase as one vector, example points, the coarsest features
UNUSED = re.compile(
    r"tracker\.(maskmem|mask_downsample|no_mem_pos_enc|no_obj|obj_ptr|transformer).*"
    r"|.*(text_projection|convs\.3\..*|geometry_encoder\.points_.*)"
)


def test_a_checkpoint_is_loaded_tensor_for_tensor(small_checkpoint, contents):
    model = load_model(small_checkpoint, CPU)
    assert model.description == "SAM 3"
    loaded = checkpoint_contents(model.network, SMALL)["model"]
    assert loaded.keys() == {name for name in contents["model"] if not UNUSED.fullmatch(name)}
    for name, tensor in loaded.items():
        assert torch.equal(contents["model"][name], tensor), name
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.network.parameters())


def test_loading_says_what_the_file_is(small_checkpoint, caplog):
    with caplog.at_level("INFO", "sam3_engine"):
        load_model(small_checkpoint, CPU)
    assert f"Loaded SAM 3 from {small_checkpoint}." in caplog.messages


def test_tensors_need_no_wrapper(saved, contents, small_checkpoint):
    """Meta's file has the tensors at the top level; training code often puts them under "model"."""
    flat = {**contents["model"], "architecture": contents["architecture"]}
    loaded, reference = load_model(saved(flat), CPU), load_model(small_checkpoint, CPU)
    for name, tensor in reference.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name


def in_dtype(contents, dtype):
    """Return a checkpoint in another floating-point dtype; complex tables stay."""
    return {**contents, "model": {name: t if t.is_complex() else t.to(dtype) for name, t in contents["model"].items()}}


def answers(model, image, multimask=False):
    predictor = Predictor(model)
    embedding = predictor.encode_image(image)
    return [
        (segment.score, segment.box, segment.mask.tobytes())
        for prompt in (
            ConceptPrompt(("yellow school bus",)),
            GeometricPrompt(points=((210, 150), (500, 300)), point_labels=(1, 0)),
            GeometricPrompt(boxes=((60, 80, 300, 330), (5, 5, 635, 420))),
        )
        for segment in predictor.segment(embedding, prompt, Options(confidence_threshold=0, multimask=multimask))
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_float_types_answer_like_the_same_weights_in_float32(saved, contents, photograph, dtype):
    found = answers(load_model(saved(in_dtype(contents, dtype)), CPU, torch.float32), photograph)
    rounded = in_dtype(in_dtype(contents, dtype), torch.float32)
    assert found == answers(load_model(saved(rounded), CPU, torch.float32), photograph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_half_precision_weights_of_the_encoders_stay_half(saved, contents, photograph, dtype, precision):
    """Memory must not double while a file loads, nor afterwards, at any input size."""
    model = load_model(saved(in_dtype(contents, dtype)), CPU, precision)
    for network in (model.network, model.network_at(168)):
        held = [parameter.dtype for parameter in network.parameters()]
        assert set(held) == {dtype, torch.float32}
        assert held.count(dtype) > 40
        assert {buffer.dtype for buffer in network.buffers()} <= {torch.float32, torch.complex64, torch.bool}
    Predictor(model, 168).encode_image(photograph)
    assert [parameter.dtype for parameter in model.network_at(168).parameters()] == held


def test_weights_are_narrow_again_after_an_error(saved, contents, photograph, monkeypatch):
    model = load_model(saved(in_dtype(contents, torch.float16)), CPU, torch.float32)
    held = [parameter.dtype for parameter in model.network.parameters()]
    linear = model.network.backbone.vision_backbone.trunk.blocks[1].mlp.fc1
    monkeypatch.setattr(linear, "forward", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Predictor(model).encode_image(photograph)
    assert [parameter.dtype for parameter in model.network.parameters()] == held


def test_an_interrupted_layer_is_narrow_at_other_input_sizes_and_after_the_next_run(
    saved, contents, photograph, monkeypatch
):
    model = load_model(saved(in_dtype(contents, torch.float16)), CPU, torch.float32)
    held = [parameter.dtype for parameter in model.network.parameters()]
    linear = model.network.backbone.vision_backbone.trunk.blocks[1].mlp.fc1

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(linear, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Predictor(model).encode_image(photograph)
    assert linear.weight.dtype == torch.float32  # PyTorch runs no hooks after a KeyboardInterrupt
    assert [parameter.dtype for parameter in model.network_at(168).parameters()] == held
    Predictor(model).encode_image(photograph)
    assert [parameter.dtype for parameter in model.network.parameters()] == held


INFINITE = {
    "detector.segmentation_head.mask_predictor.mask_embed.layers.2.bias": ConceptPrompt(("bus",)),
    "detector.transformer.decoder.norm.bias": ConceptPrompt(("bus",)),
    "tracker.sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.bias": GeometricPrompt(boxes=((5, 5, 90, 90),)),
    "tracker.model.interactive_sam_mask_decoder.iou_prediction_head.layers.2.bias": GeometricPrompt(
        boxes=((5, 5, 90, 90),)
    ),
}


@pytest.mark.parametrize("name", INFINITE)
def test_infinite_scores_and_masks_are_an_error(small_checkpoint, tmp_path, photograph, name):
    contents = read_contents(small_checkpoint)
    tensors = LAYOUTS["sam3.1" if "interactive" in name else "sam3"].tensors(contents.tensors)
    tensors[name] = torch.full_like(tensors[name], torch.inf)
    predictor = Predictor(load_model(write_torch(tmp_path / "inf.pt", tensors, contents.architecture), CPU))
    with pytest.raises(CheckpointError, match="inf.pt .* the network returns NaN or infinity"):
        predictor.predict(photograph, INFINITE[name])


@pytest.mark.parametrize("multimask", [False, True])
def test_encoder_weights_in_half_precision_give_the_same_results(small_checkpoint, photograph, multimask):
    as_loaded, cast = (load_model(small_checkpoint, CPU, torch.bfloat16) for _ in range(2))
    cast_encoder_weights(cast.network, CPU, torch.bfloat16)
    assert sum(tensor.dtype == torch.bfloat16 for tensor in cast.network.parameters()) > 40
    assert answers(cast, photograph, multimask) == answers(as_loaded, photograph, multimask)


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


def first(tensors, part):
    return next(name for name in tensors if part in name)


def reshaped(tensors):
    name = first(tensors, "bias")
    return {**tensors, name: torch.zeros(tensors[name].numel() + 1)}


def real_instead_of_complex(tensors):
    name = next(name for name, tensor in tensors.items() if tensor.is_complex())
    return {**tensors, name: tensors[name].real.clone()}


def whole_numbers(tensors):
    name = first(tensors, "bias")
    return {**tensors, name: torch.zeros(tensors[name].shape, dtype=torch.int64)}


BAD_TENSORS = {
    "a missing tensor": (lambda t: without(t, first(t, "bias")), r"tensors are missing \(1\)"),
    "an extra tensor": (lambda t: {**t, "detector.extra": torch.zeros(1)}, r"unexpected tensors \(1\)"),
    "a tensor of the wrong shape": (reshaped, "has shape"),
    "real numbers instead of complex ones": (real_instead_of_complex, "expected torch.complex64"),
    "integers": (whole_numbers, "torch.int64"),
    "something other than a tensor": (lambda t: {**t, first(t, "bias"): "text"}, "is a str, not a tensor"),
    "another network": (
        lambda t: {"layer1.weight": torch.zeros(3)},
        "not those of SAM 3; they include 'layer1.weight'",
    ),
    "only an image encoder": (
        lambda t: {name: tensor for name, tensor in t.items() if "vision_backbone" in name},
        "only encoders, without a detector or a click head",
    ),
    "only the encoders of images and texts": (
        lambda t: {name: tensor for name, tensor in t.items() if "detector.backbone." in name},
        "only encoders, without a detector or a click head",
    ),
    "a prefix in front of most names": (
        lambda t: {("module." if number % 3 else "") + name: t[name] for number, name in enumerate(t)},
        "only some of its tensors have the prefix 'module.'",
    ),
    "a prefix in front of a few names": (
        lambda t: {("" if number % 3 else "net.") + name: t[name] for number, name in enumerate(t)},
        "only some of its tensors have the prefix 'net.'",
    ),
    "no tensors": (lambda t: {}, "it contains no tensors"),
    "a tensor without data": (
        lambda t: {**t, first(t, "qkv.weight"): t[first(t, "qkv.weight")].to("meta")},
        "has no data",
    ),
    "a sparse tensor": (lambda t: {**t, first(t, "qkv.weight"): t[first(t, "qkv.weight")].to_sparse()}, "sparse"),
    "a sparse table": (lambda t: {**t, first(t, "qkv.weight"): t[first(t, "qkv.weight")].to_sparse_csr()}, "sparse"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(saved, contents, kind):
    spoil, message = BAD_TENSORS[kind]
    path = saved({**contents, "model": spoil(contents["model"])})
    with pytest.raises(CheckpointError, match=message) as refused:
        load_model(path, CPU)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("name", ["\ud800", "\x1b[31mred", "first\nTraceback", "x" * 1_500_000])
def test_messages_quote_the_names_of_tensors(saved, contents, name):
    zeros, tensors = torch.zeros(3), contents["model"]
    for spoilt in (
        {name: zeros},
        {**tensors, name: zeros},
        {**tensors, f"detector.{name}": zeros},
        {**tensors, f"detector.{name}": zeros, f"sam3_model.{name}": zeros},
        {f"module.{key}": tensor for key, tensor in tensors.items()} | {name: zeros},
        {**tensors, f"{name}.weight": zeros.to(torch.int8)},
    ):
        with pytest.raises(CheckpointError) as error:
            load_model(saved({**contents, "model": spoilt}), CPU)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 2000


@pytest.mark.parametrize("prefix", ["detector.", "", "module.", "sam3_model."])
def test_a_missing_tensor_is_named_as_the_file_would_name_it(saved, contents, prefix):
    tensors = {name: tensor for name, tensor in contents["model"].items() if name.startswith("detector.")}
    tensors = {prefix + name.removeprefix("detector."): t for name, t in without(tensors, "sam2_convs").items()}
    missing = first(tensors, "query_embed.weight")
    with pytest.raises(CheckpointError, match=f"missing .1., including '{missing}'"):
        load_model(saved({**contents, "model": without(tensors, missing)}), CPU)


WRAPPERS = ["module.", "_orig_mod.", "model.", "_forward_module.", "ema_model.", "net.", "sam3.", "model._orig_mod."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_prefix_in_front_of_all_names_is_dropped(saved, contents, small_checkpoint, wrapper):
    tensors = {wrapper + name: tensor for name, tensor in contents["model"].items()}
    loaded, reference = load_model(saved({**contents, "model": tensors}), CPU), load_model(small_checkpoint, CPU)
    for name, tensor in reference.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor), name


TABLE = "detector.backbone.vision_backbone.trunk.blocks.1.attn.freqs_cis"
TABLES = {"zeros": torch.zeros_like, "turned the other way": torch.conj_physical, "NaN": lambda t: t * torch.nan}


@pytest.mark.parametrize("change", TABLES)
def test_a_rotary_table_with_other_values_is_refused(saved, contents, change):
    tensors = {**contents["model"], TABLE: TABLES[change](contents["model"][TABLE])}
    with pytest.raises(CheckpointError, match=f"its rotary table '{TABLE}' is damaged"):
        load_model(saved({**contents, "model": tensors}), CPU)


def test_a_rotary_table_of_another_machine_is_used_as_it_is(saved, contents):
    table = contents["model"][TABLE] * (1 + 2e-7)
    loaded = load_model(saved({**contents, "model": {**contents["model"], TABLE: table}}), CPU)
    found = loaded.network.state_dict()[TABLE.removeprefix("detector.")]
    assert torch.equal(found, table)
    assert not torch.equal(found, contents["model"][TABLE])


OTHER_SIZES = {
    "resolution": (672, r"has shape \(2304, 32\), expected \(5184, 32\)"),
    "queries": (100, "has shape"),
    "decoder_layers": (3, "tensors are missing"),
    "geometry_layers": (4, "unexpected tensors"),
}


@pytest.mark.parametrize("size", OTHER_SIZES)
def test_a_file_of_other_sizes_needs_an_architecture(saved, size):
    value, message = OTHER_SIZES[size]
    architecture = Architecture(**{size: value})
    network = build_image_network(architecture, CPU)
    tensors = {
        name: tensor if tensor.is_complex() else torch.zeros(()).expand(tensor.shape)  # takes no memory
        for name, tensor in checkpoint_contents(network, architecture)["model"].items()
    }
    with pytest.raises(CheckpointError, match=f"{message}.*sizes .* differ from SAM 3's, it needs .*'architecture'"):
        load_model(saved(tensors), CPU)


@pytest.mark.parametrize(
    "spoilt",
    [
        {},
        "large",
        {"resolution": 10**12},
        {**SMALL.to_dict(), "resolution": 113},
        {**SMALL.to_dict(), "mask_decoder_heads": 5},
        [1, 2],
    ],
)
def test_an_impossible_architecture_is_refused(saved, contents, spoilt):
    with pytest.raises(CheckpointError, match="architecture"):
        load_model(saved({**contents, "architecture": spoilt}), CPU)


@pytest.mark.parametrize("contents", [[1, 2, 3], 7, {"model": [1]}])
def test_files_without_named_tensors_are_refused(saved, contents):
    with pytest.raises(CheckpointError, match="not named tensors"):
        load_model(saved(contents), CPU)


@pytest.mark.parametrize("kept", [0, 1, 1000, 0.5, 0.999])
def test_a_truncated_file_is_refused(small_checkpoint, tmp_path, kept):
    data = small_checkpoint.read_bytes()
    part = tmp_path / "part.pt"
    part.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match="incomplete download"):
        load_model(part, CPU)


def test_a_file_with_a_hole_is_refused(small_checkpoint, tmp_path):
    """Some downloaders leave zeros in a file of full length; torch reads it without an error."""
    data = bytearray(small_checkpoint.read_bytes())
    at = int(0.6 * len(data))
    data[at : at + 4096] = bytes(4096)
    damaged = tmp_path / "hole.pt"
    damaged.write_bytes(data)
    assert torch.load(damaged, weights_only=True).keys() == {"model", "architecture"}
    with pytest.raises(CheckpointError, match="the checksum of '.*' is wrong"):
        load_model(damaged, CPU)


def test_a_repacked_file_is_refused(small_checkpoint, tmp_path):
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(small_checkpoint) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="repacked with compression"):
        load_model(packed, CPU)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_loads_or_raises_a_checkpoint_error(small_checkpoint, tmp_path, seed):
    """Change one byte where torch reads names and sizes."""
    data = bytearray(small_checkpoint.read_bytes())
    random = np.random.default_rng(seed)
    data[random.integers(0, 4000)] ^= random.integers(1, 256)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        load_model(damaged, CPU)


def test_missing_read_permission_is_reported(small_checkpoint, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(small_checkpoint), "open", denied)
    with pytest.raises(CheckpointError, match="Permission denied"):
        load_model(small_checkpoint, CPU)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, container):
    path, evidence = tmp_path / "evil.pt", tmp_path / "evidence"
    if container == "torch":
        torch.save({"model": Intruder(evidence)}, path)
    else:
        path.write_bytes(pickle.dumps(Intruder(evidence)))
    with pytest.raises(CheckpointError):
        load_model(path, CPU)
    assert not evidence.exists()


def test_a_model_is_loaded_once_and_freed_with_its_last_user(small_checkpoint):
    first_user, second_user = shared_model(small_checkpoint, CPU), shared_model(small_checkpoint, CPU)
    assert first_user is second_user
    network = weakref.ref(first_user.network)
    del first_user, second_user
    gc.collect()
    assert network() is None


def test_a_changed_file_is_a_new_model(small_checkpoint, tmp_path):
    path = tmp_path / "changing.pt"
    shutil.copy(small_checkpoint, path)
    before = shared_model(path, CPU)
    replacement = tmp_path / "replacement.pt"
    write_random_checkpoint(replacement, SMALL, seed=1)
    replacement.replace(path)
    assert shared_model(path, CPU) is not before


@pytest.mark.parametrize("named", ["model.safetensors.index.json", "model-00001-of-00002.safetensors"])
def test_a_changed_part_of_a_sharded_checkpoint_is_a_new_model(small_checkpoint, tmp_path, named):
    contents = read_contents(small_checkpoint)
    LAYOUTS["transformers, sharded"].save(tmp_path, contents)
    index = next(tmp_path.glob("*.index.json"))
    path = tmp_path / named.replace("model", index.name.removesuffix(".safetensors.index.json"))
    before = shared_model(path, CPU)
    assert shared_model(path, CPU) is before
    part = sorted(tmp_path.glob("*-00002-of-00002.safetensors"))[0]
    tensors = load_file(part)
    table = first(tensors, "mask_decoder")
    save_file({**tensors, table: tensors[table] + 1}, tmp_path / "new", safe_open(part, "pt").metadata())
    (tmp_path / "new").replace(part)
    after = shared_model(path, CPU)
    assert after is not before
    assert shared_model(path, CPU) is after


def test_threads_that_load_at_once_share_one_model(small_checkpoint):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: shared_model(small_checkpoint, CPU), range(4)))
    assert all(model is models[0] for model in models)


def test_random_weights_are_the_same_for_the_same_seed(tmp_path):
    for name in ("a.pt", "b.pt"):
        write_random_checkpoint(tmp_path / name, SMALL, seed=3)
    a, b = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("a.pt", "b.pt"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all() for t in a.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_precision_gives_similar_results(small_checkpoint, photograph, precision):
    reference = Predictor(load_model(small_checkpoint, CPU, torch.float32))
    predictor = Predictor(load_model(small_checkpoint, CPU, precision))
    for prompt in (GeometricPrompt(points=((210, 150),), point_labels=(1,)), ConceptPrompt(("shoe",))):
        wanted = reference.segment(reference.encode_image(photograph), prompt, Options(confidence_threshold=0))[0]
        found = predictor.segment(predictor.encode_image(photograph), prompt, Options(confidence_threshold=0))[0]
        assert found.score == pytest.approx(wanted.score, abs=0.02)
        assert np.mean(found.mask == wanted.mask) > 0.8
