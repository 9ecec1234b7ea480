"""Read safetensors files, sharded or not, memory-mapped.

Importing this module imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..device_errors import raise_device_error
from ..errors import CheckpointError, quote, quote_name
from ..host_state import ignore_warnings
from .foreign_files import describe_bytes, describe_quantized
from .safetensors_headers import DTYPES, INDEX_SUFFIX, TensorEntry, is_safetensors, read_header, read_index, read_json

_SHARD_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors", re.DOTALL)


class SafetensorsFile:
    """A safetensors file; a :class:`~.weight_files.WeightFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_other_kinds(path)
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
            raise_device_error(error)
            raise CheckpointError(self.path, f"it is damaged or cannot be read ({quote(error, 300)})") from error


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
                    raise CheckpointError(
                        path, f"{quote_name(file_name)} has a tensor {quote_name(name)}, which {index.name} denies"
                    )
                self._shard_of[name] = shard
        missing = file_of.keys() - self._shard_of.keys()
        if missing:
            name = min(missing)
            raise CheckpointError(
                path, f"{quote_name(file_of[name])} lacks the tensor {quote_name(name)}, which {index.name} names"
            )
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
    """Return the index of a sharded checkpoint which a file is or belongs to; None if its name is that of neither.

    Raises:
        CheckpointError: the file is one of several, and there is no index beside it.
    """
    if path.name.endswith(INDEX_SUFFIX):
        return path
    shard = _SHARD_NAME.fullmatch(path.name)
    if not shard:
        return None
    index = path.with_name(shard[1] + INDEX_SUFFIX)
    if index.is_file():
        return index
    if int(shard[2]) > 1:
        raise CheckpointError(path, f"it is one file of {int(shard[2])}, and their index {index.name} is not beside it")
    return None


def files_of(path: Path) -> list[Path]:
    """Return the files of a checkpoint: ``path``, or the index and all parts of a sharded one, which may be missing.

    Raises:
        CheckpointError: the index cannot be read.
    """
    index = find_index(path)
    if index is None:
        return [path]
    return [index, *(index.with_name(name) for name in sorted(set(read_index(path, index).values())))]


def _open_shard(path: Path, shard: Path) -> SafetensorsFile:
    try:
        return SafetensorsFile(shard)
    except CheckpointError as error:
        raise CheckpointError(path, f"its part {quote_name(shard.name)} is not usable: {error.reason}") from error


def _refuse_other_kinds(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if not is_safetensors(head):
            raise CheckpointError(path, describe_bytes(path) or "it is another kind of file, or an incomplete download")
    except OSError as error:
        raise_device_error(error)
        raise CheckpointError(path, f"it cannot be opened ({error.strerror})") from error


def _without_data(path: Path, name: str, entry: TensorEntry) -> torch.Tensor:
    """Return a tensor's shape and dtype as a tensor on the meta device."""
    dtype = DTYPES[entry.dtype][1]
    if dtype is None:
        raise CheckpointError(path, describe_quantized(name, entry.dtype))
    try:
        return torch.empty(entry.shape, dtype=getattr(torch, dtype), device="meta")
    except RuntimeError as error:  # an empty tensor with huge sizes
        raise_device_error(error)
        raise CheckpointError(path, f"tensor {quote_name(name)} has the shape {quote(list(entry.shape))}") from error


def _architecture(path: Path, metadata: Mapping[str, str]) -> object | None:
    if "architecture" not in metadata:
        return None
    try:
        return read_json(metadata["architecture"].encode())
    except ValueError as error:
        raise CheckpointError(path, f"its entry 'architecture' is invalid ({error})") from error
