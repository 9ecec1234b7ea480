"""Keep image embeddings in a folder, so that another process need not encode the same image again.

Importing this module imports torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import tempfile
import time
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from .errors import quote

if TYPE_CHECKING:
    from .model import Model

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the files change
_MOST_BYTES = 4 * 10**9  # of all files
_PREFIX, _SUFFIX, _UNFINISHED = "sam3-", ".safetensors", ".unfinished"
_OLDEST_UNFINISHED = 3600  # seconds, after which a process that writes a file must have died
_DIGEST, _CHANNELS_LAST = "digest", ".channels_last"
_DETECTOR, _CLICK_HEAD = "detector", "click_head"  # whose feature maps
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_OVERHEAD = 2**16  # bytes of a file besides its feature maps
_SAMPLED = 256  # numbers of each weight

Tensors = dict[str, torch.Tensor]


class EmbeddingFiles:
    """The image embeddings of a model in a folder, at one input size.

    Each is a safetensors file. What the embedding depends on is part of the file's name: the pixels, the weights, the
    sizes, the precision, and the versions of torch and sam3. Files appear all at once, so several processes may use the
    folder; together, they keep at most 4 GB, of which those that were not used for the longest time go first. A file
    that is damaged, or was not written by this class, is not used.

    Call its methods inside :meth:`~.model.Model.infer`.

    Args:
        folder: created when the first embedding is written.
        model: makes the embeddings.
        resolution: the input size, in pixels.
    """

    def __init__(self, folder: Path, model: Model, resolution: int) -> None:
        self.folder = folder
        self._model = model
        self._resolution = resolution
        self._has_warned = False

    def load(self, key: Hashable) -> dict[str, Any] | None:
        """Return the features of an embedding, or None if there are none.

        Args:
            key: identifies the image and how it was prepared.

        Returns:
            As ``Sam3Processor.set_image`` of the sam3 package, without the position tables ``vision_pos_enc``.
        """
        path = self._path(key)
        try:
            stored = _read(path, self._shapes())
        except (OSError, ValueError):  # there is none; the path is not valid
            return None
        if stored is None:
            return None
        with contextlib.suppress(OSError):  # the folder can only be read
            os.utime(path)  # it was used
        pyramids: dict[str, list[torch.Tensor]] = {_DETECTOR: [], _CLICK_HEAD: []}
        for name in self._shapes():
            pyramids[name.partition(".")[0]].append(stored[name].to(self._model.device))
        of_click_head = _as_features(pyramids[_CLICK_HEAD]) if pyramids[_CLICK_HEAD] else None
        return {**_as_features(pyramids[_DETECTOR]), "sam2_backbone_out": of_click_head}

    def save(self, key: Hashable, features: Mapping[str, Any]) -> None:
        """Write the features of an embedding; if that fails, log one warning.

        Args:
            key: identifies the image and how it was prepared.
            features: of ``Sam3Processor.set_image``.
        """
        architecture = self._model.architecture
        maps: Tensors = {}
        if architecture.detector:
            maps.update({f"{_DETECTOR}.{level}": one for level, one in enumerate(features["backbone_fpn"])})
        if architecture.click_head:
            of_click_head = features["sam2_backbone_out"]["backbone_fpn"]
            maps.update({f"{_CLICK_HEAD}.{level}": one for level, one in enumerate(of_click_head)})
        if not all(bool(one.isfinite().all()) for one in maps.values()):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self._path(key), maps)
            self._make_room()
        except (OSError, ValueError) as error:
            if not self._has_warned:
                self._has_warned = True
                reason = getattr(error, "strerror", None) or str(error)
                logger.warning(
                    "embedding_cache_folder = %s: nothing can be written there (%s). Embeddings are not kept.",
                    quote(str(self.folder), limit=1000),
                    reason,
                )

    def _path(self, key: Hashable) -> Path:
        model = self._model
        versions = [importlib.metadata.version("sam3"), torch.__version__]
        facts = (_FORMAT, self._weights, key, self._resolution, str(model.precision), model.device.type, versions)
        name = hashlib.blake2b(repr(facts).encode(), digest_size=20).hexdigest()
        return self.folder / f"{_PREFIX}{name}{_SUFFIX}"

    @functools.cached_property
    def _weights(self) -> str:
        """A hash of the weights: their names, shapes and dtypes, and a part of the values of each."""
        digest = hashlib.blake2b(digest_size=20)
        samples = []
        for name, tensor in self._model.network.state_dict().items():
            digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
            numbers = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
            start = max(0, (len(numbers) - _SAMPLED) // 2)
            samples.append(numbers[start : start + _SAMPLED].view(torch.uint8))
        digest.update(torch.cat(samples).cpu().numpy().data)
        return digest.hexdigest()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the feature maps, finest first."""
        architecture, grid = self._model.architecture, self._resolution // self._model.architecture.patch_size
        width = architecture.width
        channels = {
            _DETECTOR: (width, width, width) if architecture.detector else (),
            _CLICK_HEAD: (width // 8, width // 4, width) if architecture.click_head else (),
        }
        return {
            f"{head}.{level}": (1, count, grid * 4 // 2**level, grid * 4 // 2**level)
            for head, counts in channels.items()
            for level, count in enumerate(counts)
        }

    def _make_room(self) -> None:
        """Delete the files that were not used for the longest time, and what processes left that died."""
        used, total = [], 0
        for entry in os.scandir(self.folder):
            if entry.name.startswith(_PREFIX) and entry.name.endswith((_SUFFIX, _UNFINISHED)):
                with contextlib.suppress(OSError):  # another process has deleted it
                    status = entry.stat()
                    used.append((status.st_mtime, status.st_size, entry))
                    total += status.st_size
        for changed, size, entry in sorted(used, key=lambda one: one[0]):
            is_abandoned = entry.name.endswith(_UNFINISHED) and changed < time.time() - _OLDEST_UNFINISHED
            if total > _MOST_BYTES or is_abandoned:
                with contextlib.suppress(OSError):  # another process has deleted it, or on Windows reads it
                    Path(entry.path).unlink()
                    total -= size


def _as_features(maps: list[torch.Tensor]) -> dict[str, Any]:
    """Return feature maps as the package's image encoder does."""
    return {"vision_features": maps[-1] if maps else None, "backbone_fpn": maps}


def _write(path: Path, maps: Mapping[str, torch.Tensor]) -> None:
    """Write feature maps to a file, which appears all at once."""
    # on the CPU, the package's maps have their channels last, which affects how the heads round
    stored: Tensors = {}
    for name, one in maps.items():
        if one.is_contiguous(memory_format=torch.channels_last):
            stored[name + _CHANNELS_LAST] = one.permute(0, 2, 3, 1).contiguous().cpu()
        else:
            stored[name] = one.contiguous().cpu()
    stored[_DIGEST] = torch.frombuffer(bytearray(_digest_of(stored)), dtype=torch.uint8)
    descriptor, unfinished = tempfile.mkstemp(_UNFINISHED, _PREFIX, path.parent)
    os.close(descriptor)
    try:
        try:
            save_file(stored, unfinished)
        except SafetensorError as error:  # it wraps the errors of the system
            raise OSError(str(error)) from error
        Path(unfinished).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(unfinished).unlink()
        raise


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Tensors | None:
    """Read feature maps of these names and shapes; return None if the file holds anything else.

    Raises:
        OSError: the file cannot be read.
    """
    most = _MOST_OVERHEAD + 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
    if path.stat().st_size > most:
        return None
    try:
        stored = load(path.read_bytes())  # not memory-mapped: Windows could not replace the file
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    digest = stored.pop(_DIGEST, None)
    if digest is None or digest.dtype != torch.uint8 or bytes(digest.reshape(-1).tolist()) != _digest_of(stored):
        return None
    maps = {
        name.removesuffix(_CHANNELS_LAST): one.permute(0, 3, 1, 2) if name.endswith(_CHANNELS_LAST) else one
        for name, one in stored.items()
        if one.dim() == 4 and one.dtype in _DTYPES
    }
    return maps if {name: one.shape for name, one in maps.items()} == shapes else None


def _digest_of(tensors: Mapping[str, torch.Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
