"""How images of every kind are converted to 8-bit RGB, and which images are refused."""

import io
from fractions import Fraction

import ikomia  # noqa: F401 - adds the cv2 that it ships to the path

# isort: split
import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3_engine import ConceptPrompt, ImageError, Predictor, open_predictor
from sam3_engine.images import as_rgb8, pixels_of
from testbed.plugin import REPOSITORY
from testbed.scenes import iou

# overflows and invalid casts raise this warning
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "g"]


def random_image(*shape: int, dtype="u1") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 120, shape).astype(dtype)


def assert_rgb8(result: np.ndarray, height: int, width: int) -> None:
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous


def assert_read_between(image: np.ndarray, black: object, white: object) -> None:
    """Check that a gray image is read as the nearest of 256 levels from ``black`` to ``white``, in exact arithmetic."""
    result = as_rgb8(image)
    assert_rgb8(result, *image.shape)
    np.testing.assert_array_equal(result, result[:, :, :1].repeat(3, axis=2))
    black, white = Fraction(black), Fraction(white)
    for value, level in zip(image.ravel().tolist(), result[:, :, 0].ravel().tolist(), strict=True):
        exact = 255 * (Fraction(*value.as_integer_ratio()) - black) / (white - black)
        # halfway between two levels, either is correct
        assert abs(level - exact) <= 0.501, f"{value} became {level}, not {float(exact):.3f}"


# --- channels


@pytest.mark.parametrize("dtype", DTYPES)
def test_grey_gets_three_equal_channels(dtype):
    grey = random_image(4, 5, dtype=dtype)
    result = as_rgb8(grey)
    assert_rgb8(result, 4, 5)
    assert len(np.unique(result)) > 1
    for channel in range(3):
        np.testing.assert_array_equal(result[:, :, channel], result[:, :, 0])
    np.testing.assert_array_equal(as_rgb8(grey[:, :, np.newaxis]), result)


@pytest.mark.parametrize("color_channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_is_dropped_and_does_not_affect_brightness(dtype, color_channels):
    colors = random_image(4, 5, color_channels, dtype=dtype)
    largest = {"b": 1, "f": 1e4}.get(colors.dtype.kind) or np.iinfo(dtype).max
    alpha = np.full((4, 5, 1), largest, dtype)
    np.testing.assert_array_equal(as_rgb8(np.concatenate([colors, alpha], axis=2)), as_rgb8(colors))


@pytest.mark.parametrize("dtype", DTYPES)
def test_color_channels_keep_their_order(dtype):
    image = np.zeros((1, 3, 3), dtype)
    image[0, 0, 0] = image[0, 1, 1] = image[0, 2, 2] = 1
    result = as_rgb8(image)
    assert_rgb8(result, 1, 3)
    np.testing.assert_array_equal(result != 0, np.eye(3, dtype=bool)[np.newaxis])


def test_channels_share_one_scale():
    image = np.array([[[-10.0, 0, 10]]])
    assert as_rgb8(image).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_uint8_pixels_do_not_change(channels):
    image = np.arange(256 * channels).astype(np.uint8).reshape(16, 16, channels)
    colors = image[:, :, : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(as_rgb8(image), np.broadcast_to(colors, (16, 16, 3)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (1, 4), (3, 3)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_images_of_every_size_are_read(shape, dtype):
    image = random_image(*shape, dtype=dtype)
    image[0, 0] = 120  # selects the 0..255 scale even if this is the only pixel
    np.testing.assert_array_equal(as_rgb8(image), image.astype(np.uint8)[:, :, np.newaxis].repeat(3, axis=2))
    assert_rgb8(as_rgb8(image), *shape)


# --- brightness


def test_bool_is_black_and_white():
    assert as_rgb8(np.array([[False, True]])).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_every_uint16_value_is_read():
    values = np.arange(65536)
    result = as_rgb8(values.astype(np.uint16).reshape(256, 256))
    np.testing.assert_array_equal(result[:, :, 1].ravel(), np.rint(values / 257))


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", "i2", "i4", "i8"])
@pytest.mark.parametrize(
    ("brightest", "bits"),
    [(1, 8), (255, 8), (256, 10), (600, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (20000, 16)],
)
def test_integers_are_read_at_the_smallest_even_bit_depth(dtype, brightest, bits):
    assert_read_between(np.array([[0, 1, brightest // 3, brightest // 2, brightest]], dtype), 0, 2**bits - 1)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("u2", 16), ("u4", 32), ("u8", 64), ("i1", 8), ("i2", 16), ("i4", 32), ("i8", 64)]
)
def test_the_largest_integers_are_read(dtype, bits):
    largest = np.iinfo(dtype).max
    assert_read_between(np.array([[0, 1, largest // 3, largest - 1, largest]], dtype), 0, 2**bits - 1)
    assert_read_between(np.full((2, 2), largest, dtype), 0, 2**bits - 1)


def test_int8_without_negative_values_is_read_as_8_bit():
    assert as_rgb8(np.array([[0, 1, 127]], np.int8))[0, :, 0].tolist() == [0, 1, 127]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
@pytest.mark.parametrize(
    ("values", "white"),
    [
        ([0, 0.25, 0.5, 1], 1),
        ([0.125, 0.75], 1),
        ([0, 1.5, 20], 255),
        ([0, 1, 100.25, 255], 255),
        ([200, 254.5], 255),
        ([-0.0, 1.0], 1),
    ],
)
def test_floats_within_0_to_1_or_0_to_255_are_read_on_that_scale(dtype, values, white):
    assert_read_between(np.array([values], dtype), 0, white)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("i1", [-128, -1, 0, 50, 127]),
        ("i2", [-5, 0, 5]),
        ("i2", [-32768, -1, 0, 12345, 32767]),
        ("i2", [-300, -200, -10]),
        ("i4", [-10000, 0, 70000]),
        ("i4", [-(2**31), -1, 0, 2**30, 2**31 - 1]),
        ("i4", [-(10**9) - 33, -(10**9) - 32, -(10**9) - 31]),
        ("i4", [-(2**31), -(2**31) + 100, -(2**31) + 255]),
        ("i8", [-(2**63), -1, 0, 2**62, 2**63 - 1]),
        ("i8", [-(2**63), -(2**63) + 100, -(2**63) + 255]),
        ("i8", [-(2**60), -(2**60) + 1, -(2**60) + 2]),
        ("f2", [-1, 0, 1]),
        ("f2", [-65504, 0, 65504]),
        ("f2", [0, 0.5, 65504]),
        ("f4", [-0.5, 0, 0.25, 0.5]),
        ("f4", [0, 1, 255.5]),
        ("f4", [1000, 1001, 1002, 1255]),
        ("f8", [-1024, 40, 3071]),
        ("f8", [1e6, 1e6 + 0.25, 1e6 + 0.5, 1e6 + 1]),
        ("f8", [1e9 + 31, 1e9 + 32, 1e9 + 33]),
        ("f8", [-1e15, -1e15 + 1, -1e15 + 2]),
    ],
)
def test_negative_values_and_large_floats_are_stretched_from_minimum_to_maximum(dtype, values):
    image = np.array([values], dtype)
    assert_read_between(image, image.min().item(), image.max().item())


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("f8", [0, 2.5e307, 5e307, 1e308]),
        ("f8", [-1e308, 0, 2e307, 1e308]),
        ("f8", [-1.7e308, -1.6e308]),
        ("f8", [-1, 0, 1e39]),
        ("f8", [-1e-300, 0, 1e-300]),
        ("f8", [-1e-300, 0, 1]),
        ("f8", [-4e-308, 0, 4e-308]),
        ("f4", [0, 1.7e38, 3.4e38]),
        ("f4", [-3.4e38, 0, 1e38, 3.4e38]),
        ("f4", [-2e-38, 0, 1e-38, 2e-38]),
        ("f4", [-1e-30, 0, 1e38]),
    ],
)
def test_floats_near_the_ends_of_their_range_are_stretched(dtype, values):
    image = np.array([values], dtype)
    assert_read_between(image, image.min().item(), image.max().item())


@pytest.mark.parametrize(("dtype", "subnormal"), [("f2", 6e-8), ("f4", 1e-45), ("f8", 5e-324)])
def test_subnormal_floats_are_read_without_overflow(dtype, subnormal):
    def levels(*values):
        return as_rgb8(np.array([values], dtype))[0, :, 0].tolist()

    assert levels(0, subnormal, 1) == [0, 0, 255]
    assert levels(0, subnormal) == [0, 0]
    assert levels(-1, subnormal, 1) == [0, 128, 255]
    # Ikomia's libraries make this process flush subnormals to 0, so the image may be constant
    assert levels(-subnormal, 0, subnormal) in ([0, 128, 255], [0, 0, 0])


@pytest.mark.parametrize(
    ("dtype", "value", "level"),
    [
        ("bool", True, 255),
        ("u1", 7, 7),
        ("u2", 0, 0),
        ("u2", 7, 7),
        ("u2", 1000, 249),
        ("u2", 65535, 255),
        ("i4", 0, 0),
        ("i4", -5, 0),
        ("i8", -(2**63), 0),
        ("f2", 0.25, 64),
        ("f4", 0, 0),
        ("f4", 0.5, 128),
        ("f8", 1, 255),
        ("f8", 255, 255),
        ("f8", 300, 0),
        ("f8", -0.5, 0),
        ("f8", 1e308, 0),
    ],
)
def test_constant_images_have_the_expected_level(dtype, value, level):
    image = np.full((2, 3), value, dtype)
    assert as_rgb8(image).tolist() == np.full((2, 3, 3), level).tolist()


FLOATS = ["f2", "f4", "f8"]


def values_of(dtype: str) -> st.SearchStrategy:
    """Return a strategy for the finite values of a dtype, without subnormals."""
    if dtype == "f2":  # Hypothesis generates few of these, so list all
        halves = np.arange(2**16).astype(np.uint16).view(np.float16)
        return st.sampled_from(np.sort(halves[np.isfinite(halves)]).tolist())
    if dtype in FLOATS:
        width = 8 * np.dtype(dtype).itemsize
        return st.floats(width=width, allow_nan=False, allow_infinity=False, allow_subnormal=False)
    return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", *FLOATS])
@settings(max_examples=60)
@given(data=st.data())
def test_any_image_with_negative_values_is_stretched(dtype, data):
    values = data.draw(st.lists(values_of(dtype), max_size=5))
    lowest = -max([1, *map(abs, values)])  # less may be the overshoot of a resize
    image = np.array([[*values, lowest]], dtype)
    black, white = image.min().item(), image.max().item()
    if black == white:
        assert not as_rgb8(image).any()
    else:
        assert_read_between(image, black, white)


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u2", "u4", "u8", *FLOATS])
@settings(max_examples=60)
@given(data=st.data())
def test_the_order_of_brightness_is_kept(dtype, data):
    values = sorted(data.draw(st.lists(values_of(dtype), min_size=2, max_size=6)))
    levels = as_rgb8(np.array([values], dtype))[0, :, 0].tolist()
    assert levels == sorted(levels)


# --- memory


def layouts(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the same pixels in other memory layouts."""
    height, width, channels = image.shape
    spread = np.zeros((2 * height, 3 * width, channels + 1), image.dtype)
    spread[::2, ::3, :channels] = image
    read_only = image.copy()
    read_only.flags.writeable = False
    return {
        "non-contiguous": spread[::2, ::3, :channels],
        "mirrored": image[::-1, ::-1].copy()[::-1, ::-1],
        "channels reversed": image[:, :, ::-1].copy()[:, :, ::-1],
        "channels first": image.transpose(2, 0, 1).copy().transpose(1, 2, 0),
        "Fortran order": np.asfortranarray(image),
        "read-only": read_only,
        "big-endian": image.astype(image.dtype.newbyteorder(">")),
        "little-endian": image.astype(image.dtype.newbyteorder("<")),
    }


@pytest.mark.parametrize("layout", layouts(random_image(1, 1, 1)))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["bool", "u1", "u2", "i4", "u8", "f2", "f4", "f8"])
def test_the_layout_in_memory_does_not_matter(layout, channels, dtype):
    image = random_image(4, 5, channels, dtype=dtype)
    other = layouts(image)[layout]
    result = as_rgb8(other)
    assert_rgb8(result, 4, 5)
    np.testing.assert_array_equal(result, as_rgb8(image))
    np.testing.assert_array_equal(other, image)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 2), (4, 5, 3), (4, 5, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, -60])
def test_the_input_is_never_modified(shape, dtype, offset):
    image = random_image(*shape, dtype=dtype)
    if image.dtype.kind in "if":
        image += offset
    before = image.copy()
    as_rgb8(image)
    np.testing.assert_array_equal(image, before)
    assert image.shape == shape
    assert image.flags.writeable


# --- refused images


@pytest.mark.parametrize("shape", [(), (5,), (0,), (4, 5, 5), (4, 5, 0), (4, 5, 33), (1, 4, 5, 3), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_unsupported_shapes_are_refused(shape, dtype):
    with pytest.raises(ImageError, match=r"expected \(height, width\), or .* with 1 to 4 channels") as refusal:
        as_rgb8(np.zeros(shape, dtype))
    assert str(shape) in str(refusal.value)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 5, 1), (5, 0, 3), (0, 0, 4)])
def test_an_image_without_pixels_is_refused(shape):
    with pytest.raises(ImageError, match="pixel") as refusal:
        as_rgb8(np.zeros(shape, np.float32))
    assert str(shape) in str(refusal.value)
    assert "expected" in str(refusal.value)


@pytest.mark.parametrize("dtype", ["c8", "c16", "O", "U3", "S3", "M8[s]", "m8[s]", "V4", "u1,u1"])
@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3), (2, 2, 4)])
def test_values_that_are_not_real_numbers_are_refused(dtype, shape):
    with pytest.raises(ImageError, match="expected integers, floats or booleans") as refusal:
        as_rgb8(np.zeros(shape, dtype))
    assert str(np.dtype(dtype)) in str(refusal.value)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [0.5, -3, 1000])
def test_nan_and_infinity_are_refused_anywhere_in_the_image(dtype, value, others):
    for place in range(12):
        image = np.full((2, 2, 3), others, dtype)
        image.flat[place] = value
        with pytest.raises(ImageError, match="NaN or infinity: expected finite values"):
            as_rgb8(image)


def test_nan_and_infinity_together_are_refused():
    with pytest.raises(ImageError, match="expected finite values"):
        as_rgb8(np.array([[np.inf, np.nan, -np.inf]]))


def test_an_image_error_is_a_value_error():
    assert issubclass(ImageError, ValueError)


# --- the scale of floats


@pytest.fixture(scope="module")
def shapes_predictor(shapes_checkpoint) -> Predictor:
    return open_predictor(shapes_checkpoint, cuda=False)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Return the demo's scene (360, 480, 3) uint8 with its five shapes."""
    with PIL.Image.open(REPOSITORY / "images" / "scene.png") as image:
        return np.asarray(image.convert("RGB"))


def enlarged(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC)


def with_one_pixel(image: np.ndarray, value: float) -> np.ndarray:
    image = image.copy()
    image[7, 11] = value
    return image


def with_highlights(image: np.ndarray) -> np.ndarray:
    """Return a picture in linear light: a bright strip, and in it a lamp."""
    image = image.copy()
    image[:30] *= 20
    image[4:8, 200:204] = 1e4
    return image


def dark_with_one_pixel(image: np.ndarray, value: float) -> np.ndarray:
    return with_one_pixel(image * np.float32(0.08), value)


def on_noise(image: np.ndarray, level: float) -> np.ndarray:
    """Return a smoothed picture from 0 to 255 whose background is black but for noise, as under a microscope."""
    noise = np.random.default_rng(0).integers(0, 3, image.shape) + np.float32(level)
    is_shape = np.abs(image - np.median(image, axis=(0, 1))).max(axis=2, keepdims=True) > 0.12
    return cv2.GaussianBlur(np.where(is_shape, 255 * image, noise).astype(np.float32), (0, 0), 1)


FLOAT_SCENES = {
    "brightest value 1.0001": lambda image: with_one_pixel(image, 1.0001),
    "cubic enlargement": enlarged,
    "a highlight of 1.5": lambda image: with_one_pixel(image, 1.5),
    "a defective pixel of 200": lambda image: with_one_pixel(image, 200),
    "a defective pixel of -1000": lambda image: with_one_pixel(image, -1000),
    "highlights far above 1": with_highlights,
    "nearly all values above 1": lambda image: 3 * image,
    "nearly all values above 1, and the sun": lambda image: with_one_pixel(4 * image, 1e4),
    "nearly all values below 0.1, and a highlight of 1.5": lambda image: dark_with_one_pixel(image, 1.5),
    "counts of 12 bits": lambda image: np.rint(4095 * image),
    "0 to 255, cubic enlargement": lambda image: enlarged(255 * image),
    "0 to 255, a defective pixel of 10,000": lambda image: with_one_pixel(255 * image, 1e4),
    "0 to 255, black with noise": lambda image: on_noise(image, 0),
    "0 to 255, nearly black with noise": lambda image: on_noise(image, 3),
    "normalized": lambda image: (image - 0.45) / 0.225,
    "0 to 65535, a defective pixel": lambda image: with_one_pixel(65535 * image, 1e9),
}


@pytest.mark.parametrize("kind", FLOAT_SCENES)
def test_one_pixel_does_not_decide_the_scale_of_floats(kind, scene, shapes_predictor):
    image = FLOAT_SCENES[kind](scene.astype(np.float32) / 255)
    segments = shapes_predictor.predict(image, ConceptPrompt(("shape",)))
    expected = shapes_predictor.predict(scene, ConceptPrompt(("shape",)))
    assert len(segments) == len(expected) == 5
    found = [cv2.resize(segment.mask.astype(np.uint8), scene.shape[1::-1]) for segment in segments]
    for segment in expected:
        assert max(iou(mask > 0, segment.mask) for mask in found) > 0.9


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("brightest", [2, 3, 8])
def test_a_nearly_black_picture_of_whole_numbers_stays_as_dark(dtype, brightest, scene):
    dark = np.rint(scene * (brightest / 255)).astype(np.uint8)
    np.testing.assert_array_equal(as_rgb8(dark.astype(dtype)), dark)


def test_a_nearly_black_picture_from_0_to_255_stays_as_dark_with_a_defective_pixel(scene):
    dark = (scene * (12 / 255)).astype(np.float32)
    result = as_rgb8(with_one_pixel(dark, 300))
    np.testing.assert_array_equal(np.delete(result, 7, axis=0), np.delete(np.rint(dark), 7, axis=0))
    assert result[7, 11].tolist() == [255, 255, 255]


@pytest.mark.parametrize("scale", [1, 255])
@settings(max_examples=60)
@given(value=values_of("f4"))
def test_no_value_of_one_pixel_changes_the_others(scale, scene, value):
    image = scene[::4, ::4].astype(np.float32) * np.float32(scale / 255)
    result = as_rgb8(with_one_pixel(image, value)).copy()
    result[7, 11] = scene[28, 44]
    np.testing.assert_array_equal(result, scene[::4, ::4])


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_that_exceed_their_scale_a_little_are_clipped(dtype, scale, scene):
    image = scene.astype(dtype) * (scale / 255)
    image[0, :10], image[1, :10] = 1.05 * scale, -0.05 * scale
    clipped = scene.copy()
    clipped[0, :10], clipped[1, :10] = 255, 0
    np.testing.assert_array_equal(as_rgb8(image), clipped)


# --- the scale of integers


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i8"])
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_hot_pixels_do_not_decide_the_scale_of_integers(dtype, bits, scene):
    image = np.rint(scene[::4, ::4] * ((2**bits - 1) / 255)).astype(dtype)
    for value in (np.iinfo(dtype).min, np.iinfo(dtype).max, 2 ** (bits + 1), 2 ** (bits + 2) - 1):
        result = as_rgb8(with_one_pixel(image, value)).copy()
        result[7, 11] = scene[28, 44]
        np.testing.assert_array_equal(result, scene[::4, ::4])


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_the_overshoot_of_a_resize_does_not_decide_the_scale_of_integers(dtype, scene):
    image = enlarged(np.rint(scene * (4095 / 255)).astype(dtype))
    assert image.max() > 4095
    assert np.abs(as_rgb8(image).astype(int) - enlarged(scene)).max() <= 1


def test_a_dark_picture_with_highlights_of_every_brightness_keeps_its_depth():
    image = np.full((100, 100), 1000, np.uint16)
    image[0, :9] = 1200 * 1.6 ** np.arange(9)
    assert as_rgb8(image)[50, 50].tolist() == [4, 4, 4]


# --- PIL images


PICTURE = np.random.default_rng(3).integers(0, 256, (8, 12, 3), np.uint8)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_8_bit_pil_images_look_as_in_rgb(mode):
    opaque = PIL.Image.fromarray(PICTURE).convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    result = as_rgb8(pixels_of(opaque.convert(mode)))
    np.testing.assert_array_equal(result, np.asarray(opaque.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2"), ("I", "=i4"), ("F", "=f4")],
)
def test_deep_pil_images_keep_their_values(mode, dtype):
    picture = PICTURE[:, :, 0]
    values = (picture / 255 if mode == "F" else picture.astype(int) * 257).astype(dtype)
    image = PIL.Image.frombytes(mode, (12, 8), values.tobytes())
    np.testing.assert_array_equal(as_rgb8(pixels_of(image))[:, :, 0], picture)


def test_lab_pil_images_are_converted():
    to_lab = PIL.ImageCms.buildTransform(
        PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    image = PIL.ImageCms.applyTransform(PIL.Image.fromarray(PICTURE), to_lab)
    assert np.abs(as_rgb8(pixels_of(image)).astype(int) - PICTURE).mean() < 2  # LAB has fewer colors


def opened_tiff(values: np.ndarray, **options) -> PIL.Image.Image:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return PIL.Image.open(file)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_pil_images_that_are_reduced_to_8_bits_are_read_or_refused(bits):
    values = np.rint(PICTURE * ((2**bits - 1) / 255)).astype(np.uint16)
    image = opened_tiff(values, photometric="rgb")
    if bits == 16:
        assert np.abs(as_rgb8(pixels_of(image)).astype(int) - PICTURE).max() <= 1
    else:
        with pytest.raises(ImageError, match="nearly black .* read_image"):
            pixels_of(image)


@pytest.mark.parametrize(
    ("values", "photometric"),
    [
        (PICTURE[:, :, 0].astype(np.uint16) * 257, "miniswhite"),
        (PICTURE[:, :, 0].astype(np.uint32) * 0x1010101, "minisblack"),
        (PICTURE[:, :, 0].view(np.int8), "minisblack"),
    ],
)
def test_pil_images_that_pillow_misreads_are_refused(values, photometric):
    image = opened_tiff(values, photometric=photometric)
    for _ in range(2):  # before and after it is loaded
        with pytest.raises(ImageError, match="Pillow misreads .* read_image"):
            pixels_of(image)
