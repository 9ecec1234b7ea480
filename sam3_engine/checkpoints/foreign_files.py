"""Say what a file is that people take for a SAM 3 checkpoint but that is something else.

Every description is a clause for :class:`~..errors.CheckpointError`: what the file is, and what to do.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..device_errors import raise_device_error
from ..errors import quote, quote_name

if TYPE_CHECKING:
    import torch

_HEAD_BYTES = 4096
_MIN_BYTES = 16  # no checkpoint is shorter
_MAX_QUOTED = 200  # an error message of a server

_UNPACK = "unpack it, and use the file in it"
_EXPORTED = "use the checkpoint that it was exported from"
_CONVERTED = "use the checkpoint that it was converted from"
_SIGNATURES = (
    (0, b"GGUF", f"it is a GGUF file, made for llama.cpp and similar programs: {_CONVERTED}"),
    (0, b"\x89HDF\r\n\x1a\n", f"it is an HDF5 file, as Keras writes it: {_CONVERTED}"),
    (0, b"\x93NUMPY", f"it is a NumPy array (.npy): {_CONVERTED}"),
    (4, b"TFL3", f"it is a TensorFlow Lite model: {_EXPORTED}"),
    (0, b"\x1f\x8b", f"it is compressed with gzip: {_UNPACK}"),
    (0, b"BZh", f"it is compressed with bzip2: {_UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"it is compressed with xz: {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"it is compressed with Zstandard: {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"it is a 7z archive: {_UNPACK}"),
    (0, b"Rar!\x1a\x07", f"it is a RAR archive: {_UNPACK}"),
    (257, b"ustar", f"it is a tar archive: {_UNPACK}"),
    (0, b"%PDF", "it is a PDF document"),
    (0, b"\x89PNG\r\n\x1a\n", "it is a PNG image"),
    (0, b"\xff\xd8\xff", "it is a JPEG image"),
)
_SUFFIXES = {
    ".onnx": f"it is an ONNX model: {_EXPORTED}",
    ".engine": f"it is a TensorRT engine: {_EXPORTED}",
    ".plan": f"it is a TensorRT engine: {_EXPORTED}",
    ".trt": f"it is a TensorRT engine: {_EXPORTED}",
    ".mlmodel": f"it is a Core ML model: {_EXPORTED}",
    ".safetensors": "its name ends in .safetensors, but it is not a safetensors file: download it again",
}

FULL_PRECISION = "use a float32, float16 or bfloat16 file"

_ADAPTER_NAME = r"(?:^|[._])(?:lora|hada_w\d|lokr_w\d)(?:[._]|$)"
_ADAPTER = "it is a LoRA adapter, or a model with one: merge it into the model first, and save the merged model"

# the first of these that is found in the name of any tensor tells what a file is
_NAMES = {
    _ADAPTER_NAME: _ADAPTER,
    r"\.(?:SCB|absmax|nested_absmax|quant_map|quant_state\..+|weight_scale(?:_inv|_2)?|scale_weight|weight_packed"
    r"|qweight|qzeros|weight_qdata|(?:weight_)?zero_point|comfy_quant)$|(?:^|\.)scaled_fp8$": (
        f"it is quantized: {FULL_PRECISION}"
    ),
    r"(?:^|\.)vision_backbone\.trunk\.model\.|\.student_trunk\.": (
        "it is an EfficientSAM3 checkpoint, which has a different image encoder"
    ),
    r"(?:^|\.)language_backbone\.(?:projector|embed_proj)\."
    r"|(?:^|\.)text_encoder\.(?:layers\.\d+\.token_mixer|embeddings\.token_embedding)\.": (
        "it is a SAM3-LiteText checkpoint, which has a different text encoder"
    ),
    r"(?:^|\.)mask_decoder\.(?:hf_token|hq_token)\.": "it is a SAM-HQ checkpoint, which has a different network",
    r"(?:^|\.)image_encoder\.patch_embed\.seq\.": "it is a MobileSAM checkpoint, which has a different network",
    r"(?:^|\.)image_encoder\.trunk\.body\.|(?:^|\.)vision_encoder\.backbone\.timm_model\.": (
        "it is an EdgeTAM checkpoint, which has a different network"
    ),
    r"(?:^|\.)image_encoder\.trunk\.|(?:^|\.)vision_encoder\.backbone\.pos_embed_window$": (
        "it is a SAM 2 or SAM 2.1 checkpoint, which has a different network"
    ),
    r"(?:^|\.)(?:image_encoder\.blocks|vision_encoder\.layers)\.\d+\.attn\.rel_pos_h$": (
        "it is a SAM 1 checkpoint, which has a different network"
    ),
    r"(?:^|\.)image_encoder\.blocks\.": "it is an EfficientSAM checkpoint, which has a different network",
}
_PATCH_EMBEDDING = re.compile(r"(?:patch_embed\.proj|patch_embeddings\.projection)\.weight$")


def describe_bytes(path: Path) -> str | None:
    """Return what a file is that is not a safetensors file; None if unknown.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "it is empty: an incomplete download"
    if len(head) < _MIN_BYTES:
        return f"it has only {len(head)} bytes: an incomplete download"
    if not head.strip(b"\0"):
        return "its first bytes are all zero: an incomplete download"
    for offset, signature, description in _SIGNATURES:
        if head.startswith(signature, offset):
            return description
    if head.startswith(b"PK\x03\x04"):
        return _describe_zip(path)
    if re.match(rb"\x80[\x02-\x05]", head):
        return (
            "it is a pickle file, as torch.save wrote it before PyTorch 1.6: save it again with "
            "torch.save(torch.load(path, weights_only=True), new_path)"
        )
    if _is_onnx(head):
        return _SUFFIXES[".onnx"]
    return _describe_text(head) or _SUFFIXES.get(path.suffix.lower())


def describe_tensors(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return what a file with these tensors is; None if unknown, or if it may be a SAM 3 checkpoint.

    Args:
        tensors: by name; the device does not matter.
    """
    for pattern, description in _NAMES.items():
        if any(map(re.compile(pattern).search, tensors)):
            return description
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype.startswith(("float8", "float4")) or (name.endswith("weight") and dtype in ("int8", "uint8")):
            return describe_quantized(name, dtype)
        if _PATCH_EMBEDDING.search(name) and tensor.ndim == 4 and tensor.shape[3] == 3 != tensor.shape[1]:
            return f"it was converted for MLX, where convolutions have another layout: {_CONVERTED}"
    return None


def describe_adapter(names: Iterable[str]) -> str | None:
    """Return what a file is if tensors of these names belong to a LoRA adapter, else None."""
    return _ADAPTER if any(map(re.compile(_ADAPTER_NAME).search, names)) else None


def describe_quantized(name: str, dtype: object) -> str:
    """Return what a file is in which the tensor ``name`` has a quantized dtype."""
    return f"it is quantized ({quote_name(name)} is {dtype}): {FULL_PRECISION}"


def _describe_text(head: bytes) -> str | None:
    """Return what a text file is; None for binary data."""
    head = head.removeprefix(b"\xef\xbb\xbf").strip()
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the head ends within a character
            return None
        text = head[: error.start].decode()
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    if text.startswith("version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"
    if re.search(r"<!doctype html|<html|<head\b", text, re.IGNORECASE):
        return (
            "it is a web page, such as a login or error page: download the file again, with `hf download` or in a "
            "browser that is logged in"
        )
    if text.startswith("{") and '"weight_map"' in text:
        if ".bin" in text:
            return "it is the index of PyTorch shards (.bin), which are not supported: convert them to safetensors"
        return "it is the index of a sharded checkpoint, whose name must end in .safetensors.index.json"
    start = quote(text.partition("\n")[0], _MAX_QUOTED)
    if text.startswith(("{", "[")):
        return f"it is a JSON file that begins with {start}: the server's error message, or a configuration"
    return f"it is a text file that begins with {start}"


def _describe_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "it is an incomplete download: the end of the archive is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # a damaged directory can raise any of them
        raise_device_error(error)
        return "it is a damaged zip archive: download it again"
    tails = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tails:
        return f"it is a TorchScript model: {_EXPORTED}"
    if "data.pkl" in tails:
        return "it was written by torch.save, not as safetensors"
    if "archive_format" in tails:
        return f"it is an exported program (torch.export): {_EXPORTED}"
    if any(re.search(r"\.ml(?:model|package)(?:/|$)", name) for name in names):
        return f"it is a Core ML model: {_EXPORTED}"
    if names and all(name.endswith(".npy") for name in names):
        return f"it is an archive of NumPy arrays (.npz), as MLX writes it too: {_CONVERTED}"
    packed = next((name for name in names if re.search(r"\.(?:pth?|ckpt|bin|safetensors)$", name)), None)
    if packed:
        return f"it is a zip archive that contains {quote_name(packed)}: {_UNPACK}"
    return "it is a zip archive without a checkpoint in it"


def _is_onnx(head: bytes) -> bool:
    """Return whether a file begins like ONNX's protobuf message: version, producer and the like, then the graph."""
    if head[0] != 0x08 or not 3 <= head[1] < 32:
        return False
    at = 2
    while at + 1 < len(head) and head[at] in (0x12, 0x1A, 0x22):  # producer, its version, domain
        end = at + 2 + head[at + 1]
        if not head[at + 2 : end].isascii():
            return False
        at = end
    return head[at : at + 1] in (b"\x28", b"\x32", b"\x3a", b"\x42")  # model version, comment, graph, operator sets
