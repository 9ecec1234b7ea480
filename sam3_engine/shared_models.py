"""Models that everyone in the process shares.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from .checkpoints.safetensors_files import files_of
from .devices import with_index
from .model import Model, load_model, refuse_forked_process

_MODELS: weakref.WeakValueDictionary[tuple[Any, ...], Model] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def shared_model(checkpoint: Path, device: torch.device) -> Model:
    """Return the model of ``checkpoint``; load it unless this process already has it loaded.

    The model is freed when the last reference to it is gone.

    Args:
        checkpoint: an existing file. If it, or another file of a sharded checkpoint, changed since it was loaded, it
            is another model.
        device: where to run, see :func:`~.devices.choose_device`.

    Raises:
        CheckpointError, DeviceMemoryError: see :func:`~.model.load_model`.
    """
    refuse_forked_process()
    key = _model_key(checkpoint, device)
    with _LOCK:
        model = _MODELS.get(key)
        if model is None:
            model = _MODELS[key] = load_model(checkpoint, device)
        return model


def is_shared(model: Model, checkpoint: Path, device: torch.device) -> bool:
    """Return whether ``model`` is the one that :func:`shared_model` returns for these arguments.

    Raises:
        CheckpointError: the index of a sharded checkpoint cannot be read.
    """
    return _MODELS.get(_model_key(checkpoint, device)) is model


def _model_key(checkpoint: Path, device: torch.device) -> tuple[Any, ...]:
    """Return what tells models apart: the device, and all files by path, size and time of their last change."""
    return (with_index(device), *map(_version_of, files_of(checkpoint)))


def _version_of(file: Path) -> tuple[Any, ...]:
    try:
        status = file.stat()
    except OSError:
        return (file, None)  # loading says what is missing
    return (file.resolve(), status.st_size, status.st_mtime_ns)
