"""Read image files at their full bit depth."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ImageError
from .images import as_rgb8, has_reduced_depth, jpeg2000_depth, pixels_of

if TYPE_CHECKING:
    import tifffile

_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _SEPARATED = 0, 1, 2, 3, 5  # photometric interpretations of TIFF
_UNSIGNED = 1  # sample format of TIFF
_CMYK = 1  # ink set of TIFF
_ASSOCIATED_ALPHA = 1  # extra sample of TIFF
_ORIENTATION_TAG = 274


def read_image(file: str | os.PathLike[str] | bytes) -> np.ndarray:
    """Read an image file as 8-bit RGB; its first page, if it has several.

    The image is turned as its orientation tag says. Deep TIFF files are read with tifffile, because Pillow cuts or
    inverts some of them; some compressions need the package imagecodecs as well. All other files are read with Pillow.
    Of PNG files with 16 bits per color channel it keeps the 8 upper ones, and it misreads deep JPEG 2000 files with
    color, so these are read with imagecodecs if it is installed. If it is not, such JPEG 2000 files are refused, and
    such PNG files if their upper bits hold next to nothing.

    Args:
        file: its path, or its content.

    Returns:
        (H, W, 3) uint8. See :func:`~.images.as_rgb8` for the scale of values that are not 8-bit.

    Raises:
        ImageError: the image cannot be decoded at its depth, or see :func:`~.images.as_rgb8`.
        OSError: the file cannot be read, is truncated, or is not an image (``PIL.UnidentifiedImageError``).
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    deep = _read_deep_tiff(content) if content.startswith(_TIFF_SIGNATURES) else None
    if deep is not None:
        return deep
    import PIL.Image

    try:
        return _read_with_pillow(content)
    except (OSError, ImageError, PIL.Image.DecompressionBombError):
        raise
    except Exception as error:  # Pillow raises exceptions of any kind if a file is damaged
        raise OSError(f"The image file is damaged ({error}).") from error


def _read_with_pillow(content: bytes) -> np.ndarray:
    import PIL.Image
    import PIL.ImageOps

    with PIL.Image.open(io.BytesIO(content)) as image:
        if has_reduced_depth(image):
            deep = _decode_deep(content, image.format)
            if deep is not None:
                return as_rgb8(_oriented(deep, image.getexif().get(_ORIENTATION_TAG, 1)))
            pixels_of(image)  # refuses it if too little is left
        return as_rgb8(pixels_of(PIL.ImageOps.exif_transpose(image)))


def _decode_deep(content: bytes, kind: str | None) -> np.ndarray | None:
    """Return the pixels of a deep PNG or JPEG 2000 file; None for others, and without the package that decodes them."""
    if kind not in ("PNG", "JPEG2000"):
        return None
    try:
        import imagecodecs
    except ImportError:
        return None
    try:
        values = imagecodecs.png_decode(content) if kind == "PNG" else imagecodecs.jpeg2k_decode(content)
    except Exception as error:
        raise OSError(f"The {kind} file is damaged ({error}).") from error
    depth = jpeg2000_depth(content) if kind == "JPEG2000" else 16
    return values if depth >= 16 else _from_depth(values, depth)


def _from_depth(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale unsigned integers whose bit depth the file states to uint8."""
    return np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)


def _read_deep_tiff(content: bytes) -> np.ndarray | None:
    """Read a TIFF file that Pillow does not read at its depth; return None if Pillow does, or if it has no header."""
    import tifffile

    try:
        page = tifffile.TiffFile(io.BytesIO(content)).pages.first
        is_deep = page.bitspersample > 8 or page.sampleformat != _UNSIGNED
        is_unusual = page.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK) and page.samplesperpixel > 2
        is_complete = math.prod(page.chunked) <= len(page.dataoffsets)
        pixels = int(page.imagewidth * page.imagelength)
    except Exception:  # tifffile raises exceptions of any kind if a file is damaged; Pillow says what is wrong
        return None
    if not is_deep and not is_unusual:
        return None
    _check_size(pixels)
    if not is_complete:  # tifffile would leave the rest black
        raise OSError("The TIFF file is damaged (it lacks pixels).")
    return _read_page(page, content)


def _read_page(page: tifffile.TiffPage, content: bytes) -> np.ndarray:
    values = _decode(page, content)
    is_planar = page.planarconfig == 2 and page.samplesperpixel > 1
    values = np.moveaxis(values, 0, -1) if is_planar else values
    if values.ndim <= 3 and values.shape[:2] != (page.imagelength, page.imagewidth):
        raise OSError("The TIFF file is damaged (it lacks pixels).")
    return np.ascontiguousarray(_oriented(_colors(page, values), page.tags.valueof("Orientation", 1)))


def _colors(page: tifffile.TiffPage, values: np.ndarray) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB that the values of a page (H, W) or (H, W, channels) stand for."""
    is_unsigned = page.sampleformat == _UNSIGNED
    if page.photometric in (_MIN_IS_BLACK, _RGB) and _ASSOCIATED_ALPHA in page.extrasamples and values.ndim == 3:
        values = _divided_by_alpha(values, page)
    has_inks = page.photometric == _SEPARATED and page.tags.valueof("InkSet", _CMYK) == _CMYK
    is_cmyk = has_inks and is_unsigned and values.shape[2:] >= (4,)
    colors = page.colormap if page.photometric == _PALETTE and is_unsigned and values.ndim == 2 else None
    if colors is not None and colors.shape == (3, 2**page.bitspersample):
        return np.rint(np.moveaxis(colors[:, values], 0, -1) / 257).astype(np.uint8)
    if is_cmyk or (is_unsigned and page.bitspersample < 16):  # the file states the scale
        values = _from_depth(values, page.bitspersample)
    if page.photometric == _MIN_IS_BLACK or values.ndim > 3:  # as_rgb8 refuses volumes
        return as_rgb8(values)
    if page.photometric == _MIN_IS_WHITE:
        return 255 - as_rgb8(values)
    if page.photometric == _RGB:
        return as_rgb8(values if values.ndim == 2 else values[:, :, :3])
    if is_cmyk:
        import PIL.Image

        size = values.shape[1], values.shape[0]
        return np.asarray(PIL.Image.frombytes("CMYK", size, values[:, :, :4].tobytes()).convert("RGB"))
    raise ImageError(
        f"The TIFF file has {page.bitspersample} bits per channel and the color space "
        f"{getattr(page.photometric, 'name', page.photometric)}: convert it to RGB."
    )


def _divided_by_alpha(values: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """Return the colors of an image (H, W, channels) that were multiplied by its alpha, as Pillow does for 8 bits."""
    channel = values.shape[2] - len(page.extrasamples) + page.extrasamples.index(_ASSOCIATED_ALPHA)
    opaque = 1.0 if values.dtype.kind == "f" else float(2**page.bitspersample - 1)
    alpha = values[:, :, channel : channel + 1].astype(np.float64)
    alpha[alpha <= 0] = opaque  # no color is left to restore
    colors = values[:, :, : values.shape[2] - len(page.extrasamples)] * (opaque / alpha)
    return (
        colors.astype(values.dtype)
        if values.dtype.kind == "f"
        else np.rint(colors.clip(0, opaque)).astype(values.dtype)
    )


def _check_size(pixels: int) -> None:
    """Refuse images as large as those that Pillow refuses, which may be attacks."""
    import PIL.Image

    if PIL.Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * PIL.Image.MAX_IMAGE_PIXELS:
        raise ImageError(f"The image has {pixels} pixels: expected at most {2 * PIL.Image.MAX_IMAGE_PIXELS}.")


def _decode(page: tifffile.TiffPage, content: bytes) -> np.ndarray:
    """Return the values as stored; with Pillow if tifffile lacks the compression and Pillow keeps the values."""
    import tifffile

    try:
        return page.asarray()
    except Exception as error:  # of any kind, as above
        if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
            raise OSError(f"The TIFF file is damaged ({error}).") from error
        values = _decode_with_pillow(content)
        if values is None:
            raise ImageError(
                f"The TIFF file has {page.bitspersample} bits per channel and the compression "
                f"{tifffile.COMPRESSION(page.compression).name}: to read it, install the package imagecodecs."
            ) from error
        return values


def _decode_with_pillow(content: bytes) -> np.ndarray | None:
    """Return the values of a file as stored; None if Pillow cannot read them, or not at their depth."""
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            return np.asarray(image) if image.mode == "F" or image.mode.startswith("I;16") else None
    except OSError:
        return None


def _oriented(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image (H, W, ...) as its orientation tag, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values
