"""Images and prompts in, segments out.

Importing this module imports torch and sam3.
"""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch

from .architecture import Architecture
from .click_head import ClickHead
from .contexts import importing_sam3
from .detector import Detector
from .devices import choose_device, cuda_present
from .embedding import CACHED_DETECTIONS, Detections, ImageEmbedding
from .embedding_files import EmbeddingFiles
from .errors import CheckpointError, PromptError
from .everything import find_everything
from .fitting import FittedPrompt, fit_prompt, warn_of_fractions
from .images import as_rgb8, content_digest, pixels_of
from .internals import position_table
from .lru_cache import LRUCache
from .model import Model, NotFiniteError
from .options import DEFAULTS, Options, check_size_percent
from .prompts import ConceptPrompt, EverythingPrompt, GeometricPrompt, Prompt, in_brackets
from .segments import Segment
from .selection import select_instances
from .shared_models import is_shared, shared_model
from .weights import find_checkpoint
from .windows import ImageWindows

with importing_sam3():
    from sam3.model.sam3_image_processor import Sam3Processor
    from torchvision.transforms.v2 import functional

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_MAX_INPUT_SIZE = 4096
# PyTorch's antialiased resize on CUDA (UpSampleBilinear2d.cu) holds its weights for a block of pixels in shared memory:
# 4 * (32 * (2 * ceil(width / size) + 1) + 33 * (2 * ceil(height / size) + 1)) bytes. It refuses to use more than the
# 48 KB that every GPU has, from a sum of both ratios of 184 on. At 128 it takes at most 34,308 bytes.
_MAX_SHRINKING_ON_CUDA = 128


def _do_nothing() -> None:
    pass


def open_predictor(
    weights: str | os.PathLike[str] = "",
    *,
    cuda: bool | None = None,
    device: torch.device | None = None,
    input_size: int = 0,
    weights_folder: Path | None = None,
    embedding_cache_folder: str | os.PathLike[str] = "",
    replaces: Predictor | None = None,
) -> Predictor:
    """Find the weights and load them, unless this process already has the same model loaded.

    Args:
        weights: path of a checkpoint, or its name on Hugging Face: ``facebook/sam3``, ``facebook/sam3.1`` or
            ``owner/repository/file``. Empty: ``facebook/sam3``. Downloaded if it is not on this machine.
        cuda: run on CUDA; None: only if there is a GPU. If no GPU is usable, the predictor warns and runs on the CPU.
        device: run on this device, whatever ``cuda`` says.
        input_size: side of the network's square input in pixels, 0 to 4096, see :class:`Predictor`.
        weights_folder: a folder that may contain ``sam3.pt``; searched before the Hugging Face cache.
        embedding_cache_folder: a folder in which image embeddings are kept for other processes, see
            :class:`~.embedding_files.EmbeddingFiles`. Empty: none are.
        replaces: a predictor that you no longer need. It is returned if it is what you ask for; otherwise its model is
            released before another is loaded, so that memory never holds both.

    Raises:
        ValueError: ``weights`` does not name a file, or ``input_size`` is out of range.
        WeightsError: the published weights are not on this machine and cannot be downloaded.
        CheckpointError: the file is not a complete and intact SAM 3 checkpoint.
    """
    if not 0 <= input_size <= _MAX_INPUT_SIZE:
        raise ValueError(f"input_size = {input_size!r}: expected a number from 0 to {_MAX_INPUT_SIZE}.")
    device = device or choose_device(cuda_present() if cuda is None else cuda)
    checkpoint = find_checkpoint(os.fspath(weights), weights_folder)
    if replaces is not None and not replaces.closed:
        if is_shared(replaces.model, checkpoint, device):
            wanted = (input_size, os.fspath(embedding_cache_folder))
            if (replaces.input_size, replaces.embedding_cache_folder) == wanted:
                return replaces
            return Predictor(replaces.model, input_size, embedding_cache_folder)
        replaces.close()
    return Predictor(shared_model(checkpoint, device), input_size, embedding_cache_folder)


class Predictor:
    """Segment images with a loaded model. Safe in several threads.

    :meth:`predict` answers one prompt. For several prompts on one image, :meth:`encode_image` runs the slow part once
    and :meth:`segment` answers each prompt.

    Args:
        model: see :func:`~.shared_models.shared_model`.
        input_size: side of the network's square input in pixels, rounded to a multiple of the patch size; 0 for the
            checkpoint's own. A smaller one is faster and sees less detail.
        embedding_cache_folder: a folder in which image embeddings are kept for other processes; empty: none are.

    Attributes:
        model, input_size, embedding_cache_folder: as given.
        resolution: the side of the network's input, in pixels.
        closed: whether :meth:`close` was called.
    """

    closed = True  # until the constructor has succeeded

    def __init__(self, model: Model, input_size: int = 0, embedding_cache_folder: str | os.PathLike[str] = "") -> None:
        self.model = model
        self.input_size = input_size
        self.embedding_cache_folder = os.fspath(embedding_cache_folder)
        self.resolution = _round_to_patches(model.architecture, input_size)
        network = model.network_at(self.resolution)
        self._processor = model.infer(lambda: Sam3Processor(network, resolution=self.resolution, device=model.device))
        parts = model.architecture
        self._detector = Detector(model, network, self._processor) if parts.detector else None
        self._click_head = ClickHead(model, network, self.resolution) if parts.click_head else None
        folder = Path(os.path.expanduser(self.embedding_cache_folder))
        self._files = EmbeddingFiles(folder, model, self.resolution) if self.embedding_cache_folder else None
        self.closed = False

    def close(self) -> None:
        """Release the model. The predictor cannot be used afterwards; do not close it while a thread uses it.

        If nobody else uses the model, its memory is free afterwards, on a GPU for other programs too.
        """
        if not self.closed:
            self.closed = True
            # the model last: when it goes, it gives back the GPU memory of its networks, which the others hold as well
            del self._processor, self._detector, self._click_head, self._files
            del self.model

    def __del__(self) -> None:
        self.close()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise RuntimeError("This predictor is closed: open another one.")

    def predict(
        self,
        image: np.ndarray | PIL.Image.Image,
        prompt: Prompt | FittedPrompt,
        options: Options = DEFAULTS,
        *,
        on_encoded: Callable[[], None] = _do_nothing,
        on_step: Callable[[], None] = _do_nothing,
        on_row: Callable[[], None] = _do_nothing,
    ) -> list[Segment]:
        """Segment what a prompt names, shows or outlines in an image, or everything.

        The prompt is checked against the image before the image encoder runs. The embeddings of the last images are
        cached.

        Args:
            image: (H, W) or (H, W, channels) array as :func:`~.images.as_rgb8` takes it, or a PIL image.
            prompt: in pixels of ``image``.
            options: thresholds, number of candidates, image size, tiles.
            on_encoded: called when the image is encoded; with tiles, but not for points and boxes, when each tile and
                the image is.
            on_step: called before the image encoder, then as in :meth:`segment`. Raise an exception in it to stop.
            on_row: called after each row of points when everything is segmented; with tiles, in each tile.

        Returns:
            See :meth:`segment`.

        Raises:
            PromptError: the prompt does not fit the image, or the checkpoint lacks the head that answers it.
            ImageError: the image cannot be segmented.
            CheckpointError: the network returns NaN or infinity.
            DeviceMemoryError: the device ran out of memory.
        """
        self._refuse_if_closed()
        rgb = _as_rgb8(image)
        fitted = self._fit(prompt, rgb.shape[1], rgb.shape[0])
        if options.tile_size and options.tile_size < max(rgb.shape[:2]):
            windows = ImageWindows(self, rgb, options, on_encoded, on_step)
            if isinstance(fitted.prompt, GeometricPrompt):
                return windows.outline(fitted.prompt)
            if isinstance(fitted.prompt, EverythingPrompt):
                assert self._click_head is not None
                return windows.find_everything(self._click_head, fitted.prompt, on_row)
            assert self._detector is not None
            return windows.find(self._detector, fitted.prompt)
        on_step()
        return self.answer(
            lambda: self.encode_image(rgb, options.size_percent),
            lambda embedding: self.segment(embedding, fitted, options, on_step=on_step, on_row=on_row),
            on_encoded,
        )

    def encode_image(self, image: np.ndarray | PIL.Image.Image, size_percent: int = 100) -> ImageEmbedding:
        """Run the image encoder, which takes most of the time.

        The last two embeddings are cached by the content of their images, for everyone who uses the model.

        Args:
            image: (H, W) or (H, W, channels) array as :func:`~.images.as_rgb8` takes it, or a PIL image.
            size_percent: 1..100, shrink the image to this size first.

        Returns:
            The embedding, for prompts in pixels of ``image`` whatever ``size_percent`` is.

        Raises:
            ImageError: the image cannot be segmented.
            ValueError: ``size_percent`` is out of range.
            DeviceMemoryError: the device ran out of memory.
        """
        self._refuse_if_closed()
        check_size_percent(size_percent)
        rgb = _as_rgb8(image).copy()  # the caller may write to the image while this waits for the model
        key = (content_digest(rgb), size_percent, self.resolution)
        return self.model.infer(lambda: self.model.embeddings.get(key, lambda: self._encode(rgb, size_percent)))

    def segment(
        self,
        embedding: ImageEmbedding,
        prompt: Prompt | FittedPrompt,
        options: Options = DEFAULTS,
        *,
        on_step: Callable[[], None] = _do_nothing,
        on_row: Callable[[], None] = _do_nothing,
    ) -> list[Segment]:
        """Segment what a prompt names, shows or outlines, or everything.

        Args:
            embedding: of :meth:`encode_image` by the same model at the same input size.
            prompt: in pixels of the source image.
            options: thresholds and number of candidates; ``size_percent`` and ``tile_size`` are ignored, because they
                concern the image.
            on_step: called before each phrase, or before each pass of up to 16 boxes or 64 points of a grid. Raise an
                exception in it to stop: the predictor stays usable, and the answers so far stay cached. Keep it short,
                because other threads wait for the model meanwhile.
            on_row: called after each row of points when everything is segmented.

        Returns:
            Concepts: the instances, phrase by phrase, each by descending score. Points and boxes: one segment per
            object in the order of the boxes, or three candidates each, by descending score. Everything: what was found,
            by descending score.

        Raises:
            PromptError: the prompt does not fit the image, or the checkpoint lacks the head that answers it.
            ValueError: the embedding was made by another model, or at another input size; or it was made in half
                precision and contains NaN or infinity.
            CheckpointError: the network returns NaN or infinity.
            DeviceMemoryError: the device ran out of memory.
        """
        self._refuse_if_closed()
        if embedding.model() is not self.model:
            raise ValueError("The embedding was made by another model.")
        if embedding.resolution != self.resolution:
            raise ValueError(
                f"The embedding was made at an input size of {embedding.resolution}; this predictor's is "
                f"{self.resolution}."
            )
        fitted = self._fit(prompt, embedding.width, embedding.height)
        if isinstance(fitted.prompt, EverythingPrompt):
            assert self._click_head is not None
            # one pass at a time: other threads need not wait for all of them
            run = functools.partial(self.ask, embedding)
            found = find_everything(self._click_head, embedding, fitted.prompt, options, run, on_step, on_row)
            return select_instances(found, fitted.prompt, options)
        head = self._detector if isinstance(fitted.prompt, ConceptPrompt) else self._click_head
        assert head is not None
        return self.ask(embedding, lambda: head.segment(embedding, fitted, options, on_step))

    # --- for windows.py

    def encode_part(self, rgb: np.ndarray, key: Hashable, size_percent: int) -> ImageEmbedding:
        """Run the image encoder on a part of an image; as many embeddings are cached as the budget has room for.

        Args:
            rgb: (H, W, 3) uint8.
            key: identifies the embedding.
            size_percent: 1..100, shrink the part to this size first.
        """
        return self.model.infer(lambda: self.model.tiles.get(key, lambda: self._encode(rgb, size_percent)))

    def answer(
        self,
        encode: Callable[[], ImageEmbedding],
        ask: Callable[[ImageEmbedding], Result],
        on_encoded: Callable[[], None] = _do_nothing,
    ) -> Result:
        """Return ``ask(encode())``; if half precision has spoilt the embedding, encode again, then in float32.

        Args:
            encode: encodes an image.
            ask: runs a head on the embedding in :meth:`ask`.
            on_encoded: called once, when the image is encoded.

        Raises:
            CheckpointError: the network returns NaN or infinity in float32.
        """
        embedding = encode()
        on_encoded()
        try:
            return ask(embedding)
        except _NotFiniteEmbeddingError:
            pass
        # after the except clause: inside it, the error still holds the tensors of the failed computation
        return ask(encode())

    def ask(self, embedding: ImageEmbedding, compute: Callable[[], Result]) -> Result:
        """Return ``compute()``, which runs a head on an embedding.

        Raises:
            ValueError: the embedding was made in half precision and contains NaN or infinity.
            CheckpointError: the network returns NaN or infinity in float32.
        """
        try:
            return self.model.infer(compute)
        except CheckpointError as error:
            # only now: to look for NaN after encoding would make every image wait for the GPU
            if embedding.precision == torch.float32 or self.model.infer(embedding.is_finite):
                raise
            raise _NotFiniteEmbeddingError(embedding.precision) from error

    def check_answers(self, prompt: Prompt) -> None:
        """Check that the model has the head that answers a prompt.

        Raises:
            PromptError: the checkpoint lacks it.
        """
        self._refuse_if_closed()
        is_concept = isinstance(prompt, ConceptPrompt)
        architecture = self.model.architecture
        if architecture.detector if is_concept else architecture.click_head:
            return
        argument, value = _given(prompt)
        answered = "points and boxes" if is_concept else "phrases and example boxes (boxes with labels)"
        raise PromptError(
            argument,
            value,
            f"{self.model.checkpoint.name} is a {self.model.description}. It answers {answered}; for other prompts, "
            "use a complete checkpoint such as sam3.pt",
        )

    def _fit(self, prompt: Prompt | FittedPrompt, width: int, height: int) -> FittedPrompt:
        """Fit a prompt to an image, if the model has the head that answers it."""
        fitted = fit_prompt(prompt, width, height)
        if not isinstance(prompt, FittedPrompt):
            warn_of_fractions(prompt, width, height)
        self.check_answers(fitted.prompt if isinstance(prompt, FittedPrompt) else prompt)
        return fitted

    def _encode(self, rgb: np.ndarray, size_percent: int) -> ImageEmbedding:
        """Return the embedding of an image (H, W, 3) uint8, from a file if there is one."""
        if self._files is None:
            return self._run_encoder(rgb, size_percent)
        key = (content_digest(rgb), size_percent)
        features = self._files.load(key)
        if features is not None:
            return self._as_embedding(features, rgb, self.model.precision)
        embedding = self._run_encoder(rgb, size_percent)
        self._files.save(key, embedding.features)
        return embedding

    def _run_encoder(self, rgb: np.ndarray, size_percent: int) -> ImageEmbedding:
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        if size_percent < 100:
            shrunk = [max(1, round(side * size_percent / 100)) for side in (height, width)]
            pixels = functional.resize(pixels, shrunk, antialias=True)
        if self.model.device.type == "cuda" and not _can_shrink_on_cuda(pixels, self.resolution):
            pixels = functional.resize(pixels, [self.resolution] * 2, antialias=True)  # on the CPU
        precision = self.model.precision
        embedding = self._as_embedding(self._processor.set_image(pixels)["backbone_out"], rgb, precision)
        # bfloat16 has the range of float32, and to check waits for the GPU
        if precision == torch.float16 and not embedding.is_finite():
            raise NotFiniteError
        return embedding

    def _as_embedding(self, features: dict[str, Any], rgb: np.ndarray, precision: torch.dtype) -> ImageEmbedding:
        """Return features as an embedding.

        Args:
            features: as the package's image encoder returns them; position tables may be missing.
            rgb: the image (H, W, 3).
            precision: dtype of the matrix products that computed them.
        """
        pyramids = [features] if self.model.architecture.detector else []
        if self.model.architecture.click_head:
            pyramids.append(features["sam2_backbone_out"])
        # the package copies the same tables for each image and head: they are larger than the features themselves
        tables = self.model.position_tables.get(self.resolution, lambda: self._position_tables(pyramids[0]))
        for pyramid in pyramids:
            pyramid["vision_pos_enc"] = tables
        detections: LRUCache[Detections] = LRUCache(CACHED_DETECTIONS, self.model.budget)
        height, width = rgb.shape[:2]
        return ImageEmbedding(features, width, height, self.resolution, precision, weakref.ref(self.model), detections)

    def _position_tables(self, pyramid: Mapping[str, Any]) -> list[torch.Tensor]:
        if "vision_pos_enc" in pyramid:
            return pyramid["vision_pos_enc"]
        return [position_table(self.model.network, feature_map) for feature_map in pyramid["backbone_fpn"]]


class _NotFiniteEmbeddingError(ValueError):
    """An embedding that contains NaN or infinity, because the image encoder ran in half precision."""

    def __init__(self, precision: torch.dtype) -> None:
        name = str(precision).removeprefix("torch.")
        super().__init__(
            f"The embedding was made in {name} and contains NaN or infinity. Encode the image again: the model runs in "
            "float32 from now on."
        )


def _given(prompt: Prompt) -> tuple[str, object]:
    """Return the argument that makes a prompt, and its value as users type it."""
    if isinstance(prompt, EverythingPrompt):
        return "points_per_side", prompt.points_per_side
    if isinstance(prompt, ConceptPrompt) and prompt.phrases:
        return "phrases", prompt.phrases[0] if len(prompt.phrases) == 1 else list(prompt.phrases)
    if isinstance(prompt, ConceptPrompt) or prompt.boxes:
        return "boxes", f"[{', '.join(map(in_brackets, prompt.boxes))}]"
    return "points", f"[{', '.join(map(in_brackets, prompt.points))}]"


def _as_rgb8(image: np.ndarray | PIL.Image.Image) -> np.ndarray:
    return as_rgb8(pixels_of(image) if isinstance(image, PIL.Image.Image) else image)


def _can_shrink_on_cuda(pixels: torch.Tensor, resolution: int) -> bool:
    """Return whether CUDA can shrink an image (channels, h, w) to a square of ``resolution`` pixels."""
    return sum(pixels.shape[1:]) <= _MAX_SHRINKING_ON_CUDA * resolution


def _round_to_patches(architecture: Architecture, input_size: int) -> int:
    if input_size == 0:
        return architecture.resolution
    patch_size = architecture.patch_size
    resolution = patch_size * max(1, round(input_size / patch_size))
    if resolution != input_size:
        logger.warning(
            "An input size of %d is rounded to %d, a multiple of the patch size %d.", input_size, resolution, patch_size
        )
    return resolution
