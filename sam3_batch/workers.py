"""The steps that run on Ray workers: decode images, segment them, encode the rows of the dataset.

Each step takes a table and returns one with a row for each image.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow as pa

from sam3_engine import CheckpointError, ImageError
from sam3_engine.errors import message_of
from sam3_engine.image_files import read_image
from sam3_engine.prompt_strings import ChosenPrompt
from sam3_engine.settings import Settings
from sam3_engine.weights import find_checkpoint

from .folders import Folder
from .instances import PackedInstance, encode_png, encode_rle, paint_label_map, paint_overlay
from .schemas import DATASET_SCHEMA, DECODED_SCHEMA, PIXELS_FIELD, SEGMENTED_SCHEMA

if TYPE_CHECKING:
    from sam3_engine import Segment

_WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "weights"


def decode_images(paths: pa.Table, source: Folder) -> pa.Table:
    """Read and decode images.

    Args:
        paths: column ``path``, relative to the folder.
        source: folder of the images.

    Returns:
        The columns of ``DECODED_SCHEMA``: 8-bit RGB ``pixels`` with their ``width`` and ``height``, or an ``error``.
    """
    return pa.Table.from_pylist([_decode_image(path, source) for path in paths["path"].to_pylist()], DECODED_SCHEMA)


def _decode_image(path: str, source: Folder) -> dict[str, Any]:
    try:
        rgb = read_image(source.read(path))
    except PIL.UnidentifiedImageError:
        return {"path": path, "error": "unknown image format, or truncated file"}
    except Exception as error:  # decoders and file systems raise exceptions of any kind
        return {"path": path, "error": _one_line(error)}
    return {"path": path, "width": rgb.shape[1], "height": rgb.shape[0], "pixels": rgb.tobytes()}


def choose_prompt(settings: Settings) -> ChosenPrompt:
    """Return the prompt that the parameters describe.

    Raises:
        ValueError: they describe no prompt, or one that cannot be used.
    """
    prompt = settings.prompt()
    if prompt is None:
        raise ValueError("nothing to segment: set --input_text, --input_box, --input_point or --points_per_side")
    return prompt


def find_weights(settings: Settings) -> Path:
    """Return the path of the checkpoint, downloading it if it is not on this machine.

    Raises:
        ValueError: ``model_weight_file`` names no file.
        WeightsError: the weights are not on this machine and cannot be downloaded.
    """
    with settings.naming_weights():
        return find_checkpoint(settings.model_weight_file, _WEIGHTS_FOLDER)


class Segmenter:
    """A loaded model with a prompt, in its own Ray actor."""

    def __init__(self, settings: Settings, *, keep_pixels: bool) -> None:
        """Load the model.

        Args:
            settings: the plugin's parameters, with a prompt.
            keep_pixels: whether to keep the column ``pixels`` in the result.

        Raises:
            ValueError, WeightsError, CheckpointError: the weights cannot be found or used, or do not answer the prompt.
        """
        self._predictor = settings.open_predictor(_WEIGHTS_FOLDER)
        self._settings = settings
        self._prompt = choose_prompt(settings)
        with self._prompt.naming_arguments():
            self._predictor.check_answers(self._prompt.prompt)
        self._keep_pixels = keep_pixels

    def __call__(self, images: pa.Table) -> pa.Table:
        """Segment decoded images.

        Args:
            images: the columns of ``DECODED_SCHEMA``.

        Returns:
            The columns of ``SEGMENTED_SCHEMA``, and ``pixels`` if they are kept.

        Raises:
            CheckpointError: the checkpoint is damaged, so no image can be segmented.
        """
        pixels = images["pixels"]
        rows = images.drop_columns(["pixels"]).to_pylist()
        segmented = pa.Table.from_pylist(list(map(self._segment_row, rows, pixels)), SEGMENTED_SCHEMA)
        return segmented.append_column(PIXELS_FIELD, pixels) if self._keep_pixels else segmented

    def predict(self, image: np.ndarray) -> list[Segment]:
        """Run the network on an image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            ValueError: the prompt does not fit the image.
        """
        fitted = self._prompt.fit(image.shape[1], image.shape[0])
        with self._prompt.naming_arguments():
            return self._predictor.predict(image, fitted, self._settings.options)

    def _segment_row(self, row: dict[str, Any], pixels: pa.LargeBinaryScalar) -> dict[str, Any]:
        if row["error"] is not None:
            return row
        start = time.perf_counter()
        try:
            instances = _pack(self.predict(_as_image(pixels, row)))
        except CheckpointError:
            raise
        except Exception as error:  # such as a prompt outside this image, or not enough memory
            return {**row, "error": _one_line(error)}
        return {**row, "seconds": time.perf_counter() - start, "instances": instances}


def _pack(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    from sam3_engine.segments import bounding_box, masks_of

    return [
        vars(PackedInstance.pack(segment.label, segment.score, bounding_box(mask), mask))
        for segment, mask in zip(segments, masks_of(segments), strict=True)
    ]


def encode_rows(
    segmented: pa.Table,
    output: Folder,
    *,
    label_maps: bool,
    overlays: bool,
    classes: Sequence[str] | None = None,
    smallest_on_top: bool = False,
) -> pa.Table:
    """Encode the masks of segmented images, and write PNG files if requested.

    Args:
        segmented: the columns of ``SEGMENTED_SCHEMA``, and ``pixels`` for overlays.
        output: folder for the PNG files.
        label_maps: whether to write label maps to ``label_maps``.
        overlays: whether to write overlays to ``overlays``.
        classes: the labels that label maps number; None: they number the instances.
        smallest_on_top: in label maps, the smaller one of overlapping instances wins.

    Returns:
        The columns of ``DATASET_SCHEMA``.

    Raises:
        OSError: a PNG file cannot be written.
    """
    rows = []
    for index, row in enumerate(segmented.select(SEGMENTED_SCHEMA.names).to_pylist()):
        if row["error"] is not None:
            rows.append({**row, "status": "error"})
            continue
        height, width = row["height"], row["width"]
        instances = [PackedInstance(**instance) for instance in row["instances"]]
        if label_maps:
            numbers = paint_label_map(instances, height, width, classes, smallest_on_top=smallest_on_top)
            output.write(f"label_maps/{row['path']}.png", encode_png(numbers))
        if overlays:
            image = _as_image(segmented["pixels"][index], row)
            output.write(f"overlays/{row['path']}.png", encode_png(paint_overlay(instances, image)))
        encoded = [
            {**vars(instance), "mask": encode_rle(instance, height, width)}  # "bits" is not in the schema
            for instance in instances
        ]
        rows.append({**row, "status": "ok", "instances": encoded})
    return pa.Table.from_pylist(rows, DATASET_SCHEMA)


def _as_image(pixels: pa.LargeBinaryScalar, row: Mapping[str, Any]) -> np.ndarray:
    """View pixels as an image (H, W, 3) uint8 RGB, without copying them."""
    return np.frombuffer(pixels.as_buffer(), np.uint8).reshape(row["height"], row["width"], 3)


def _one_line(error: BaseException) -> str:
    """Return an error's message on one line, after the name of its class unless the message is written for users."""
    text = " ".join(message_of(error).split())
    return text if isinstance(error, ImageError) else f"{type(error).__name__}: {text}"
