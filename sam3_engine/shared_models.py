"""Models that everyone in the process shares.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from .model import Model, load_model, refuse_forked_process

_MODELS: weakref.WeakValueDictionary[tuple[Any, ...], Model] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def shared_model(checkpoint: Path, device: torch.device) -> Model:
    """Return the model of ``checkpoint``; load it unless this process already has it loaded.

    The model is freed when the last reference to it is gone.

    Args:
        checkpoint: an existing file. A file that changed since it was loaded is another model.
        device: where to run, see :func:`~.devices.choose_device`.

    Raises:
        CheckpointError: see :func:`~.model.load_model`.
    """
    refuse_forked_process()
    key = _model_key(checkpoint, device)
    with _LOCK:
        model = _MODELS.get(key)
        if model is None:
            model = _MODELS[key] = load_model(checkpoint, device)
        return model


def is_shared(model: Model, checkpoint: Path, device: torch.device) -> bool:
    """Return whether ``model`` is the one that :func:`shared_model` returns for these arguments."""
    return _MODELS.get(_model_key(checkpoint, device)) is model


def _model_key(checkpoint: Path, device: torch.device) -> tuple[Any, ...]:
    """Return what tells models apart: the device, and the file by path, size and time of its last change."""
    file = checkpoint.resolve()
    status = file.stat()
    return (file, status.st_size, status.st_mtime_ns, device)
