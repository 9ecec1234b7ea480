"""The types of the outputs: Ikomia's own, but saved without loss and overwriting, and drawn in the objects' colors."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from ikomia import core, dataprocess

from .infer_segment_anything_3_saving import AutoSaved
from .sam3_engine.images import as_rgb8

_TINT = 0.7  # share of the object's color in Ikomia's overlays


class _SavedAsJson(AutoSaved):
    """A mixin for outputs with masks: they are stored as PNG. As JPEG, Ikomia's default, pixel values would change."""

    def to_json(self, options: Sequence[str] = ("json_format", "compact")) -> str:
        """Return the output as JSON.

        Args:
            options: pairs of a name and a value, such as ``["json_format", "indented"]``. ``image_format`` has no
                effect: masks are stored as PNG.
        """
        pairs = zip(options[::2], options[1::2], strict=False)
        others = [item for name, value in pairs if name != "image_format" for item in (name, value)]
        return super().to_json([*others, "image_format", "png"])  # type: ignore[misc]  # of the output

    def file_content(self) -> bytes:
        """Return the JSON, as Ikomia writes it to files."""
        return self.to_json().encode()


class MaskOutput(_SavedAsJson, dataprocess.CSemanticSegmentationIO):
    """A mask."""

    def __init__(self) -> None:
        dataprocess.CSemanticSegmentationIO.__init__(self)


class ObjectsOutput(_SavedAsJson, dataprocess.CInstanceSegmentationIO):
    """All objects of a run."""

    def __init__(self) -> None:
        dataprocess.CInstanceSegmentationIO.__init__(self)


class ImageOutput(AutoSaved, dataprocess.CImageIO):
    """The image. Its overlays tint each object in its own color.

    Ikomia's overlay tints all objects of a class in the color of the last one, and adds up the numbers of classes where
    objects overlap, which gives the color of a third.
    """

    def __init__(self) -> None:
        dataprocess.CImageIO.__init__(self, core.IODataType.IMAGE)

    def get_image_with_mask(self, io: core.CWorkflowTaskIO) -> np.ndarray:
        """Return (height, width, 3) uint8: the image, tinted by a mask or by objects."""
        if not isinstance(io, dataprocess.CInstanceSegmentationIO):
            return super().get_image_with_mask(io)
        return _tinted(as_rgb8(self.get_image()), io)

    def get_image_with_mask_and_graphics(self, io: core.CWorkflowTaskIO) -> np.ndarray:
        """Return (height, width, 3) uint8: the image, tinted by a mask or by objects, with outlines or boxes."""
        if not isinstance(io, dataprocess.CInstanceSegmentationIO):
            return super().get_image_with_mask_and_graphics(io)
        image = dataprocess.CImageIO(core.IODataType.IMAGE, as_rgb8(self.get_image()), "")
        return _tinted(image.get_image_with_graphics(io.get_graphics_io()), io)

    def file_content(self) -> bytes:
        """Return the image as PNG."""
        image = self.get_image()
        if image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".png", image)[1].tobytes()


def _tinted(image: np.ndarray, objects: dataprocess.CInstanceSegmentationIO) -> np.ndarray:
    """Return an 8-bit RGB image with all objects tinted; where they overlap, as in masks, the higher score wins."""
    colors = image.copy()
    covered = np.zeros(image.shape[:2], bool)
    worst_first = sorted(objects.get_objects(), key=lambda found: (found.confidence, -found.id))
    for found in worst_first:
        inside = found.mask > 0
        colors[inside] = found.color[:3]
        covered |= inside
    tinted = cv2.addWeighted(image, 1 - _TINT, colors, _TINT, 0)
    return np.where(covered[:, :, np.newaxis], tinted, image)
