"""Read archives of ``torch.save`` (zip) strictly, memory-mapped and without running any code in them.

Importing this module imports torch.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..device_errors import raise_device_error
from ..errors import CheckpointError, quote, quote_name
from ..host_state import ignore_warnings
from .foreign_files import FULL_PRECISION, describe_adapter, describe_quantized
from .zip_checksums import StoredEntry, find_damaged, stored_entry

logger = logging.getLogger(__name__)

_WEIGHTS = ("model", "model_state_dict", "state_dict", "module")  # entries that may hold the tensors
_BESIDE_FLAT = (int, float)  # for example the epoch, among tensors at the top level
_MAX_QUOTED = 300  # of an error message of torch or zipfile
_MAX_RECORD_BYTES = 64 * 2**20  # of the pickle, for example; SAM 3's has 0.2 MB


def is_torch_archive(path: Path) -> bool:
    """Return whether a file is a complete archive of ``torch.save``; TorchScript archives are not.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04" or not zipfile.is_zipfile(file):
            return False
        try:
            names = zipfile.ZipFile(file).namelist()
        except Exception as error:  # a damaged directory can raise any of them
            raise_device_error(error)
            return False
    tails = {name.partition("/")[2] for name in names}
    return "data.pkl" in tails and "constants.pkl" not in tails


class TorchArchive:
    """An archive of ``torch.save``; a :class:`~.weight_files.WeightFile`.

    The tensors are under ``model``, ``model_state_dict``, ``state_dict`` or ``module``, or at the top level. What else
    the file contains is ignored, with a warning if it may be weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _verified_directory(path)
        contents, storages = _map_archive(path)
        self._mapped = _named_tensors(path, contents)
        self._entry_at = _match(storages, self._entries)
        self.architecture: object | None = contents.get("architecture")
        self.tensors: Mapping[str, torch.Tensor] = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in self._mapped.items()
        }

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """See :class:`~.weight_files.WeightFile`."""
        tensors = {name: self._mapped[name].detach() for name in names}
        for name, tensor in tensors.items():
            if tensor.is_meta:
                raise CheckpointError(self.path, f"{quote_name(name)} has no data: it was saved from the meta device")
        _verify(self.path, self._entries_of(tensors))
        return tensors

    def _entries_of(self, tensors: Mapping[str, torch.Tensor]) -> dict[StoredEntry, str]:
        """Return the entries that hold ``tensors``, and what to call them; every entry, if they are not known."""
        if self._entry_at is None:
            return {entry: _called(entry) for entry in self._entries}
        storages = {name: tensor.untyped_storage() for name, tensor in tensors.items()}
        return {
            self._entry_at[storage.data_ptr()]: quote_name(name)
            for name, storage in storages.items()
            if storage.nbytes()
        }


def _verified_directory(path: Path) -> list[StoredEntry]:
    """Return the entries of the archive that hold tensors, and verify the checksums of the others."""
    try:
        with path.open("rb") as file:
            listed = zipfile.ZipFile(file).infolist()
            entries = [stored_entry(file, entry) for entry in listed]
    except OSError as error:
        raise_device_error(error)
        raise CheckpointError(path, f"it cannot be opened ({error.strerror})") from error
    except Exception as error:  # a damaged file can raise any of them
        raise_device_error(error)
        raise CheckpointError(path, f"it is damaged ({quote(error, _MAX_QUOTED)})") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in listed):
        raise CheckpointError(path, "it was repacked with compression, which PyTorch cannot read")

    if not any(entry.checksum for entry in entries):  # written after torch.serialization.set_crc32_options(False)
        entries = [dataclasses.replace(entry, checksum=None) for entry in entries]
    records = {entry: _called(entry) for entry in entries if "/data/" not in entry.name}
    for entry in records:
        if entry.size > _MAX_RECORD_BYTES:
            raise CheckpointError(path, f"{_called(entry)} has {entry.size:,} bytes, which is too many")
    _verify(path, records)
    return [entry for entry in entries if entry not in records and entry.size]


def _called(entry: StoredEntry) -> str:
    return f"its entry {quote_name(entry.name)}"


def _verify(path: Path, entries: Mapping[StoredEntry, str]) -> None:
    """Verify the checksums of entries; the error calls an entry by its value."""
    try:
        damaged = find_damaged(path, entries)
    except OSError as error:
        raise_device_error(error)
        raise CheckpointError(path, f"it cannot be read ({error.strerror})") from error
    if damaged:
        raise CheckpointError(path, f"it is damaged: the checksum of {entries[damaged]} is wrong")


def _map_archive(path: Path) -> tuple[Any, list[torch.UntypedStorage]]:
    """Return the contents of the archive and all storages in it, memory-mapped."""
    storages: list[torch.UntypedStorage] = []

    def keep_on_cpu(storage: Any, location: str) -> Any:
        storages.append(storage)
        return storage

    if path.name.endswith(".safetensors"):  # torch.load would go by the name
        raise CheckpointError(path, "it was written by torch.save: rename it so that it ends in .pt")
    try:
        with ignore_warnings(), torch.inference_mode(False):
            contents = torch.load(path, map_location=keep_on_cpu, weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise any of them
        raise_device_error(error)
        raise CheckpointError(path, _reason(error)) from error
    return contents, storages


def _reason(error: Exception) -> str:
    """Return why ``torch.load`` failed, without its advice to load the file unsafely."""
    text = str(error).strip() or type(error).__name__
    blocked = re.search(r"[Uu]nsupported (?:global: )?(?:GLOBAL|class) ([\w.]+)", text)
    if blocked and blocked[1].startswith("torchao."):
        return f"it is quantized (torchao): {FULL_PRECISION}"
    if blocked:
        return (
            f"it contains Python objects ({quote_name(blocked[1])}), which may run code and are not loaded. Only if "
            "you trust whoever made it, save the tensors alone: "
            'torch.save({"model": torch.load(path, weights_only=False)["model"]}, new_path)'
        )
    reason = text.rpartition("WeightsUnpickler error: ")[2].removeprefix("Weights only load failed. ")
    return f"it is damaged or contains more than tensors ({quote(reason.strip().splitlines()[0], _MAX_QUOTED)})"


def _match(storages: Iterable[torch.UntypedStorage], entries: Iterable[StoredEntry]) -> dict[int, StoredEntry] | None:
    """Return the entry of the archive that each address in memory belongs to.

    Storages lie in memory as their entries do in the file. Their first addresses fix the distance; if then not every
    storage is an entry, the archive was not written by ``torch.save``.

    Returns:
        The entries by address; None if they do not match.
    """
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
    by_offset = {entry.offset: entry for entry in entries}
    if not sizes or not by_offset:
        return {} if not sizes else None
    start = min(sizes) - min(by_offset)
    matched = {address: by_offset.get(address - start) for address in sizes}
    found = {address: entry for address, entry in matched.items() if entry and entry.size == sizes[address]}
    return found if len(found) == len(sizes) else None


def _named_tensors(path: Path, contents: Any) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name.

    Raises:
        CheckpointError: it has none, or something else among them.
    """
    if not isinstance(contents, Mapping):
        raise CheckpointError(path, f"it contains a {type(contents).__name__}, not named tensors")
    entry = next((name for name in _WEIGHTS if name in contents), None)
    _check_others(path, contents, entry)
    if entry is None:
        tensors: Any = {
            name: value
            for name, value in contents.items()
            if name != "architecture" and not isinstance(value, _BESIDE_FLAT)
        }
        if "param_groups" in tensors:
            raise CheckpointError(path, "it is the state of an optimizer, without a model")
        if tensors and not any(isinstance(value, torch.Tensor) for value in tensors.values()):
            entries = ", ".join(quote_name(name) for name in list(contents)[:5])
            raise CheckpointError(path, f"it has no entry 'model' or 'state_dict'; its entries are {entries}")
    else:
        tensors = contents[entry]
        if not isinstance(tensors, Mapping):
            raise CheckpointError(path, f"its entry '{entry}' is a {type(tensors).__name__}, not named tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise CheckpointError(path, f"it contains an entry named {quote_name(name)}, not named tensors")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise CheckpointError(path, f"{quote_name(name)} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise CheckpointError(path, f"{quote_name(name)} is sparse or nested")
        if tensor.is_quantized:
            raise CheckpointError(path, describe_quantized(name, tensor.dtype))
    return tensors


def _check_others(path: Path, contents: Mapping[Any, Any], used: str | None) -> None:
    """Warn of what may be weights beside the entry ``used``.

    Raises:
        CheckpointError: the file contains a LoRA adapter.
    """
    others = {name: _tensor_names(value) for name, value in contents.items() if name not in (used, "loss")}
    others = {name: inner for name, inner in others.items() if inner}
    adapter = describe_adapter(f"{name}.{inner}" for name, names in others.items() for inner in names)
    if adapter:
        raise CheckpointError(path, adapter)
    if used and others:
        ignored = ", ".join(map(quote_name, others))
        logger.warning("%s also has tensors under %s. Only %r is used.", path, ignored, used)


def _tensor_names(value: Any, depth: int = 2) -> list[str]:
    """Return the names of the tensors in a mapping, and in the mappings in it; not those of an optimizer's state."""
    if not isinstance(value, Mapping) or not depth:
        return []
    inner = [name for part in value.values() for name in _tensor_names(part, depth - 1)]
    return [*(str(name) for name, part in value.items() if isinstance(part, torch.Tensor)), *inner]
