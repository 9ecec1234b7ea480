"""Open weight files: torch archives and safetensors files, whatever their names.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from ..device_errors import raise_device_error
from ..errors import CheckpointError
from .safetensors_files import SafetensorsFile, ShardedFile, find_index
from .torch_archives import TorchArchive, is_torch_archive


class WeightFile(Protocol):
    """An open weight file. Opening it reads names, shapes and dtypes, not the data.

    Attributes:
        path: the path that you named, for errors.
        tensors: the tensors by name, on the meta device; dense, and neither nested nor quantized by torch.
        architecture: the value saved as ``architecture``, unchecked; None if there is none.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    architecture: object | None

    def load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the tensors ``names``, memory-mapped, after verifying their checksums if the file has any.

        Raises:
            CheckpointError: the data of one of them is damaged, or was not saved.
        """
        ...


def open_weight_file(path: Path) -> WeightFile:
    """Open a weight file. Its content decides what it is.

    Args:
        path: of a file of ``torch.save`` or safetensors. For a sharded safetensors checkpoint, the path of its index or
            of any of its files.

    Raises:
        CheckpointError: the file cannot be read, is damaged or is not a weight file; the message says what it is.
    """
    index = find_index(path)
    if index:
        return ShardedFile(path, index)
    try:
        is_archive = is_torch_archive(path)
    except OSError as error:
        raise_device_error(error)
        raise CheckpointError(path, f"it cannot be opened ({error.strerror})") from error
    return TorchArchive(path) if is_archive else SafetensorsFile(path)
