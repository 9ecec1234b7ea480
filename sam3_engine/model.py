"""A SAM 3 network with loaded weights, ready to run.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from .architecture import Architecture
from .checkpoints.checkpoint import fit_tensors, read_checkpoint
from .contexts import importing_sam3, inference
from .device_errors import raise_device_error
from .devices import choose_precision, with_index
from .errors import CheckpointError, quote
from .lru_cache import LRUCache
from .memory import ReleaseAtEnd, measure_budget, retry_without_caches
from .weight_precision import narrow_weights, set_weight_precision, widen_while_running

with importing_sam3():
    from .network import Sam3Image, build_image_network

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_CACHED_IMAGES = 2
_CACHED_TILES = 10_000  # the budget is what bounds them
_CACHED_PHRASES = 64  # less than 0.2 MB each at SAM 3's size
_CACHED_INPUT_SIZES = 2

_PROCESS = os.getpid()


class NotFiniteError(ArithmeticError):
    """The network returned NaN or infinity. Raise it inside :meth:`Model.infer`, which handles it."""


class Model:
    """A network on its device, in its precision, with caches of its latest results.

    Attributes:
        checkpoint: the file that the network was loaded from.
        network: the network at the checkpoint's own input size.
        architecture: the sizes and parts of that network.
        description: what users call the checkpoint, for example "SAM 3.1 (multiplex)".
        device: where it runs.
        precision: dtype of its matrix products; float32 from the first NaN or infinity on.
        budget: bounds the memory of these caches, together with those of all models on ``device``.
        embeddings: image embeddings; use it inside :meth:`exclusive_inference`.
        tiles: embeddings of parts of images; use it inside :meth:`exclusive_inference`.
        phrases: outputs of the text encoder by phrase, and of the geometry encoder by examples; use it inside
            :meth:`exclusive_inference`.
        position_tables: position tables of image features by input size; use it inside :meth:`exclusive_inference`.
    """

    def __init__(
        self,
        checkpoint: Path,
        network: Sam3Image,
        architecture: Architecture,
        description: str,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.checkpoint = checkpoint
        self.network = network
        self.architecture = architecture
        self.description = description
        self.device = device
        self.precision = precision
        self.budget = measure_budget(device)
        self.embeddings: LRUCache[Any] = LRUCache(_CACHED_IMAGES, self.budget)
        self.tiles: LRUCache[Any] = LRUCache(_CACHED_TILES, self.budget)
        self.phrases: LRUCache[Any] = LRUCache(_CACHED_PHRASES, self.budget)
        self.position_tables: LRUCache[Any] = LRUCache(1 + _CACHED_INPUT_SIZES, self.budget)
        self._resized: LRUCache[Sam3Image] = LRUCache(_CACHED_INPUT_SIZES)  # no budget: they share the weights
        # at all input sizes, also those that only a predictor holds
        self._networks: weakref.WeakSet[Sam3Image] = weakref.WeakSet([network])
        self._lock = threading.RLock()
        self._release_at_end = ReleaseAtEnd(device)  # the last attribute

    @contextlib.contextmanager
    def exclusive_inference(self) -> Iterator[None]:
        """Give this thread exclusive use of the network, in inference mode and in this model's precision.

        Raises:
            RuntimeError: this process was forked from the one that loaded the model.
        """
        refuse_forked_process()
        with self._lock, inference(self.device, self.precision):
            yield

    def infer(self, compute: Callable[[], Result]) -> Result:
        """Return ``compute()``, run in :meth:`exclusive_inference`.

        If memory runs out, clear all caches on this model's device and try once more. If the network returns NaN or
        infinity in half precision, run it again in float32, from now on.

        Args:
            compute: runs the network.

        Raises:
            CheckpointError: the network returns NaN or infinity in float32.
            DeviceMemoryError: memory ran out twice.
        """

        def compute_alone() -> Result:
            with self.exclusive_inference():
                return self._compute_finite(compute)

        return retry_without_caches(self.device, compute_alone)

    def _compute_finite(self, compute: Callable[[], Result]) -> Result:
        """Return ``compute()``; if that is not finite in half precision, switch to float32 and compute it again."""
        in_float32 = self.precision == torch.float32
        try:
            return compute()
        except NotFiniteError as error:
            if in_float32:
                reason = "the network returns NaN or infinity: its weights are damaged"
                raise CheckpointError(self.checkpoint, reason) from error
        # after the except clause: inside it, the error still holds the tensors of the failed computation
        self._switch_to_float32()
        with self.exclusive_inference():
            return self._compute_finite(compute)

    def _switch_to_float32(self) -> None:
        logger.warning(
            "%s returned NaN or infinity in %s. It runs in float32 from now on, which is slower.",
            self.description,
            str(self.precision).removeprefix("torch."),
        )
        self.precision = torch.float32
        for network in self._networks:
            widen_while_running(network)
        for cache in (self.embeddings, self.tiles, self.phrases, self.position_tables):
            cache.clear()

    def network_at(self, resolution: int) -> Sam3Image:
        """Return the network for another input size. It shares the weights; only its position tables are new.

        Args:
            resolution: side of the square network input in pixels, a multiple of the architecture's ``patch_size``.

        Raises:
            ValueError: the resolution is not a multiple of ``patch_size``.
            DeviceMemoryError: the device ran out of memory.
        """
        if resolution == self.architecture.resolution:
            return self.network
        with self._lock:
            return retry_without_caches(
                self.device, lambda: self._resized.get(resolution, lambda: self._resize_network(resolution))
            )

    def _resize_network(self, resolution: int) -> Sam3Image:
        network = build_image_network(self.architecture.resized(resolution), self.device)
        narrow_weights(self.network)
        # only the rotary tables depend on the input size; sam3 computes them when it builds a network
        tensors = {
            name: computed if computed.is_complex() and computed.shape != tensor.shape else tensor
            for (name, tensor), computed in zip(
                self.network.state_dict().items(), network.state_dict().values(), strict=True
            )
        }
        with torch.inference_mode(False):  # as in load_model
            network.load_state_dict(tensors, assign=True)
            network.requires_grad_(False)
            network.to(self.device)
            if self.precision == torch.float32:
                widen_while_running(network)
        self._networks.add(network)
        return network


def load_model(checkpoint: Path, device: torch.device, precision: torch.dtype | None = None) -> Model:
    """Load a checkpoint of SAM 3 or SAM 3.1 in any of the supported layouts, recognized by its content.

    The file is memory-mapped: while it is in use, you may replace it with another file of the same name, but not write
    to it. Windows does not let you replace it either.

    Args:
        checkpoint: path of the file.
        device: where to run.
        precision: dtype of matrix products; by default the one that suits the device.

    Raises:
        CheckpointError: the file cannot be read, is no SAM 3 checkpoint, or one of its tensors does not fit, is missing
            or is unexpected.
        DeviceMemoryError: the device, or the machine, ran out of memory.
        RuntimeError: PyTorch cannot use the device; the message is PyTorch's own.
    """
    device = with_index(device)
    return retry_without_caches(device, lambda: _load_model(checkpoint, device, precision))


def _load_model(checkpoint: Path, device: torch.device, precision: torch.dtype | None) -> Model:
    recognized = read_checkpoint(checkpoint)
    architecture, description = recognized.architecture, recognized.description
    try:
        network = build_image_network(architecture, device)
    # each size is valid by itself, but their combination may not be
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise_device_error(error)
        raise CheckpointError(
            checkpoint, f"a network with its architecture cannot be built ({quote(error, 300)})"
        ) from error
    precision = precision or choose_precision(device)
    with torch.inference_mode(False):  # even if the host is in it: the tensors outlive this
        network.load_state_dict(fit_tensors(recognized, network.state_dict()), assign=True)
        network.requires_grad_(False)
        set_weight_precision(network, device, precision)
        logger.info("Loaded %s from %s.", description, checkpoint)
        return Model(checkpoint, network.to(device), architecture, description, device, precision)


def refuse_forked_process() -> None:
    """Raise RuntimeError in a forked process, where PyTorch's threads are gone and locks may never be released."""
    if os.getpid() != _PROCESS:
        raise RuntimeError(
            "SAM 3 was loaded before this process was forked, which PyTorch does not support. Start processes with "
            "'spawn' (multiprocessing.set_start_method), or fork before you use SAM 3."
        )
