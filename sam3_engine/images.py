"""Convert images of any common kind to 8-bit RGB."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

_DARK = 0.1  # values below this share of a scale show nothing
_OVERSHOOT = 0.1  # how far resizing and highlights may exceed a scale, as a share of it
_INVISIBLE = 0.02  # an image whose values are below this share of a scale is black on it
_OVERSHOT = 0.05  # share of integers that may overshoot a bit depth
_CONTENT = 0.01  # share of values that are part of the picture, more than lamps
_HIGHLIGHTS = 0.1  # share of values from 0 to 1 that may be highlights above 255
_OUTLIERS = 0.001  # share of values, at each end, that may be defects
_SAMPLED_PIXELS = 2**20  # enough to decide on a scale

_MODES_WITH_PLAIN_VALUES = ("L", "RGB", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_JPEG2000_CODESTREAM = b"\xff\x4f\xff\x51"
_HEADER_BYTES = 2**20  # more than any JPEG 2000 header
_PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 262, 339  # of TIFF files


def pixels_of(image: PIL.Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image for :func:`as_rgb8`; palettes and other color spaces become RGB.

    Raises:
        ImageError: Pillow does not keep the values of the file that the image was opened from.
    """
    is_reduced = has_reduced_depth(image)  # Pillow forgets it when it loads the pixels
    if is_reduced and image.format == "JPEG2000":
        raise ImageError(
            "Pillow misreads JPEG 2000 files with more than 8 bits per color channel: white becomes black. Read the "
            "file with read_image, with the package imagecodecs installed."
        )
    tags = getattr(image, "tag_v2", None)  # of a TIFF file
    if image.mode == "La":
        image = image.convert("LA")  # Pillow cannot convert it to RGB in one step
    pixels = np.asarray(image if image.mode in _MODES_WITH_PLAIN_VALUES else image.convert("RGB"))
    if is_reduced and pixels.dtype == np.uint8 and pixels.max() < 2**6:  # 14 bits or fewer, stored in 16
        raise ImageError(
            "The image is nearly black in the 8 upper bits of each channel, and Pillow keeps only these. Read PNG and "
            "TIFF files with read_image, with the package imagecodecs installed; convert other files to TIFF."
        )
    if tags is not None and _is_misread(pixels, tags):
        raise ImageError(
            "Pillow misreads TIFF files whose smallest value is white, with more than 8 bits; signed 8-bit ones; and "
            "32-bit ones with large values. Read the file with read_image."
        )
    return pixels


def has_reduced_depth(image: PIL.Image.Image) -> bool:
    """Return whether Pillow reduces the channels of a file to 8 bits; known until it loads the pixels."""
    if image.mode in _MODES_WITH_PLAIN_VALUES and image.mode not in ("L", "RGB"):
        return False
    return any(
        ";16" in str(arguments)
        or codec == "SGI16"
        or (codec in ("ppm", "ppm_plain") and arguments[-1] > 255)
        or (codec == "jpeg2k" and jpeg2000_depth(_start_of(image)) > 8)
        for codec, _, _, arguments in getattr(image, "tile", ())
    )


def jpeg2000_depth(content: bytes) -> int:
    """Return the bits per channel of a JPEG 2000 file, of the deepest channel; 0 if it has no header."""
    start = content.find(_JPEG2000_CODESTREAM) + 40  # where the header gives the number of channels
    if start < 40 or len(content) < start + 2:
        return 0
    channels = int.from_bytes(content[start : start + 2], "big")
    return max(((depth & 127) + 1 for depth in content[start + 2 : start + 2 + 3 * channels : 3]), default=0)


def _start_of(image: Any) -> bytes:
    """Return the first bytes of the file of a PIL image whose pixels are not loaded yet."""
    file = image.fp
    position = file.tell()
    file.seek(0)
    start = file.read(_HEADER_BYTES)
    file.seek(position)
    return bytes(start)


def _is_misread(pixels: np.ndarray, tags: Mapping[int, Any]) -> bool:
    """Return whether Pillow changes the values of a TIFF file that has these tags."""
    is_unsigned = tags.get(_SAMPLE_FORMAT_TAG, (1,))[0] == 1
    if pixels.dtype == np.uint8:
        return not is_unsigned
    return tags.get(_PHOTOMETRIC_TAG) == 0 or bool(is_unsigned and pixels.min() < 0)


def as_rgb8(image: np.ndarray) -> np.ndarray:
    """Convert an image to 8-bit RGB.

    Grayscale images get three equal channels, and an alpha channel is dropped. The scale depends on the dtype:

    - ``uint8`` and ``bool`` go from black to white;
    - other integers have the smallest even bit depth (8, 10, 12, 14, 16, ...) that holds the brightest value, because
      cameras and scanners store 10 to 14 bits in 16-bit files; a few isolated values far above it are clipped;
    - floats of which 1 % or more are from 25 to 255, and whole numbers that exceed 1, are on the scale 0 to 255; other
      floats are on the scale 0 to 1 if at least half of them fit it. A few brighter or darker values are clipped;
    - anything else (many negative values, many floats far above 255, floats that would be black on either scale) is
      stretched from its minimum to its maximum, where the 0.1 % lowest and the 0.1 % highest values are clipped.

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
    colors = _as_uint8(image[:, :, :-1] if has_alpha else image)
    return np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3)))


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
    find_scale = _integer_scale if image.dtype.kind in "ui" else _float_scale
    low, high = find_scale(image, darkest, brightest)
    if darkest < low or brightest > high:
        image = image.clip(low, high)
    return _stretched(image, low, high)


def _integer_scale(image: np.ndarray, darkest: Any, brightest: Any) -> tuple[Any, Any]:
    """Return the values that become black and white in an image of integers."""
    if darkest < 0:
        values = _sample(image)
        if _are_centered(values):
            return _stretched_scale(values, darkest, brightest)
    return 0, 2 ** _bit_depth(image, brightest) - 1


def _bit_depth(image: np.ndarray, brightest: int) -> int:
    """Return the smallest even bit depth that holds all values of an image, but hot pixels and a little overshoot.

    Hot pixels and markers are few, and at least twice as bright as all that the depth holds; dark images of a larger
    depth have values in between.
    """
    depth = max(8, brightest.bit_length() + brightest.bit_length() % 2)
    if depth == 8 or (_sample(image) >= 2 ** (depth - 2)).mean() > 2 * _OVERSHOT:
        return depth
    for smaller in range(8, depth, 2):
        too_bright, far_too_bright, hot = (
            np.count_nonzero(image >= int(factor * 2**smaller)) / image.size for factor in (1, 1 + _OVERSHOOT, 2)
        )
        if too_bright <= _OVERSHOT and far_too_bright == hot <= _OUTLIERS:
            return smaller
    return depth


def _float_scale(image: np.ndarray, darkest: Any, brightest: Any) -> tuple[Any, Any]:
    """Return the values that become black and white in an image of floats."""
    if darkest >= 0 and brightest <= 1:
        return 0, 1
    values = _sample(image)
    if not _are_centered(values):
        if darkest == brightest or (values == np.rint(values)).all():  # an 8-bit image, or counts of more bits
            if _are_outside(values, 255).mean() <= _OUTLIERS:
                return 0, 255
            return _stretched_scale(values, darkest, brightest)
        too_far = _are_outside(values, 255).mean()
        if too_far <= _OUTLIERS and _share_shown(values, 255) >= _CONTENT:
            return 0, 255
        if too_far <= _HIGHLIGHTS and _are_outside(values, 1).mean() <= 0.5 and _share_shown(values, 1) > _OUTLIERS:
            return 0, 1
        if too_far <= _OUTLIERS and _usual_range(values)[1] >= _INVISIBLE * 255:
            return 0, 255
    return _stretched_scale(values, darkest, brightest)


def _share_shown(values: np.ndarray, scale: float) -> float:
    """Return the share of values that are bright on a scale from 0, and not far outside it."""
    return float(((values >= _DARK * scale) & ~_are_outside(values, scale)).mean())


def _are_outside(values: np.ndarray, scale: float) -> np.ndarray:
    """Return which values are far outside a scale from 0."""
    return (values < -_OVERSHOOT * scale) | (values > (1 + _OVERSHOOT) * scale)


def _are_centered(values: np.ndarray) -> bool:
    """Return whether many values are negative, as after normalization, and not just by the overshoot of a resize."""
    low, high = _usual_range(values)
    return bool(low < -_OVERSHOOT * high)


def _usual_range(values: np.ndarray) -> tuple[Any, Any]:
    """Return the ends of the range that holds all values but the lowest and the highest 1 %."""
    tail = len(values) // 100
    in_order = np.partition(values, sorted({tail, len(values) - 1 - tail}))
    return in_order[tail], in_order[-1 - tail]


def _stretched_scale(values: np.ndarray, darkest: Any, brightest: Any) -> tuple[Any, Any]:
    """Return the ends of the range that holds all values but a few outliers; those of all if the rest is constant."""
    tail = int(len(values) * _OUTLIERS)
    if tail == 0:
        return darkest, brightest
    in_order = np.partition(values, (tail, len(values) - 1 - tail))
    low, high = in_order[tail].item(), in_order[-1 - tail].item()
    return (low, high) if low < high else (darkest, brightest)


def _sample(image: np.ndarray) -> np.ndarray:
    """Return the values (n,) of at most a few million pixels, from all over an image."""
    step = math.isqrt(image.shape[0] * image.shape[1] // _SAMPLED_PIXELS) | 1  # odd: patterns often repeat in twos
    return image[::step, ::step].reshape(-1)


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
