"""Weight files: what is inside is read without the data, damage is an error that names it, and nothing is run."""

import argparse
import json
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from support.intruder import Intruder

from sam3_engine.checkpoints.weight_files import open_weight_file
from sam3_engine.errors import CheckpointError

ARCHITECTURE = {"resolution": 112, "vit_global_blocks": [1, 3]}
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(1)
    return {
        "trunk.weight": torch.randn(3, 4, generator=generator),
        "trunk.bias": torch.randn(5, generator=generator).half(),
        "trunk.table": torch.randn(6, generator=generator, dtype=torch.complex64),
        "head.weight": torch.randn(2, 3, 1, generator=generator).bfloat16(),
        "head.empty": torch.empty(0, 4),
        "head.scalar": torch.tensor(1.5),
    }


@pytest.fixture
def saved(tmp_path):
    """Write any object with ``torch.save``, and return the path."""

    def save(contents, name="weights.pt"):
        torch.save(contents, tmp_path / name)
        return tmp_path / name

    return save


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as error:
        open_weight_file(path)
    assert str(path) in str(error.value)
    return error.value


def load_all(path):
    file = open_weight_file(path)
    return file.load(file.tensors)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# both containers


@pytest.fixture(params=["torch", "safetensors"])
def path(request, tensors, tmp_path, saved):
    """Return a file in each container with ``tensors`` and ``ARCHITECTURE``."""
    if request.param == "torch":
        return saved({"model": tensors, "architecture": ARCHITECTURE})
    save_file(tensors, tmp_path / "weights.safetensors", {"architecture": json.dumps(ARCHITECTURE)})
    return tmp_path / "weights.safetensors"


def test_names_shapes_and_dtypes_are_read_without_data(path, tensors):
    file = open_weight_file(path)
    assert file.path == path
    assert file.architecture == ARCHITECTURE
    assert all(tensor.is_meta for tensor in file.tensors.values())
    described = {name: (tensor.shape, tensor.dtype) for name, tensor in file.tensors.items()}
    assert described == {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def test_the_tensors_that_are_asked_for_are_loaded(path, tensors):
    file = open_weight_file(path)
    same(file.load(tensors), tensors)
    same(file.load(iter(["head.weight"])), {"head.weight": tensors["head.weight"]})
    assert file.load([]) == {}


def test_the_content_decides_not_the_name(path, tensors):
    for name in ("weights.bin", "weights.pt", "model.SAFETENSORS", "weights"):
        path = path.rename(path.with_name(name))
        same(open_weight_file(path).load(tensors), tensors)


def test_loading_does_not_depend_on_the_hosts_modes(path, tensors):
    with torch.inference_mode(), torch.device("meta"):
        loaded = open_weight_file(path).load(tensors)
    assert not any(tensor.is_inference() or tensor.is_meta for tensor in loaded.values())
    same(loaded, tensors)


def test_data_is_mapped_and_not_read_into_memory(tmp_path, saved):
    large = {"a": torch.zeros(32 * MEGABYTE), "b": torch.ones(3)}
    path = saved({"model": large, "optimizer": {"state": {0: torch.zeros(32 * MEGABYTE)}}})
    save_file(large, tmp_path / "weights.safetensors")
    files = [path, tmp_path / "weights.safetensors"]
    del large
    for path in files:
        open_weight_file(path).load(["b"])  # imports and thread stacks
        before = psutil.Process().memory_info().rss
        loaded = open_weight_file(path).load(["a", "b"])
        assert psutil.Process().memory_info().rss - before < 32 * MEGABYTE, path
        assert loaded["a"].shape == (32 * MEGABYTE,)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 15, 16, 40, 0.3, 0.6, 0.9, -1])
def test_a_truncated_file_is_an_incomplete_download(path, kept):
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused(path, "incomplete download")


def test_a_file_that_cannot_be_opened_is_refused(path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    refused(path, r"cannot be opened \(Permission denied\)")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path, "cannot be opened")


# torch archives


def test_an_archive_that_is_named_safetensors_has_to_be_renamed(saved, tensors):
    refused(saved(tensors, "weights.safetensors"), r"written by torch\.save: rename it so that it ends in \.pt")


def data_offset(path, ending):
    """Return where the data of a zip entry begins in the file."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith(ending))
        file.seek(entry.header_offset + 26)
        return entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def damage(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def set_checksum(path, ending, checksum):
    """Change the checksum of an entry in the archive's directory, which is what readers use."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    while True:
        name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<HHH", data, at + 28)
        if data[at + 46 : at + 46 + name_bytes].decode().endswith(ending):
            break
        at += 46 + name_bytes + extra_bytes + comment_bytes
    struct.pack_into("<I", data, at + 16, checksum)
    path.write_bytes(data)


@pytest.fixture
def without_checksums():
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


OF_TRAINING = {
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]},
    "scheduler": {"last_epoch": 3},
    "scaler": {"scale": 65536.0},
    "loss": {"weight": torch.ones(2)},
    "rng_state": torch.zeros(8, dtype=torch.uint8),
    "config": {"lr": 1e-4, "lora": None},
    "epoch": 3,
}


@pytest.mark.parametrize("entry", ["model", "model_state_dict", "state_dict", "module", None])
def test_tensors_may_have_the_state_of_training_beside_them(saved, tensors, entry, caplog):
    contents = {entry: tensors, **OF_TRAINING} if entry else {**tensors, "epoch": 3, "best_loss": 0.5}
    path = saved({**contents, "architecture": ARCHITECTURE})
    file = open_weight_file(path)
    assert file.architecture == ARCHITECTURE
    same(file.load(file.tensors), tensors)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["ema", "state_dict", "teacher\n"])
@pytest.mark.parametrize("nested", [False, True])
def test_other_weights_beside_those_that_are_read_are_named_in_a_warning(saved, tensors, name, nested, caplog):
    others = {key: torch.zeros(2) for key in tensors}
    path = saved({"model": tensors, name: {"decay": 0.9, "module": others} if nested else others, **OF_TRAINING})
    same(load_all(path), tensors)
    assert caplog.messages == [f"{path} also has tensors under {name!r}. Only 'model' is used."]


ADAPTERS = {
    "beside the model": {"lora": {"trunk.lora_A.weight": torch.ones(2)}},
    "in an entry of that name": {"lora_state_dict": {"trunk.A": torch.ones(2)}},
    "in another entry": {"extra": {"peft": {"trunk.qkv.lora.B": torch.ones(2)}}},
}


@pytest.mark.parametrize("where", ADAPTERS)
@pytest.mark.parametrize("alone", [False, True])
def test_a_lora_adapter_beside_the_weights_is_refused(saved, tensors, where, alone):
    refused(saved(ADAPTERS[where] if alone else {"model": tensors, **ADAPTERS[where]}), "LoRA adapter.*merge it")


def test_a_file_without_an_architecture_has_none(saved, tensors):
    assert open_weight_file(saved(tensors)).architecture is None


def test_only_the_tensors_that_are_loaded_are_verified(saved):
    path = saved({"optimizer": torch.zeros(9), "model": {"a": torch.ones(9), "b": torch.ones(9)}})
    damage(path, data_offset(path, "data/0"))
    damage(path, data_offset(path, "data/2"))
    file = open_weight_file(path)
    same(file.load(["a"]), {"a": torch.ones(9)})
    with pytest.raises(CheckpointError, match="the checksum of 'b' is wrong"):
        file.load(["a", "b"])


def test_damage_is_found_anywhere_in_a_large_tensor(saved):
    path = saved({"a": torch.zeros(700_000), "b": torch.zeros(3)})
    start = data_offset(path, "data/0")
    for offset in (0, 1_000_000, 2 * MEGABYTE, 2_799_999):
        damage(path, start + offset)
        with pytest.raises(CheckpointError, match="the checksum of 'a' is wrong"):
            open_weight_file(path).load(["a"])
        damage(path, start + offset)
    open_weight_file(path).load(["a"])


def test_damage_in_the_pickle_is_found(saved, tensors):
    path = saved(tensors)
    damage(path, data_offset(path, "data.pkl") + 30)
    refused(path, r"the checksum of its entry '.*data\.pkl' is wrong")


def test_views_share_their_storage(saved):
    whole = torch.arange(12.0)
    path = saved({"whole": whole, "part": whole[4:8].view(2, 2)})
    loaded = open_weight_file(path).load(["whole", "part"])
    same(loaded, {"whole": whole, "part": whole[4:8].view(2, 2)})
    damage(path, data_offset(path, "data/0"))
    with pytest.raises(CheckpointError, match="checksum"):
        open_weight_file(path).load(["part"])


def test_an_archive_without_checksums_is_accepted(without_checksums, saved, tensors):
    path = saved(tensors)
    with zipfile.ZipFile(path) as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    same(open_weight_file(path).load(tensors), tensors)


def test_one_checksum_among_none_is_verified(without_checksums, saved, tensors):
    path = saved(tensors)
    set_checksum(path, "data/0", 7)
    with pytest.raises(CheckpointError, match="checksum"):
        open_weight_file(path).load(tensors)


def test_one_checksum_of_zero_among_others_is_verified(saved, tensors):
    path = saved(tensors)
    set_checksum(path, "data/1", 0)
    with pytest.raises(CheckpointError, match="the checksum of 'trunk.bias' is wrong"):
        open_weight_file(path).load(tensors)


def repack(path, compression):
    target = path.with_name("repacked.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for name in sorted(source.namelist(), reverse=True):
            archive.writestr(name, source.read(name))
    return target


def test_a_compressed_archive_is_refused(saved, tensors):
    refused(repack(saved(tensors), zipfile.ZIP_DEFLATED), "repacked with compression")


def test_an_archive_that_another_program_wrote_is_read_and_verified(saved, tensors):
    repacked = repack(saved(tensors), zipfile.ZIP_STORED)
    same(open_weight_file(repacked).load(tensors), tensors)
    damage(repacked, data_offset(repacked, "data/0"))
    with pytest.raises(CheckpointError, match="checksum"):
        open_weight_file(repacked).load(["trunk.weight"])


@pytest.mark.parametrize("first", [True, False])
def test_an_archive_with_an_entry_that_nothing_uses_is_read_and_verified(saved, tensors, first):
    path = saved(tensors)
    target = path.with_name("more.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        contents = {name: source.read(name) for name in source.namelist()}
        unused = {"weights/data/99": b"unused"}
        for name, data in (unused | contents if first else contents | unused).items():
            archive.writestr(name, data)
    same(open_weight_file(target).load(tensors), tensors)
    damage(target, data_offset(target, "data/0"))
    with pytest.raises(CheckpointError, match="checksum"):
        open_weight_file(target).load(["trunk.weight"])


def test_a_pickle_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", bytes(65 * MEGABYTE))
    refused(path, r"data\.pkl' has 68,157,440 bytes, which is too many")


def quantized():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def nested():
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()


CONTENTS = {
    "a list": (lambda: [torch.zeros(2)], "contains a list, not named tensors"),
    "a list under model": (lambda: {"model": [torch.zeros(2)]}, "entry 'model' is a list, not named tensors"),
    "a tensor under state_dict": (lambda: {"state_dict": torch.zeros(2)}, "entry 'state_dict' is a Tensor, not named"),
    "a text": (lambda: {"a": torch.zeros(2), "b": "text"}, "'b' is a str, not a tensor"),
    "a number as name": (lambda: {"model": {3: torch.zeros(2)}}, "an entry named '3', not named tensors"),
    "an optimizer": (optimizer, "the state of an optimizer, without a model"),
    "other entries": (
        lambda: {"epoch": 3, "net": {"a": torch.zeros(2)}},
        "no entry 'model' or 'state_dict'; its entries are 'epoch', 'net'",
    ),
    "a sparse tensor": (lambda: {"a": torch.eye(3).to_sparse()}, "'a' is sparse or nested"),
    "a compressed sparse tensor": (lambda: {"a": torch.eye(3).to_sparse_csr()}, "'a' is sparse or nested"),
    "a nested tensor": (lambda: {"a": nested()}, "'a' is sparse or nested"),
    "a quantized tensor": (lambda: {"a": quantized()}, r"it is quantized \('a' is torch\.qint8\)"),
    "a module": (lambda: {"model": torch.nn.Linear(2, 2)}, r"Python objects \('torch\.nn\.modules\.linear\.Linear'\)"),
    "a number of NumPy's": (lambda: {"model": {}, "best": np.float64(1)}, r"Python objects \('numpy\..*scalar'\)"),
    "arguments": (lambda: {"model": {}, "args": argparse.Namespace(a=1)}, r"Python objects \('argparse\.Namespace'\)"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", CONTENTS)
def test_an_archive_that_holds_something_else_is_refused(saved, kind):
    make, message = CONTENTS[kind]
    text = str(refused(saved(make()), message))
    assert ("weights_only=False" in text) == ("Only if you trust" in text) == ("Python objects" in text)


def test_the_advice_about_python_objects_works_with_the_file_alone(saved, tensors):
    path = saved({"model": tensors, "args": argparse.Namespace(a=1)})
    advice = re.search(r"torch\.save\(.*, new_path\)", str(refused(path, "Python objects")))[0]
    exec(advice, {"torch": torch, "path": path, "new_path": path.with_name("new.pt")})  # noqa: S102
    same(load_all(path.with_name("new.pt")), tensors)


def test_a_tensor_that_was_saved_without_data_is_refused_only_if_it_is_loaded(saved):
    file = open_weight_file(saved({"a": torch.ones(2), "b": torch.ones(3, device="meta")}))
    assert file.tensors["b"].shape == (3,)
    same(file.load(["a"]), {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="'b' has no data"):
        file.load(["a", "b"])


def test_parameters_are_loaded_as_plain_tensors(saved):
    loaded = open_weight_file(saved({"a": torch.nn.Parameter(torch.ones(2))})).load(["a"])["a"]
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad


def test_code_in_an_archive_is_not_run(saved, tmp_path):
    evidence = tmp_path / "evidence"
    refused(saved({"model": {"a": torch.ones(2)}, "optimizer": Intruder(evidence)}), "Python objects")
    assert not evidence.exists()


def test_a_reference_to_a_missing_entry_is_an_error(saved, tensors):
    path = saved(tensors)
    target = path.with_name("missing.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            if not name.endswith("data/0"):
                archive.writestr(name, source.read(name))
    refused(target, "it is damaged")


def test_a_pickle_that_claims_more_data_than_there_is_is_an_error(saved, tmp_path):
    path = saved({"a": torch.zeros(3)})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "forged.pt", "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, data.replace(b"K\x03", b"M\xff\x7f") if name.endswith("data.pkl") else data)
    refused(tmp_path / "forged.pt", "it is damaged")


# safetensors


def safetensors_bytes(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def written(tmp_path):
    """Write bytes to a file, and return the path."""

    def write(data, name="weights.safetensors"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


A = entry("F32", [1], 0, 4)
ONE = np.float32(1).tobytes()

HOSTILE = {
    "a header longer than the file": (safetensors_bytes({"a": A}, ONE, length=10_000), "incomplete download"),
    "a header of 100 MB": (safetensors_bytes({"a": A}, ONE, length=100 * MEGABYTE), "claims 104,857,600 bytes"),
    "a header of 2**62 bytes": (safetensors_bytes({"a": A}, ONE, length=2**62), "not a safetensors file"),
    "an empty header": (safetensors_bytes(b"", b"{" * 20), "header is damaged"),
    "overlapping tensors": (
        safetensors_bytes({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "'b' overlaps another tensor",
    ),
    "the same bytes twice": (safetensors_bytes({"a": A, "b": A}, ONE), "overlaps another tensor"),
    "a gap": (safetensors_bytes({"a": entry("F32", [1], 4, 8)}, bytes(8)), "'a' does not follow the previous tensor"),
    "a negative offset": (safetensors_bytes({"a": entry("F32", [1], -4, 0)}, ONE), r"'a' has the offsets '\[-4, 0\]'"),
    "offsets that fall": (safetensors_bytes({"a": entry("F32", [1], 4, 0)}, ONE), "'a' has the offsets"),
    "one offset": (safetensors_bytes({"a": {**A, "data_offsets": [4]}}, ONE), "'a' has the offsets"),
    "a fractional offset": (safetensors_bytes({"a": entry("F32", [1], 0, 4.0)}, ONE), "'a' has the offsets"),
    "a huge offset": (safetensors_bytes({"a": entry("F32", [1], 10**30, 10**30 + 4)}, ONE), "'a' has the offsets"),
    "an offset after the end": (
        safetensors_bytes({"a": entry("F32", [9], 0, 36)}, ONE),
        "32 of its 106 bytes",
    ),
    "bytes after the last tensor": (safetensors_bytes({"a": A}, ONE + b"x"), "it is 1 bytes too long"),
    "a shape that does not fit": (safetensors_bytes({"a": entry("F32", [2], 0, 4)}, ONE), "do not fit its shape"),
    "a huge shape": (safetensors_bytes({"a": entry("F32", [2**40, 2**40], 0, 4)}, ONE), "do not fit its shape"),
    "an empty tensor of huge sizes": (safetensors_bytes({"a": entry("F32", [0, 2**62, 2**62], 0, 0)}), "has the shape"),
    "many dimensions": (safetensors_bytes({"a": entry("F32", [1] * 70, 0, 4)}, ONE), "has the shape"),
    "a negative size": (safetensors_bytes({"a": entry("F32", [-1, -1], 0, 4)}, ONE), "has the shape"),
    "a boolean size": (safetensors_bytes({"a": entry("F32", [True], 0, 4)}, ONE), "has the shape"),
    "a size that is infinite": (
        safetensors_bytes(json.dumps({"a": A}).replace("[1]", "[1e999]").encode(), ONE),
        "shape",
    ),
    "an unknown dtype": (safetensors_bytes({"a": entry("F33", [1], 0, 4)}, ONE), "unknown dtype 'F33'"),
    "a dtype that is no text": (safetensors_bytes({"a": entry([], [1], 0, 4)}, ONE), "unknown dtype"),
    "half a byte": (safetensors_bytes({"a": entry("F4", [1], 0, 1)}, b"x"), "do not fit its shape"),
    "an entry that is no object": (safetensors_bytes({"a": 3}), "no dtype, shape and offsets"),
    "an entry without a shape": (safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, ONE), "no dtype"),
    "an entry with more": (safetensors_bytes({"a": {**A, "b": 1}}, ONE), "no dtype, shape and offsets"),
    "the same name twice": (
        safetensors_bytes(b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), ONE),
        "the name 'a' is used twice",
    ),
    "the same key twice": (
        safetensors_bytes(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', ONE),
        "the name 'dtype' is used twice",
    ),
    "two metadata": (safetensors_bytes(b'{"__metadata__": {}, "__metadata__": {}}'), "is used twice"),
    "metadata that are no object": (safetensors_bytes({"__metadata__": []}), "metadata are not strings"),
    "metadata that are no strings": (safetensors_bytes({"__metadata__": {"a": 1}}), "metadata are not strings"),
    "no JSON": (safetensors_bytes(b"{'a': 1}"), "header is damaged"),
    "a number of a million digits": (safetensors_bytes(b'{"a": ' + b"9" * 10**6 + b"}"), "header is damaged"),
    "deep nesting": (safetensors_bytes(b'{"a": ' + b"[" * 10**6), "nested too deeply"),
    "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "header is damaged"),
    "UTF-16": (safetensors_bytes('{"a": 1}'.encode("utf-16-le")), "header is damaged"),
    "half a character as name": (safetensors_bytes(b'{"\\ud800": %s}' % json.dumps(A).encode(), ONE), None),
    "an architecture that is no JSON": (
        safetensors_bytes({"__metadata__": {"architecture": "{"}}),
        "entry 'architecture' is invalid",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_safetensors_file_is_refused_in_little_memory(written, kind):
    data, message = HOSTILE[kind]
    path = written(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            load_all(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("count", "dimensions"), [(24_000, 1), (1, 90_000)])
def test_a_header_of_the_largest_size_is_refused_at_once(written, count, dimensions):
    """A comparison of every name with every other, or the product of that many sizes, would take minutes."""
    tensors = {f"{number:06}": entry("F32", [2**62] * dimensions, 0, 4) for number in range(count)}
    text = json.dumps(tensors).removesuffix("}") + "," + json.dumps({max(tensors): A}).removeprefix("{")
    assert 1_800_000 < len(text) < 2 * MEGABYTE
    refused(written(safetensors_bytes(text.encode(), ONE)), "header is damaged")
    refused(written(safetensors_bytes(tensors, ONE)), "header is damaged")


def test_a_header_claim_of_100_megabytes_is_refused_without_reading_them(tmp_path):
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100 * MEGABYTE) + b"{")
        file.truncate(200 * MEGABYTE)
    tracemalloc.start()
    refused(path, "claims 104,857,600 bytes, which is too many")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEGABYTE


@pytest.mark.parametrize("mask", [1, 0x80, 0xFF])
def test_a_changed_byte_in_the_header_is_an_error_or_another_header(written, mask):
    tensors = {"a.weight": torch.ones(2, 3), "b": torch.zeros(1, dtype=torch.complex64), "c": torch.ones(2).half()}
    path = written(b"")
    save_file(tensors, path, {"architecture": '{"width": 3}'})
    data = path.read_bytes()
    refusals = 0
    for position in range(8 + int.from_bytes(data[:8], "little")):
        changed = bytearray(data)
        changed[position] ^= mask
        path.write_bytes(changed)
        try:
            file = open_weight_file(path)
            loaded = file.load(file.tensors)
        except CheckpointError:
            refusals += 1
        else:
            assert all(loaded[name].shape == tensor.shape for name, tensor in file.tensors.items())
    assert refusals > position / 2


def test_a_cut_off_safetensors_file_says_how_much_is_missing(written):
    whole = safetensors_bytes({"a": entry("F32", [3], 0, 12)}, bytes(12))
    refused(written(whole[:-5]), f"5 of its {len(whole)} bytes are missing at the end")


def test_unaligned_tensors_are_read(written):
    header = {"a": entry("U8", [3], 0, 3), "b": entry("F32", [2], 3, 11), "c": entry("C64", [1], 11, 19)}
    data = b"abc" + np.array([1.5, -2], np.float32).tobytes() + np.array([1 + 2j], np.complex64).tobytes()
    loaded = open_weight_file(written(safetensors_bytes(header, data))).load(["b", "c"])
    same(loaded, {"b": torch.tensor([1.5, -2]), "c": torch.tensor([1 + 2j])})
    assert (loaded["b"] @ loaded["b"]).item() == 6.25


def test_tensors_may_be_in_any_order_and_empty(written):
    header = {"b": entry("F32", [1], 4, 8), "none": entry("F32", [0, 2], 4, 4), "a": entry("F32", [1], 0, 4)}
    loaded = open_weight_file(written(safetensors_bytes(header, np.array([1, 2], np.float32).tobytes()))).load(header)
    same(loaded, {"b": torch.tensor([2.0]), "none": torch.empty(0, 2), "a": torch.tensor([1.0])})


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("BOOL", torch.bool),
        ("U8", torch.uint8),
        ("I8", torch.int8),
        ("U16", torch.uint16),
        ("I64", torch.int64),
        ("F64", torch.float64),
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E8M0", torch.float8_e8m0fnu),
        ("F8_E4M3FNUZ", torch.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", torch.float8_e5m2fnuz),
    ],
)
def test_dtypes_that_sam3_does_not_use_are_read_too(written, name, dtype):
    size = dtype.itemsize
    file = open_weight_file(written(safetensors_bytes({"a": entry(name, [2], 0, 2 * size)}, bytes(2 * size))))
    assert file.tensors["a"].dtype == file.load(["a"])["a"].dtype == dtype


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_dtypes_smaller_than_a_byte_are_refused_as_quantized(written, dtype):
    bits = {"F4": 4}.get(dtype, 6)
    path = written(safetensors_bytes({"a": entry(dtype, [8], 0, bits)}, bytes(bits)))
    refused(path, rf"it is quantized \('a' is {dtype}\)")


# names in messages

NAMES = {
    "half a character": "\ud800",
    "a terminal's colors": "\x1b[31mred",
    "two lines": "first\nTraceback",
    "a million letters": "x" * 1_500_000,
}
Z = torch.zeros(3)
NAMED = {
    "a text": lambda name: {"model": {name: "text"}},
    "a text at the top level": lambda name: {"a": Z, name: "text"},
    "other entries": lambda name: {name: {"a": "text"}},
    "a sparse tensor": lambda name: {name: torch.eye(3).to_sparse()},
    "an adapter": lambda name: {"lora": {name: Z}},
    "a tensor without data": lambda name: {name: Z.to("meta")},
}
NAMED_HEADERS = {
    "an unknown dtype": {"dtype": "F33"},
    "a quantized dtype": {"dtype": "F4", "data_offsets": [0, 4], "shape": [8]},
    "another shape": {"shape": [7]},
    "an impossible shape": {"shape": [-1]},
    "impossible offsets": {"data_offsets": [-1, 4]},
    "a gap": {"data_offsets": [4, 8]},
    "no dtype": {"more": 1},
}


def readable(error):
    """Return whether a message is one short line that can be printed."""
    return str(error).isprintable() and len(str(error)) < 2000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", NAMED)
def test_messages_about_torch_archives_are_readable(saved, kind, name):
    with pytest.raises(CheckpointError) as error:
        load_all(saved(NAMED[kind](NAMES[name])))
    assert readable(error.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", NAMED_HEADERS)
def test_messages_about_safetensors_files_are_readable(written, kind, name):
    header = json.dumps({NAMES[name]: A | NAMED_HEADERS[kind]})
    assert readable(refused(written(safetensors_bytes(header.encode(), ONE)), "usable"))
    twice = header.removesuffix("}") + "," + header.removeprefix("{")
    assert readable(refused(written(safetensors_bytes(twice[: 2 * MEGABYTE].encode(), ONE)), "usable"))


# sharded safetensors


@pytest.fixture
def shards(tmp_path, tensors):
    """Write ``tensors`` to two files and an index, and return the folder."""
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file_name, part in parts.items():
        metadata = {"architecture": json.dumps(ARCHITECTURE)}
        save_file({name: tensors[name] for name in part}, tmp_path / file_name, metadata)
    weight_map = {name: file_name for file_name, part in parts.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("named", [INDEX, FIRST, SECOND])
def test_a_sharded_checkpoint_is_read_by_its_index_or_any_shard(shards, tensors, named):
    file = open_weight_file(shards / named)
    assert file.path == shards / named
    assert file.architecture == ARCHITECTURE
    assert all(tensor.is_meta for tensor in file.tensors.values())
    same(file.load(tensors), tensors)
    same(file.load(["head.weight"]), {"head.weight": tensors["head.weight"]})


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def move(name, file_name):
    return lambda folder: change_index(folder, lambda index: index["weight_map"].update({name: file_name}))


BAD_SHARDS = {
    "a shard is missing": (
        lambda folder: (folder / SECOND).unlink(),
        f"part '{SECOND}' .* cannot be opened.*No such file",
    ),
    "a shard is cut off": (
        lambda folder: (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-3]),
        f"part '{SECOND}' is not usable: it is an incomplete download: 3 of",
    ),
    "a shard is a torch archive": (
        lambda folder: torch.save({"a": torch.ones(1)}, folder / SECOND),
        f"part '{SECOND}' is not usable: it was written by torch.save",
    ),
    "a shard is a Git LFS pointer": (
        lambda folder: (folder / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        f"part '{SECOND}' is not usable: it is a Git LFS pointer",
    ),
    "a shard lacks a tensor": (move("other", FIRST), f"'{FIRST}' lacks the tensor 'other'"),
    "a tensor is in the other shard": (move("trunk.weight", SECOND), "a tensor 'trunk.weight'"),
    "a tensor is in both shards": (
        lambda folder: save_file({"trunk.weight": torch.ones(1), "head.weight": torch.ones(1)}, folder / SECOND),
        f"'{SECOND}' has a tensor 'trunk.weight'",
    ),
    "a shard has more tensors": (
        lambda folder: save_file({"more": torch.ones(1)}, folder / SECOND),
        f"'{SECOND}' has a tensor 'more'",
    ),
    "a shard in another folder": (move("a", "../weights.safetensors"), "'../weights.safetensors'"),
    "a shard with an absolute path": (move("a", "/tmp/weights.safetensors"), "'/tmp/weights.safetensors'"),
    "a shard with a Windows path": (move("a", r"..\weights.safetensors"), "not a safetensors file beside it"),
    "a shard on a Windows drive": (move("a", "C:weights.safetensors"), "not a safetensors file beside it"),
    "a shard with a zero byte": (move("a", "a\0.safetensors"), "not a safetensors file beside it"),
    "a shard with a name of two lines": (move("a", "a\nb.safetensors"), r"names 'a\\nb\.safetensors'"),
    "a shard named with half a character": (move("a", "\ud800.safetensors"), r"names '\\ud800\.safetensors'"),
    "a shard of another kind": (move("a", "model.bin"), "'model.bin', which is not a safetensors file beside it"),
    "a shard that is no name": (move("a", 3), "'3', which is not a safetensors file beside it"),
    "an index without tensors": (lambda folder: change_index(folder, lambda index: index.clear()), "no 'weight_map'"),
    "an index that is a list": (lambda folder: (folder / INDEX).write_text("[]"), "no 'weight_map'"),
    "an index that is no JSON": (lambda folder: (folder / INDEX).write_text("<html>"), f"{INDEX} is damaged"),
    "an index with a name twice": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "a", "a": "a"}}'),
        "the name 'a' is used twice",
    ),
    "a huge index": (
        lambda folder: (folder / INDEX).write_bytes(b" " * (3 * MEGABYTE)),
        f"{INDEX} is too large",
    ),
}


@pytest.mark.parametrize("named", [INDEX, FIRST])
@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_a_sharded_checkpoint_that_is_not_whole_is_refused(shards, kind, named):
    spoil, message = BAD_SHARDS[kind]
    spoil(shards)
    refused(shards / named, message)


@pytest.mark.parametrize("name", NAMES)
def test_messages_about_shards_are_readable(shards, name):
    move(NAMES[name], FIRST)(shards)
    assert readable(refused(shards / INDEX, "lacks the tensor"))
    move(NAMES[name], f"{NAMES[name]}.safetensors")(shards)
    assert readable(refused(shards / INDEX, "names|cannot be opened|too large"))


def test_a_shard_without_its_index_is_refused(shards):
    (shards / INDEX).unlink()
    refused(shards / FIRST, f"one file of 2, and their index {INDEX} is not beside it")
    refused(shards / INDEX, f"{INDEX} cannot be opened")


def test_a_single_file_that_is_named_like_a_shard_needs_no_index(tmp_path, tensors):
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    same(open_weight_file(tmp_path / "model-00001-of-00001.safetensors").load(tensors), tensors)
