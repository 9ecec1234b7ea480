"""Read checkpoints strictly, and write them.

Importing this module imports torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .architecture import Architecture
from .errors import CheckpointError
from .host_state import ignore_warnings

if TYPE_CHECKING:
    from sam3.model.sam3_image import Sam3Image

# Meta's file holds the image model and the interactive (video) model under these prefixes
_PREFIXES = {"detector.": "", "tracker.": "inst_interactive_predictor.model."}


def read_checkpoint(path: Path) -> tuple[Architecture, Mapping[str, Any]]:
    """Read the architecture and the tensors of a checkpoint, memory-mapped and without running any code in it.

    Returns:
        The sizes of the network, SAM 3's own if the file does not say; the tensors by name.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or does not contain named tensors.
    """
    _check_archive(path)
    try:
        with ignore_warnings(), torch.inference_mode(False):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise any of them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(path, f"it is damaged or contains more than tensors ({reason})") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(path, f"it contains a {type(contents).__name__}, not named tensors")
    tensors = contents.get("model", contents)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(path, f"its entry 'model' is a {type(tensors).__name__}, not named tensors")
    if "architecture" not in contents:
        return Architecture(), tensors
    try:
        return Architecture.from_dict(contents["architecture"]), tensors
    except (TypeError, ValueError) as error:
        raise CheckpointError(path, f"its entry 'architecture' is invalid ({error})") from error


def fit_tensors(
    path: Path, tensors: Mapping[str, Any], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors under the network's names and in its dtypes.

    Args:
        path: of the checkpoint, for errors.
        tensors: as :func:`read_checkpoint` returns them.
        expected: the network's ``state_dict()``.

    Raises:
        CheckpointError: a tensor is missing or unexpected, or does not fit.
    """
    if any(str(name).startswith("tracker.model.interactive_") for name in tensors):
        raise CheckpointError(path, "this is a SAM 3.1 'multiplex' checkpoint, which has a different network")

    renamed = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in _PREFIXES if str(name).startswith(prefix)), None)
        if prefix is not None:
            renamed[_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    if not renamed:
        raise CheckpointError(path, "no tensor name begins with 'detector.' or 'tracker.'")

    missing, unexpected = expected.keys() - renamed.keys(), renamed.keys() - expected.keys()
    if missing:
        raise CheckpointError(path, f"tensors are missing ({len(missing)}), including '{min(missing)}'")
    if unexpected:
        raise CheckpointError(path, f"it has unexpected tensors ({len(unexpected)}), including '{min(unexpected)}'")
    return {name: _fit_tensor(path, name, renamed[name], wanted) for name, wanted in expected.items()}


def checkpoint_contents(network: Sam3Image, architecture: Architecture) -> dict[str, Any]:
    """Return what to pass to ``torch.save`` so that :func:`~.model.load_model` can load ``network`` again.

    Returns:
        The tensors under Meta's names (``model``), and the ``architecture``.
    """
    tensors = {}
    for name, tensor in network.state_dict().items():
        prefix = next(prefix for prefix, ours in reversed(_PREFIXES.items()) if name.startswith(ours))
        tensors[prefix + name.removeprefix(_PREFIXES[prefix])] = tensor
    return {"model": tensors, "architecture": architecture.to_dict()}


def _check_archive(path: Path) -> None:
    """Verify the checksums, which PyTorch does not; takes less than a second for SAM 3.

    Raises:
        CheckpointError: the file is not a zip archive as ``torch.save`` writes it, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise CheckpointError(path, "it is another kind of file, or an incomplete download")
            archive = zipfile.ZipFile(file)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(path, "it was repacked with compression, which PyTorch cannot read")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(path, f"it cannot be opened ({error.strerror})") from error
    except (EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(path, f"it is damaged ({error})") from error
    if damaged:
        raise CheckpointError(path, f"it is damaged: the checksum of its entry {damaged} is wrong")


def _fit_tensor(path: Path, name: str, tensor: Any, wanted: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(path, f"'{name}' is a {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        raise CheckpointError(path, f"'{name}' is sparse, is nested or has no data")
    if tensor.shape != wanted.shape:
        raise CheckpointError(path, f"'{name}' has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}")
    # converting complex numbers to real ones would drop the imaginary parts without an error
    if tensor.is_complex() != wanted.is_complex() or not (tensor.is_floating_point() or tensor.is_complex()):
        raise CheckpointError(path, f"'{name}' has dtype {tensor.dtype}, expected {wanted.dtype}")
    return tensor.to(wanted.dtype)
