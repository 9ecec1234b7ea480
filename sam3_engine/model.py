"""A SAM 3 checkpoint loaded into a network, and shared by everyone in the process who wants the same.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from .architecture import Architecture
from .recent import Recent
from .runtime import choose_precision, importing_sam3, inference, warnings_ignored

with importing_sam3():
    from .network import Sam3Image, build_network

__all__ = [
    "Architecture",
    "CheckpointError",
    "DeviceMemoryError",
    "Model",
    "Sam3Image",
    "build_network",
    "cast_encoder_weights",
    "checkpoint_contents",
    "load_model",
    "model_identity",
    "shared_model",
]

# Meta's file holds the image model and the interactive (video) model side by side under these prefixes
_PREFIXES = {"detector.": "", "tracker.": "inst_interactive_predictor.model."}

Result = TypeVar("Result")

_IMAGES_KEPT = 2
_PHRASES_KEPT = 64  # less than 0.2 MB each at SAM 3's size
_RESIZED_KEPT = 2


class CheckpointError(ValueError):
    """A file that is not a SAM 3 checkpoint, or not a whole and sound one."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is not a usable SAM 3 checkpoint: {reason}. Expected Meta's sam3.pt or a file like it."
        )


class DeviceMemoryError(RuntimeError):
    """The memory of the device did not suffice; the message says what takes less."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(
            f"Not enough memory on {device}. Choose a smaller model_input_size, fewer boxes or phrases at once, or the "
            "CPU (cuda = False), or close what else uses this memory."
        )


class Model:
    """A network ready to run on its device, in its precision, and what it was last asked about.

    One caller runs it at a time; :meth:`running` makes the others wait.

    Attributes:
        checkpoint: the file that it was loaded from.
        network: at the checkpoint's own input size.
        architecture: of that network.
        device, precision: where and in what it runs.
        embeddings: what the image encoder made of the last images; to be used while :meth:`running`.
        phrases: what the text encoder made of the last phrases; to be used while :meth:`running`.
        position_tables: of image features, by the size of the network's input; to be used while :meth:`running`.
    """

    def __init__(
        self,
        checkpoint: Path,
        network: Sam3Image,
        architecture: Architecture,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.checkpoint = checkpoint
        self.network = network
        self.architecture = architecture
        self.device = device
        self.precision = precision
        self.embeddings: Recent[Any] = Recent(_IMAGES_KEPT)
        self.phrases: Recent[Any] = Recent(_PHRASES_KEPT)
        self.position_tables: Recent[Any] = Recent(1 + _RESIZED_KEPT)
        self._resized: Recent[Sam3Image] = Recent(_RESIZED_KEPT)
        self._running = threading.RLock()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the network runs: alone, in inference mode, in this model's precision, the host's state kept.

        Raises:
            RuntimeError: this process was forked from the one that loaded the model.
        """
        _refuse_forked_process()
        with self._running, inference(self.device, self.precision):
            yield

    def run(self, work: Callable[[], Result], *kept: Recent[Any]) -> Result:
        """What ``work`` makes while :meth:`running`; if memory runs out, it is tried once more with nothing kept.

        Args:
            work: uses the network.
            kept: what is to be forgotten then, beside all that this model keeps.

        Raises:
            DeviceMemoryError: it ran out again.
        """
        for forget in (True, False):
            try:
                with self.running():
                    return work()
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
            # not in the except clause: until its end, the error holds what was being computed
            if forget:
                self._forget(kept)
        raise DeviceMemoryError(self.device)

    def _forget(self, others: Iterable[Recent[Any]]) -> None:
        with self._running:
            for kept in (self.embeddings, self.phrases, self.position_tables, *others):
                kept.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def network_at(self, resolution: int) -> Sam3Image:
        """The network for another input size. It shares its weights with the others: only tables are computed anew.

        Args:
            resolution: side of the square network input in pixels, a multiple of the architecture's ``patch_size``.

        Raises:
            ValueError: it is no such multiple.
        """
        if resolution == self.architecture.resolution:
            return self.network
        with self._running:
            return self._resized.get(resolution, lambda: self._resized_network(resolution))

    def _resized_network(self, resolution: int) -> Sam3Image:
        own = self.architecture
        hole_area = round(own.fill_hole_area * (resolution / own.resolution) ** 2)  # the same part of the image
        architecture = dataclasses.replace(own, resolution=resolution, fill_hole_area=hole_area)
        network = build_network(architecture, self.device, without_weights=True)
        # what depends on the input size are rotary tables, which sam3 computes when a network is built
        tensors = {
            name: computed if computed.is_complex() and computed.shape != tensor.shape else tensor
            for (name, tensor), computed in zip(
                self.network.state_dict().items(), network.state_dict().values(), strict=True
            )
        }
        with torch.inference_mode(False):  # as in load_model
            network.load_state_dict(tensors, assign=True)
            return network.requires_grad_(False).to(self.device)


def shared_model(checkpoint: Path, device: torch.device) -> Model:
    """The model of ``checkpoint``, loaded unless someone in this process holds it already.

    It is kept as long as someone holds it.

    Args:
        checkpoint: an existing file.
        device: where to run, see :func:`~sam3_engine.runtime.choose_device`.

    Raises:
        CheckpointError: see :func:`load_model`.
    """
    _refuse_forked_process()
    identity = model_identity(checkpoint, device)
    with _SHARED_LOCK:
        model = _SHARED.get(identity)
        if model is None:
            model = _SHARED[identity] = load_model(checkpoint, device)
        return model


_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], Model] = weakref.WeakValueDictionary()
_SHARED_LOCK = threading.Lock()
_PROCESS = os.getpid()


def _refuse_forked_process() -> None:
    """Torch's threads, and locks that others hold, do not survive a fork: better an error than to wait for good."""
    if os.getpid() != _PROCESS:
        raise RuntimeError(
            "This process was forked from one that had SAM 3 at work, which torch does not bear. Start processes by "
            "'spawn' (multiprocessing.set_start_method), or before SAM 3 is first used."
        )


def _out_of_memory(error: BaseException) -> bool:
    # on a CPU torch raises a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def model_identity(checkpoint: Path, device: torch.device) -> tuple[Any, ...]:
    """What makes two models the same one: the device and the file, by path, size and time of its last change."""
    file = checkpoint.resolve()
    status = file.stat()
    return (file, status.st_size, status.st_mtime_ns, device)


def load_model(checkpoint: Path, device: torch.device, precision: torch.dtype | None = None) -> Model:
    """Load a checkpoint: Meta's ``sam3.pt``, or one of the same names that carries its own architecture.

    The file is read with ``weights_only``: no code in it is run. It is memory-mapped, so a file in use may be replaced
    by another of its name, but not be written to.

    Args:
        checkpoint: path of the file.
        device: where to run.
        precision: dtype of the matrix products; by default what suits the device.

    Raises:
        CheckpointError: the file cannot be read, or one of its tensors does not fit, is missing or is one too many.
    """
    architecture, tensors = _read(checkpoint)
    try:
        network = build_network(architecture, device, without_weights=True)
    # of sizes that are possible each, but not together
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(checkpoint, f"a network of its architecture cannot be built ({error})") from error
    precision = precision or choose_precision(device)
    with torch.inference_mode(False):  # whatever the host is in: the tensors outlive this
        network.load_state_dict(_fitted(checkpoint, tensors, network.state_dict()), assign=True)
        network.requires_grad_(False)
        if device.type == "cuda":  # a CPU casts faster than it reads, and its weights stay in the file until then
            cast_encoder_weights(network, device, precision)
        return Model(checkpoint, network.to(device), architecture, device, precision)


def cast_encoder_weights(network: Sam3Image, device: torch.device, precision: torch.dtype) -> None:
    """Bring the weights of the encoders of images and texts to ``device`` in ``precision``: half the bytes of float32.

    That is what autocast makes of them in every call, so the answers are the same. The rest, an eighth of SAM 3, stays
    in float32: parts of it leave autocast.
    """
    for encoder in (network.backbone.vision_backbone.trunk, network.backbone.language_backbone):
        for module in encoder.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.MultiheadAttention):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(device).to(precision)


def checkpoint_contents(network: Sam3Image, architecture: Architecture) -> dict[str, Any]:
    """What ``torch.save`` shall write so that :func:`load_model` can load ``network`` again.

    Returns:
        The tensors under Meta's names (``model``), and the architecture beside them.
    """
    tensors = {}
    for name, tensor in network.state_dict().items():
        prefix = next(prefix for prefix, ours in reversed(_PREFIXES.items()) if name.startswith(ours))
        tensors[prefix + name.removeprefix(_PREFIXES[prefix])] = tensor
    return {"model": tensors, "architecture": architecture.to_dict()}


def _check_archive(checkpoint: Path) -> None:
    """Refuse what is no archive, or a damaged one: torch does not look at checksums. SAM 3's take less than a second.

    Raises:
        CheckpointError: see the message.
    """
    try:
        with checkpoint.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise CheckpointError(checkpoint, "it is another kind of file, or only the beginning of one")
            archive = zipfile.ZipFile(file)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(checkpoint, "it was packed anew, with compression, which torch cannot read")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(checkpoint, f"it cannot be opened ({error.strerror})") from error
    except (EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(checkpoint, f"it is damaged ({error})") from error
    if damaged:
        raise CheckpointError(checkpoint, f"it is damaged: the checksum of its part {damaged} is wrong")


def _read(checkpoint: Path) -> tuple[Architecture, Mapping[str, Any]]:
    _check_archive(checkpoint)
    try:
        with warnings_ignored(), torch.inference_mode(False):
            contents = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can end in any of them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(checkpoint, f"it is damaged or holds more than tensors ({reason})") from error
    if not isinstance(contents, Mapping):
        raise CheckpointError(checkpoint, f"it holds a {type(contents).__name__}, not named tensors")
    tensors = contents.get("model", contents)
    if not isinstance(tensors, Mapping):
        raise CheckpointError(checkpoint, f"its entry 'model' is a {type(tensors).__name__}, not named tensors")
    if "architecture" not in contents:
        return Architecture(), tensors
    try:
        return Architecture.from_dict(contents["architecture"]), tensors
    except (TypeError, ValueError) as error:
        raise CheckpointError(checkpoint, f"its architecture is not one ({error})") from error


def _fitted(
    checkpoint: Path, tensors: Mapping[str, Any], expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors under the network's names and dtypes; anything that does not fit is an error."""
    if any(str(name).startswith("tracker.model.interactive_") for name in tensors):
        raise CheckpointError(checkpoint, "this is a SAM 3.1 'multiplex' checkpoint, which is another network")

    renamed = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in _PREFIXES if str(name).startswith(prefix)), None)
        if prefix is not None:
            renamed[_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    if not renamed:
        raise CheckpointError(checkpoint, "none of its names begins with 'detector.' or 'tracker.'")

    missing, unexpected = expected.keys() - renamed.keys(), renamed.keys() - expected.keys()
    if missing:
        raise CheckpointError(checkpoint, f"{len(missing)} tensors are missing, '{min(missing)}' among them")
    if unexpected:
        raise CheckpointError(checkpoint, f"{len(unexpected)} tensors are too many, '{min(unexpected)}' among them")

    for name, wanted in expected.items():
        tensor = renamed[name]
        if isinstance(tensor, torch.Tensor) and (tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta):
            raise CheckpointError(checkpoint, f"'{name}' is sparse, nested or without data")
        if not isinstance(tensor, torch.Tensor) or tensor.shape != wanted.shape:
            found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise CheckpointError(checkpoint, f"'{name}' is {found}, not of shape {tuple(wanted.shape)}")
        # a complex table read as real numbers would lose half of its content without an error
        if tensor.is_complex() != wanted.is_complex() or not (tensor.is_floating_point() or tensor.is_complex()):
            raise CheckpointError(checkpoint, f"'{name}' is {tensor.dtype}, not {wanted.dtype}")
        renamed[name] = tensor.to(wanted.dtype)
    return renamed
