"""Convert images of any common kind to 8-bit RGB."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from .errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

_MODES_WITH_PLAIN_VALUES = ("L", "RGB", "I;16", "I", "F")


def pixels_of(image: PIL.Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image for :func:`as_rgb8`; palettes and other color spaces become RGB."""
    return np.asarray(image if image.mode in _MODES_WITH_PLAIN_VALUES else image.convert("RGB"))


def as_rgb8(image: np.ndarray) -> np.ndarray:
    """Convert an image to 8-bit RGB.

    Grayscale images get three equal channels, and an alpha channel is dropped. The scale depends on the dtype:

    - ``uint8`` and ``bool`` go from black to white;
    - other integers have the smallest even bit depth (8, 10, 12, 14, 16, ...) that holds the brightest value, because
      cameras and scanners store 10 to 14 bits in 16-bit files;
    - floats from 0 to 1 and from 0 to 255 keep that scale;
    - anything else (negative values, floats above 255) is stretched from its minimum to its maximum.

    Args:
        image: (H, W) or (H, W, 1) grayscale, (H, W, 2) grayscale and alpha, (H, W, 3) RGB or (H, W, 4) RGBA; any real
            dtype.

    Returns:
        (H, W, 3) uint8, C-contiguous. It may share memory with ``image``.

    Raises:
        ImageError: another shape, no pixels, a dtype that is not a real number, NaN or infinity.
    """
    image = np.asarray(image)
    shape = image.shape
    if image.ndim == 2:
        image = image[:, :, np.newaxis]
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4):
        raise ImageError(
            f"The image has shape {shape}: expected (height, width), or (height, width, channels) with 1 to 4 channels."
        )
    if 0 in shape:
        raise ImageError(f"The image has shape {shape}: it has no pixels; expected at least one.")

    has_alpha = image.shape[2] in (2, 4)
    colours = _as_uint8(image[:, :, :-1] if has_alpha else image)
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))


def content_digest(image: np.ndarray) -> bytes:
    """Return a hash of an image's pixels and shape.

    Args:
        image: (H, W, 3) uint8, C-contiguous, as :func:`as_rgb8` returns it.
    """
    return hashlib.blake2b(image.data, digest_size=16, key=repr(image.shape).encode()).digest()


def _as_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    if image.dtype.kind not in "uif":
        raise ImageError(f"The image has dtype {image.dtype}: expected integers, floats or booleans.")

    # min and max propagate NaN and infinity, so checking them checks every pixel
    darkest, brightest = image.min().item(), image.max().item()
    if not np.isfinite(darkest) or not np.isfinite(brightest):
        raise ImageError("The image contains NaN or infinity: expected finite values.")
    if darkest >= 0 and image.dtype.kind in "ui":
        bit_depth = max(8, brightest.bit_length() + brightest.bit_length() % 2)
        darkest, brightest = 0, 2**bit_depth - 1
    elif darkest >= 0 and brightest <= 255:
        darkest, brightest = 0, 1 if brightest <= 1 else 255
    return _stretched(image, darkest, brightest)


def _stretched(image: np.ndarray, darkest: float, brightest: float) -> np.ndarray:
    """Map ``darkest`` to 0 and ``brightest`` to 255, exactly for the whole range of any number type."""
    if brightest == darkest:
        return np.zeros(image.shape, np.uint8)
    if image.dtype.kind in "ui":
        if darkest < 0:  # modulo its range, the difference to the minimum fits the unsigned type of the same size
            unsigned = np.dtype(f"u{image.dtype.itemsize}").type
            image = image.astype(unsigned) - unsigned(darkest % 2 ** (8 * image.dtype.itemsize))
        difference = image.astype(np.float32)
        return np.rint(difference * np.float32(255 / (brightest - darkest))).astype(np.uint8)
    # scale by a power of two, which is exact: floats near the ends of their range would overflow or underflow
    image = image.astype(np.float32) if image.dtype.itemsize < 4 else image
    kind = image.dtype.newbyteorder("=").type
    exponent = int(np.frexp(kind(max(abs(darkest), abs(brightest))))[1])
    low, high = np.ldexp(kind(darkest), -exponent), np.ldexp(kind(brightest), -exponent)
    return np.rint((np.ldexp(image, -exponent) - low) * (kind(255) / (high - low))).astype(np.uint8)
