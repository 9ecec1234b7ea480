"""Read and check the header of a safetensors file, and the index of a sharded one, without torch.

A file holds the length of the header (8 bytes, little-endian), the header (JSON), and the bytes of the tensors. The
header is checked here before the safetensors package reads the file, so that a damaged or hostile file costs neither
time nor memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..device_errors import raise_device_error
from ..errors import CheckpointError, quote, quote_name

INDEX_SUFFIX = ".safetensors.index.json"  # of a sharded checkpoint

MAX_HEADER_BYTES = 2 * 2**20  # SAM 3's header takes 0.3 MB

_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 64  # torch's own limit
# bits of a number, and torch's name of the dtype, if it has one
DTYPES = {
    "BOOL": (8, "bool"),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "U16": (16, "uint16"),
    "I16": (16, "int16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "U32": (32, "uint32"),
    "I32": (32, "int32"),
    "F32": (32, "float32"),
    "U64": (64, "uint64"),
    "I64": (64, "int64"),
    "F64": (64, "float64"),
    "C64": (64, "complex64"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
}


@dataclass(frozen=True)
class TensorEntry:
    """What the header says about one tensor.

    Attributes:
        dtype: its name in the format, such as ``"F32"``.
        shape: its sizes.
        begin: offset of its first byte, from the end of the header.
        end: offset after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: the entries by name.
        metadata: the file's metadata.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` (9 bytes or more) is meant to be a safetensors file."""
    return head[8:9] == b"{" and int.from_bytes(head[:_LENGTH_BYTES], "little") < 2**32


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        CheckpointError: the file cannot be read, is incomplete or damaged, or breaks the format's rules.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        raise_device_error(error)
        raise CheckpointError(path, f"it cannot be opened ({error.strerror})") from error


def read_json(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or an object in it has two values of the same name.
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_index(path: Path, index: Path) -> dict[str, str]:
    """Return the file name of the shard that holds each tensor of a sharded checkpoint.

    Args:
        path: that the user named, for errors.
        index: the ``.safetensors.index.json``.

    Raises:
        CheckpointError: the index cannot be read, is damaged, or names a file outside its folder.
    """
    try:
        with index.open("rb") as file:
            text = file.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise_device_error(error)
        raise CheckpointError(path, f"{index.name} cannot be opened ({error.strerror})") from error
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(path, f"{index.name} is too large for the index of a sharded checkpoint")
    try:
        contents = read_json(text)
    except ValueError as error:
        raise CheckpointError(path, f"{index.name} is damaged ({error})") from error
    file_of = contents.get("weight_map") if isinstance(contents, dict) else None
    if not isinstance(file_of, dict) or not file_of:
        raise CheckpointError(path, f"{index.name} is not the index of a sharded checkpoint: it has no 'weight_map'")
    for name in file_of.values():
        plain = isinstance(name, str) and name.isprintable() and not re.search(r"[/\\:]", name)
        if not plain or not name.endswith(".safetensors"):
            raise CheckpointError(
                path, f"{index.name} names {quote_name(name)}, which is not a safetensors file beside it"
            )
    return file_of


def _read(path: Path, file: BinaryIO) -> Header:
    file_bytes = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(path, f"its header claims {length:,} bytes, which is too many; the file is damaged")
    text = file.read(length)
    if len(text) < length:
        raise CheckpointError(
            path, f"it is an incomplete download: it ends within its header, which has {length:,} bytes"
        )
    try:
        header = _parse(read_json(text))
    except ValueError as error:
        raise CheckpointError(path, f"its header is damaged ({error})") from error
    expected = _LENGTH_BYTES + length + max((entry.end for entry in header.tensors.values()), default=0)
    if file_bytes < expected:
        missing = expected - file_bytes
        raise CheckpointError(
            path, f"it is an incomplete download: {missing:,} of its {expected:,} bytes are missing at the end"
        )
    if file_bytes > expected:
        raise CheckpointError(path, f"it is damaged: it is {file_bytes - expected:,} bytes too long")
    return header


def _parse(contents: Any) -> Header:
    if not isinstance(contents, dict):
        raise ValueError(f"it is a {type(contents).__name__}, not an object")
    metadata = contents.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    tensors = {name: _entry(name, contents[name]) for name in contents}

    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            problem = "overlaps another tensor" if entry.begin < end else "does not follow the previous tensor"
            raise ValueError(f"tensor {quote_name(name)} {problem}")
        end = entry.end
    return Header(tensors, metadata)


def _entry(name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {quote_name(name)} has no dtype, shape and offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {quote_name(name)} has the unknown dtype {quote(dtype)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"tensor {quote_name(name)} has the shape {quote(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {quote_name(name)} has the offsets {quote(offsets)}")
    begin, end = offsets
    if math.prod(shape) * DTYPES[dtype][0] != (end - begin) * 8:
        raise ValueError(
            f"tensor {quote_name(name)} has {end - begin:,} bytes, which do not fit its shape {quote(shape)}"
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    # type(), since a bool is an int too; larger numbers than 63 bits overflow in torch
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the name {quote_name(name)} is used twice")
        values[name] = value
    return values
