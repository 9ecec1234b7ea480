"""A file that is not a SAM 3 checkpoint is refused with what it is; a SAM 3 checkpoint is never called foreign."""

import bz2
import contextlib
import gzip
import io
import lzma
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sam3_engine.checkpoints.foreign_files import describe_bytes, describe_tensors
from sam3_engine.checkpoints.weight_files import open_weight_file
from sam3_engine.errors import CheckpointError


def nothing(shape=(2, 2), dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def named(*names):
    return {name: nothing() for name in names}


# files


def packed(write):
    """Return the bytes that ``write`` puts into a file object."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(name, data=b""):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "SAM 3")
            archive.writestr(name, data)

    return packed(write)


def tar(file):
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sam3.pt"))


def image(file_format):
    return packed(lambda file: Image.new("RGB", (8, 8)).save(file, file_format))


def saved(contents, **options):
    return packed(lambda file: torch.save(contents, file, **options))


def protobuf(number, data):
    """Return a field of a protobuf message: a number, or bytes shorter than 128."""
    if isinstance(data, int):
        return bytes((number << 3, data))
    return bytes((number << 3 | 2, len(data))) + data


ONNX = protobuf(1, 10) + protobuf(2, b"pytorch") + protobuf(3, b"2.14.0") + protobuf(7, b"\x0a\x04node" + bytes(20))
ONNX_MINIMAL = protobuf(1, 8) + protobuf(7, b"\x0a\x10" + bytes(30)) + protobuf(8, protobuf(2, 17))
CORE_ML = protobuf(1, 8) + protobuf(2, b"\x0a\x03\xff\xfe\x01" + bytes(20)) + protobuf(10, 0)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:9999e2341cee\nsize 3450062241\n"
LOGIN = b"\n<!DOCTYPE html>\n<html lang='en'><head><title>Log in</title></head></html>"
GATED = b'{"error":"Access to model facebook/sam3 is restricted. You must be authenticated to access it."}'
TORCH = saved({"a": torch.ones(300)})

FILES = {
    "nothing": (b"", "it is empty: an incomplete download"),
    "a few bytes": (b"PK\x03\x04abc", "only 7 bytes: an incomplete download"),
    "a preallocated download": (bytes(100_000), "first bytes are all zero: an incomplete download"),
    "a Git LFS pointer": (LFS, "Git LFS pointer.*`git lfs pull`"),
    "a login page": (LOGIN, "a web page.*`hf download`"),
    "a page with a byte order mark": (b"\xef\xbb\xbf<html><body>404</body></html>", "a web page"),
    "an error in JSON": (GATED, "a JSON file that begins with .*Access to model facebook/sam3 is restricted"),
    "an index of PyTorch shards": (
        b'{"metadata": {"total_size": 9},\n "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}',
        "the index of PyTorch shards .*, which are not supported: convert",
    ),
    "an index under another name": (
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        r"the index of a sharded checkpoint, whose name must end in \.safetensors\.index\.json",
    ),
    "an error in text": (b"Invalid username or password.\n", "a text file that begins with 'Invalid username"),
    "a long text": ("é".encode() * 5000, "a text file that begins with 'ééé"),
    "GGUF": (b"GGUF" + struct.pack("<IQQ", 3, 123, 7), "a GGUF file"),
    "ONNX": (ONNX, "an ONNX model: use the checkpoint that it was exported from"),
    "ONNX without a producer": (ONNX_MINIMAL, "an ONNX model"),
    "an old torch file": (saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False), "before PyTorch 1.6"),
    "a pickle": (pickle.dumps({"a": np.ones(2)}), "a pickle file"),
    "tar": (packed(tar), "a tar archive: unpack it"),
    "gzip": (gzip.compress(TORCH), "compressed with gzip: unpack it"),
    "bzip2": (bz2.compress(TORCH), "compressed with bzip2"),
    "xz": (lzma.compress(TORCH), "compressed with xz"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(range(50)), "compressed with Zstandard"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive"),
    "RAR": (b"Rar!\x1a\x07\x01" + bytes(50), "a RAR archive"),
    "a zip of a checkpoint": (zipped("sam3/sam3.pt", TORCH), r"a zip archive that contains 'sam3/sam3\.pt': unpack it"),
    "a zip of safetensors": (zipped("model.safetensors"), "a zip archive that contains 'model.safetensors'"),
    "another zip": (zipped("sam3.py"), "a zip archive without a checkpoint"),
    "TorchScript": (packed(lambda file: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)), "TorchScript"),
    "torch.export": (zipped("sam3/archive_format", b"pt2"), "an exported program"),
    "a Core ML package": (zipped("sam3.mlpackage/Manifest.json", b"{}"), "a Core ML model"),
    "NumPy arrays": (packed(lambda file: np.savez(file, a=np.ones(3))), "NumPy arrays"),
    "one NumPy array": (packed(lambda file: np.save(file, np.ones(3))), "a NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "TensorFlow Lite": (struct.pack("<I", 28) + b"TFL3" + bytes(50), "a TensorFlow Lite model"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(20), "a PDF document"),
    "PNG": (image("PNG"), "a PNG image"),
    "JPEG": (image("JPEG"), "a JPEG image"),
    "half a torch file": (TORCH[: len(TORCH) // 2], "an incomplete download: the end of the archive is missing"),
    "a damaged directory": (TORCH.replace(b"PK\x01\x02", b"PK\x01\x03"), "a damaged zip archive: download it again"),
    "noise": (np.random.default_rng(0).bytes(5000), "it is another kind of file, or an incomplete download"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_refused_with_what_it_is(tmp_path, kind):
    data, message = FILES[kind]
    path = tmp_path / "sam3.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_weight_file(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("sam3.onnx", b"\xff" * 50, "an ONNX model"),
        ("sam3.engine", b"\xff" * 50, "a TensorRT engine"),
        ("sam3.PLAN", b"\xff" * 50, "a TensorRT engine"),
        ("sam3.mlmodel", CORE_ML, "a Core ML model"),
        ("sam3.safetensors", b"\xff" * 50, "not a safetensors file: download it again"),
        ("sam3.onnx", LFS, "a Git LFS pointer"),
        ("sam3.safetensors", LOGIN, "a web page"),
    ],
)
def test_the_name_says_what_unknown_content_is(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    assert re.search(message, describe_bytes(tmp_path / name))


STARTS = [b"", b"PK\x03\x04", b"\x08\x0a\x12", b"\x08\x0a", b"\x80\x02", b"{", b"<html", b"GG", b"\xef\xbb\xbf"]


@pytest.mark.parametrize("start", STARTS)
def test_any_content_can_be_described(tmp_path, start):
    random = np.random.default_rng(len(start))
    for size in (0, 1, 9, 16, 300, 4093, 4096, 5000):
        path = tmp_path / "weights"
        path.write_bytes(start + random.bytes(size))
        describe_bytes(path)
        with pytest.raises(CheckpointError):
            open_weight_file(path)


# tensors


@contextlib.contextmanager
def quiet():
    """Hide transformers' remarks about default configurations."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def transformers_tensors(name, **options):
    """Return the tensors of a transformers model on the meta device."""
    model = getattr(transformers, name)
    with quiet(), torch.device("meta"):
        return model(model.config_class(**options)).state_dict()


def with_prefix(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


# Meta's names, and those of the adapters and quantizers, as their repositories use them
META_SAM1 = named(
    "image_encoder.pos_embed",
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.blocks.0.norm1.weight",
    "image_encoder.blocks.0.attn.rel_pos_h",
    "image_encoder.neck.0.weight",
    "prompt_encoder.point_embeddings.0.weight",
    "mask_decoder.iou_token.weight",
)
META_SAM2 = named(
    "image_encoder.trunk.pos_embed_window",
    "image_encoder.trunk.blocks.0.attn.qkv.weight",
    "image_encoder.neck.convs.0.conv.weight",
    "sam_mask_decoder.conv_s0.weight",
    "memory_attention.layers.0.norm1.weight",
    "no_obj_embed_spatial",
)
TRUNK = "detector.backbone.vision_backbone.trunk."
BLOCK = f"{TRUNK}blocks.0."

TENSORS = {
    "a LoRA adapter of PEFT": (
        named("base_model.model.detr_encoder.layers.0.self_attn.q_proj.lora_A.weight"),
        "a LoRA adapter",
    ),
    "an unmerged LoRA model": (
        {**named(f"{BLOCK}attn.qkv.base_layer.weight"), **named(f"{BLOCK}attn.qkv.lora_B.default.weight")},
        "merge it into the model first",
    ),
    "a LoRA adapter in lower case": (named(f"{BLOCK}attn.qkv.lora_a"), "a LoRA adapter"),
    "a LoRA adapter of Kohya": (named("lora_unet_blocks_0_attn.lora_down.weight"), "a LoRA adapter"),
    "a LoRA adapter with plain names": (named(f"{BLOCK}attn.qkv.lora.A", f"{BLOCK}attn.qkv.lora.B"), "a LoRA adapter"),
    "LoHa": (named(f"{BLOCK}attn.qkv.hada_w1_a"), "a LoRA adapter"),
    "bitsandbytes, 8 bits": (named(f"{BLOCK}attn.qkv.weight", f"{BLOCK}attn.qkv.SCB"), "it is quantized"),
    "bitsandbytes, 4 bits": (
        named(f"{BLOCK}mlp.fc1.weight.absmax", f"{BLOCK}mlp.fc1.weight.quant_state.bitsandbytes__nf4"),
        "it is quantized",
    ),
    "GPTQ": (named("detr_encoder.layers.0.mlp.fc1.qweight", "detr_encoder.layers.0.mlp.fc1.qzeros"), "it is quantized"),
    "compressed-tensors": (named(f"{BLOCK}mlp.fc1.weight_packed", f"{BLOCK}mlp.fc1.weight_scale"), "it is quantized"),
    "scaled fp8 of ComfyUI": (named(f"{BLOCK}mlp.fc1.weight", f"{BLOCK}mlp.fc1.scale_weight"), "it is quantized"),
    "the mark of scaled fp8": (named("scaled_fp8"), "it is quantized"),
    "fp8 without scales": (
        {f"{BLOCK}mlp.fc1.weight": nothing(dtype=torch.float8_e4m3fn)},
        rf"it is quantized \('{BLOCK}mlp.fc1.weight' is float8_e4m3fn\)",
    ),
    "fp8 biases": ({f"{BLOCK}mlp.fc1.bias": nothing(dtype=torch.float8_e5m2)}, "float8_e5m2"),
    "int8": ({f"{BLOCK}mlp.fc1.weight": nothing(dtype=torch.int8)}, "is int8"),
    "uint8": ({f"{BLOCK}mlp.fc1.weight": nothing((8, 1), torch.uint8)}, "is uint8"),
    "EfficientSAM3": (
        named(f"{TRUNK}model.backbone.model.stages.0.op_list.0.main.inverted_conv.conv.weight"),
        "EfficientSAM3 checkpoint, which has a different image encoder",
    ),
    "EfficientSAM3 with a small text encoder": (
        named(f"{TRUNK}model.head.0.weight", "detector.backbone.language_backbone.projector.weight"),
        "EfficientSAM3",
    ),
    "SAM3-LiteText": (
        named(f"{BLOCK}attn.qkv.weight", "detector.backbone.language_backbone.projector.weight"),
        "SAM3-LiteText checkpoint, which has a different text encoder",
    ),
    "SAM 1": (META_SAM1, "a SAM 1 checkpoint, which has a different network"),
    "SAM 1 behind a prefix": (with_prefix("module.", META_SAM1), "a SAM 1 checkpoint"),
    "SAM-HQ": ({**META_SAM1, **named("mask_decoder.hf_token.weight")}, "a SAM-HQ checkpoint"),
    "MobileSAM": (named("image_encoder.patch_embed.seq.0.c.weight", "mask_decoder.iou_token.weight"), "MobileSAM"),
    "EfficientSAM": (
        named("image_encoder.patch_embed.proj.weight", "image_encoder.blocks.0.norm1.weight"),
        "EfficientSAM ",
    ),
    "SAM 2": (META_SAM2, "a SAM 2 or SAM 2.1 checkpoint"),
    "EdgeTAM": (named("image_encoder.trunk.body.stem_0.weight", "memory_attention.norm.weight"), "an EdgeTAM"),
    "MLX": ({f"{TRUNK}patch_embed.proj.weight": nothing((1024, 14, 14, 3))}, "converted for MLX"),
}

TRANSFORMERS = {
    "SamModel": "a SAM 1 checkpoint",
    "SamHQModel": "a SAM-HQ checkpoint",
    "Sam2Model": "a SAM 2 or SAM 2.1 checkpoint",
    "Sam2VideoModel": "a SAM 2 or SAM 2.1 checkpoint",
    "Sam3LiteTextModel": "a SAM3-LiteText checkpoint",
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_another_kind_are_recognized(kind):
    tensors, message = TENSORS[kind]
    assert re.search(message, describe_tensors({**named("first.weight"), **tensors}))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_other_models_of_transformers_are_recognized(name):
    assert TRANSFORMERS[name] in describe_tensors(transformers_tensors(name))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_sam3_is_never_called_foreign(small_checkpoint, prefix):
    tensors = open_weight_file(small_checkpoint).tensors
    detector = {name.removeprefix("detector."): t for name, t in tensors.items() if name.startswith("detector.")}
    halved = {name: tensor.to(torch.float16) for name, tensor in tensors.items() if not tensor.is_complex()}
    for form in (tensors, detector, halved):
        assert describe_tensors(with_prefix(prefix, form)) is None


@pytest.mark.parametrize("name", ["Sam3VideoModel", "Sam3Model", "Sam3TrackerModel", "Sam3TrackerVideoModel"])
def test_sam3_of_transformers_is_never_called_foreign(name):
    assert describe_tensors(transformers_tensors(name)) is None


def test_sam31_is_never_called_foreign(small_checkpoint):
    renamings = {
        "vision_backbone.sam2_convs.": "vision_backbone.interactive_convs.",
        "tracker.sam_": "tracker.model.interactive_sam_",
        "tracker.mask_downsample.": "tracker.model.interactive_mask_downsample.",
        "tracker.obj_ptr_proj.": "tracker.model.interactive_obj_ptr_proj.",
        "tracker.no_mem_embed": "tracker.model.interactivity_no_mem_embed",
        "tracker.": "tracker.model.",
    }
    tensors = {}
    for name, tensor in open_weight_file(small_checkpoint).tensors.items():
        old = next((old for old in renamings if old in name and not name.startswith("tracker.model.")), None)
        tensors[name.replace(old, renamings[old], 1) if old else name] = tensor
    assert any("interactive_sam_mask_decoder" in name for name in tensors)
    assert describe_tensors(tensors) is None
    for old, new in (("detector.", "sam3_model."), ("tracker.", "sam2_predictor.")):
        tensors = {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}
    assert describe_tensors(tensors) is None


@pytest.mark.parametrize("name", ["CLIPTextModel", "ViTModel", "DetrModel"])
def test_what_is_unknown_is_not_guessed(name):
    assert describe_tensors(transformers_tensors(name)) is None


def test_no_tensors_are_not_described():
    assert describe_tensors({}) is None
