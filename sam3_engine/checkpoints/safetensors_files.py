"""Read safetensors files, sharded or not, memory-mapped.

Importing this module imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..errors import CheckpointError, quote
from ..host_state import ignore_warnings
from .foreign_files import describe_bytes, describe_quantized
from .safetensors_headers import INDEX_SUFFIX, TensorEntry, is_safetensors, read_header, read_index, read_json

_SHARD_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors", re.DOTALL)
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class SafetensorsFile:
    """A safetensors file; a :class:`~.weight_files.WeightFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.tensors: Mapping[str, torch.Tensor] = {
            name: _without_data(path, name, entry) for name, entry in header.tensors.items()
        }
        self.architecture: object | None = _architecture(path, header.metadata)

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """See :class:`~.weight_files.WeightFile`; the format has no checksums."""
        try:
            with (
                ignore_warnings(),
                torch.inference_mode(False),
                safe_open(self.path, framework="pt", device="cpu") as file,
            ):
                return {name: file.get_tensor(name) for name in names}
        except Exception as error:  # the package raises several
            raise CheckpointError(self.path, f"it is damaged or cannot be read ({error})") from error


class ShardedFile:
    """A safetensors checkpoint in several files with an index; a :class:`~.weight_files.WeightFile`."""

    def __init__(self, path: Path, index: Path) -> None:
        self.path = path
        file_of = read_index(path, index)
        self._shards = {name: _open_shard(path, index.with_name(name)) for name in sorted(set(file_of.values()))}
        self._shard_of: dict[str, SafetensorsFile] = {}
        for file_name, shard in self._shards.items():
            for name in shard.tensors:
                if file_of.get(name) != file_name:
                    raise CheckpointError(path, f"{file_name} has a tensor {quote(name)}, which {index.name} denies")
                self._shard_of[name] = shard
        missing = file_of.keys() - self._shard_of.keys()
        if missing:
            name = min(missing)
            raise CheckpointError(path, f"{file_of[name]} lacks the tensor {quote(name)}, which {index.name} names")
        self.tensors: Mapping[str, torch.Tensor] = {name: shard.tensors[name] for name, shard in self._shard_of.items()}
        found = [shard.architecture for shard in self._shards.values() if shard.architecture is not None]
        self.architecture: object | None = found[0] if found else None

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """See :class:`~.weight_files.WeightFile`."""
        wanted: dict[SafetensorsFile, list[str]] = {}
        for name in names:
            wanted.setdefault(self._shard_of[name], []).append(name)
        return {name: tensor for shard, part in wanted.items() for name, tensor in shard.load(part).items()}


def find_index(path: Path) -> Path | None:
    """Return the index of a sharded checkpoint to which a file belongs, or None if its name is not that of a shard.

    Raises:
        CheckpointError: the file is one of several, and there is no index beside it.
    """
    shard = _SHARD_NAME.fullmatch(path.name)
    if not shard:
        return None
    index = path.with_name(shard[1] + INDEX_SUFFIX)
    if index.is_file():
        return index
    if int(shard[2]) > 1:
        raise CheckpointError(path, f"it is one file of {int(shard[2])}, and their index {index.name} is not beside it")
    return None


def _open_shard(path: Path, shard: Path) -> SafetensorsFile:
    try:
        with shard.open("rb") as file:
            foreign = None if is_safetensors(file.read(16)) else describe_bytes(shard) or "it is another kind of file"
        if foreign:
            raise CheckpointError(shard, foreign)
        return SafetensorsFile(shard)
    except OSError as error:
        raise CheckpointError(path, f"its part {shard.name} cannot be opened ({error.strerror})") from error
    except CheckpointError as error:
        raise CheckpointError(path, f"its part {shard.name} is not usable: {error.reason}") from error


def _without_data(path: Path, name: str, entry: TensorEntry) -> torch.Tensor:
    """Return a tensor's shape and dtype as a tensor on the meta device."""
    if entry.dtype not in _DTYPES:
        raise CheckpointError(path, describe_quantized(name, entry.dtype))
    try:
        return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype], device="meta")
    except RuntimeError as error:  # an empty tensor with huge sizes
        raise CheckpointError(path, f"tensor {quote(name)} has the shape {quote(list(entry.shape))}") from error


def _architecture(path: Path, metadata: Mapping[str, str]) -> object | None:
    if "architecture" not in metadata:
        return None
    try:
        return read_json(metadata["architecture"].encode())
    except ValueError as error:
        raise CheckpointError(path, f"its entry 'architecture' is invalid ({error})") from error
