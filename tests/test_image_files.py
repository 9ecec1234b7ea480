"""Image files of every depth and container come back as the 8-bit picture that they were made from."""

import io
import itertools
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from sam3_engine import ImageError, read_image
from sam3_engine.images import as_rgb8, pixels_of

RANDOM = np.random.default_rng(5)
PICTURE = RANDOM.integers(0, 256, (48, 64, 3), np.uint8)
DARK = PICTURE // 5  # its brightest value does not tell the depth


def assert_same(content: bytes, picture: np.ndarray) -> None:
    """Check that a file comes back as ``picture``, (H, W, 3) or (H, W) uint8, to ±1."""
    picture = picture if picture.ndim == 3 else np.repeat(picture[:, :, np.newaxis], 3, axis=2)
    result = read_image(content)
    assert result.shape == picture.shape
    assert result.dtype == np.uint8
    assert np.abs(result.astype(int) - picture).max() <= 1


def at_depth(picture: np.ndarray, bits: int) -> np.ndarray:
    """Return the values of a picture with that many bits."""
    dtype = np.uint16 if bits <= 16 else np.uint32
    return np.rint(picture * ((2**bits - 1) / 255)).astype(dtype)


def tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def pillow(image: PIL.Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def packed_tiff(values: np.ndarray, bits: int, photometric: int, byteorder: str, orientation: int = 1) -> bytes:
    """Return a TIFF file whose rows are packed without gaps, as cameras and scanners write 10 to 14 bits."""
    height, width = values.shape[:2]
    samples = values.size // (height * width)
    shifts = np.arange(bits - 1, -1, -1)
    rows = ((values.reshape(height, -1, 1) >> shifts) & 1).astype(np.uint8).reshape(height, -1)
    data = np.packbits(rows, axis=1).tobytes()
    shorts = {258: [bits] * samples, 259: [1], 262: [photometric], 274: [orientation], 277: [samples], 284: [1]}
    longs = {256: width, 257: height, 273: 0, 278: height, 279: len(data)}
    after_entries = 8 + 2 + 12 * (len(shorts) + len(longs)) + 4
    longs[273] = after_entries + 2 * samples
    entries = b""
    for tag in sorted({*shorts, *longs}):
        if tag in longs:
            entries += struct.pack(f"{byteorder}HHII", tag, 4, 1, longs[tag])
        elif len(shorts[tag]) <= 2:
            value = struct.pack(f"{byteorder}{len(shorts[tag])}H", *shorts[tag]).ljust(4, b"\0")
            entries += struct.pack(f"{byteorder}HHI", tag, 3, len(shorts[tag])) + value
        else:
            entries += struct.pack(f"{byteorder}HHII", tag, 3, len(shorts[tag]), after_entries)
    head = (b"II*\0" if byteorder == "<" else b"MM\0*") + struct.pack(f"{byteorder}I", 8)
    count = struct.pack(f"{byteorder}H", len(shorts) + len(longs))
    return head + count + entries + bytes(4) + struct.pack(f"{byteorder}{samples}H", *shorts[258]) + data


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("bits", [10, 12, 14, 16, 32])
def test_integer_tiff_keeps_its_depth(bits, byteorder):
    for picture, arrangement in itertools.product(
        (PICTURE, PICTURE[:, :, 0]), ({}, {"tile": (16, 16)}, {"compression": "zlib", "predictor": True})
    ):
        photometric = "rgb" if picture.ndim == 3 else "minisblack"
        content = tiff(at_depth(picture, bits), photometric=photometric, byteorder=byteorder, **arrangement)
        assert_same(content, picture)


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("picture", [PICTURE, PICTURE // 3], ids=["bright", "dark"])
def test_float_tiff_is_read(picture, byteorder):
    for dtype in ("f2", "f4", "f8"):
        assert_same(tiff((picture / 255).astype(dtype), photometric="rgb", byteorder=byteorder), picture)
    assert_same(tiff(picture[:, :, 0].astype("f4"), byteorder=byteorder), picture[:, :, 0])


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_gray_tiff_whose_smallest_value_is_white_is_inverted(dtype, byteorder):
    picture = PICTURE[:, :, 0]
    values = at_depth(picture, 8 * np.dtype(dtype).itemsize).astype(dtype)
    inverted = np.iinfo(dtype).max - values
    assert_same(tiff(inverted, photometric="miniswhite", byteorder=byteorder), picture)


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("picture", [PICTURE, DARK], ids=["bright", "dark"])
def test_packed_tiff_is_read_at_the_depth_that_it_states(picture, bits, byteorder):
    pytest.importorskip("imagecodecs")
    assert_same(packed_tiff(at_depth(picture, bits), bits, 2, byteorder), picture)
    gray = at_depth(picture[:, :, 0], bits)
    assert_same(packed_tiff(gray, bits, 1, byteorder), picture[:, :, 0])
    assert_same(packed_tiff(2**bits - 1 - gray, bits, 0, byteorder), picture[:, :, 0])


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_alpha_and_planes_of_a_tiff_are_read(dtype):
    values = at_depth(PICTURE, 8 * np.dtype(dtype).itemsize).astype(dtype)
    alpha = np.full((48, 64, 1), np.iinfo(dtype).max // 3, dtype)
    with_alpha = np.concatenate([values, alpha], axis=2)
    assert_same(tiff(with_alpha, photometric="rgb", extrasamples=["unassalpha"]), PICTURE)
    gray_and_alpha = with_alpha[:, :, [0, 3]]
    assert_same(tiff(gray_and_alpha, photometric="minisblack", extrasamples=["unassalpha"]), PICTURE[:, :, 0])
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    assert_same(tiff(planes, photometric="rgb", planarconfig="separate"), PICTURE)


def test_the_first_page_of_a_tiff_is_read():
    pages = np.stack([at_depth(PICTURE, 16), at_depth(255 - PICTURE, 16)])
    assert_same(tiff(pages, photometric="rgb"), PICTURE)


@pytest.mark.parametrize("compression", ["lzw", "packbits", "zlib"])
def test_compressed_tiff_is_read_with_and_without_imagecodecs(compression, monkeypatch):
    pytest.importorskip("imagecodecs")
    content = tiff(at_depth(PICTURE[:, :, 0], 16), compression=compression, byteorder=">")
    inverted = tiff(65535 - at_depth(PICTURE[:, :, 0], 16), compression=compression, photometric="miniswhite")
    colored = tiff(at_depth(PICTURE, 16), compression=compression, photometric="rgb")
    for file, picture in ((content, PICTURE[:, :, 0]), (inverted, PICTURE[:, :, 0]), (colored, PICTURE)):
        assert_same(file, picture)

    def missing(*_, **__):
        raise KeyError(f"{compression} requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    assert_same(content, PICTURE[:, :, 0])
    assert_same(inverted, PICTURE[:, :, 0])
    with pytest.raises(ImageError, match=r"16 bits per channel and the compression \w+: .*install .*imagecodecs"):
        read_image(colored)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_turned_as_their_orientation_says(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    as_seen = read_image(pillow(PIL.Image.fromarray(PICTURE), "png", exif=exif))
    assert as_seen.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    tag = [(274, "H", 1, orientation, True)]
    for values in (PICTURE, at_depth(PICTURE, 16)):
        assert_same(tiff(values, photometric="rgb", extratags=tag), as_seen)
    assert_same(deep_png(at_depth(PICTURE, 16), exif.tobytes().removeprefix(b"Exif\0\0")), as_seen)


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm", "jpeg2000"])
def test_16_bit_gray_is_read_from_every_container_that_holds_it(kind):
    assert_same(pillow(PIL.Image.fromarray(at_depth(PICTURE[:, :, 0], 16)), kind), PICTURE[:, :, 0])


def deep_png(values: np.ndarray, exif: bytes = b"") -> bytes:
    """Return a PNG file with 16 bits per channel of (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", header), *([(b"eXIf", exif)] if exif else []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(itertools.starmap(chunk, parts))


def colors_and_alpha(bits: int) -> dict[tuple[int, ...], np.ndarray]:
    """Return PICTURE at a depth as RGB, RGBA, and gray and alpha, by the channels of PICTURE that they show."""
    values = at_depth(PICTURE, bits)
    alpha = np.full((48, 64, 1), 2**bits - 1, np.uint16)
    return {
        (0, 1, 2): values,
        (0, 1, 2, 3): np.concatenate([values, alpha], axis=2),
        (0, 0, 0): np.concatenate([values[:, :, :1], alpha], axis=2),
    }


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_png_with_colors_or_alpha_keeps_its_depth(bits):
    pytest.importorskip("imagecodecs")
    for channels, values in colors_and_alpha(bits).items():
        assert_same(deep_png(values), PICTURE[:, :, channels[:3]])


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_png_without_imagecodecs_is_refused_if_its_upper_bits_are_nearly_black(bits, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for channels, values in colors_and_alpha(bits).items():
        if bits == 16:
            assert_same(deep_png(values), PICTURE[:, :, channels[:3]])
        else:
            with pytest.raises(ImageError, match="nearly black in the 8 upper bits .* imagecodecs installed"):
                read_image(deep_png(values))


@pytest.mark.parametrize("stated", [8, 10, 12, 16])
def test_jpeg_2000_with_colors_or_alpha_keeps_its_depth(stated):
    imagecodecs = pytest.importorskip("imagecodecs")
    for channels, values in colors_and_alpha(stated).items():
        for kind in ("jp2", "j2k"):
            content = imagecodecs.jpeg2k_encode(
                values.astype(np.uint8) if stated == 8 else values,
                level=0,
                reversible=True,
                bitspersample=stated,
                codecformat=kind,
            )
            assert_same(content, PICTURE[:, :, channels[:3]])


def test_deep_jpeg_2000_that_pillow_would_misread_is_refused(monkeypatch):
    imagecodecs = pytest.importorskip("imagecodecs")
    content = imagecodecs.jpeg2k_encode(at_depth(PICTURE, 16), level=0, reversible=True, colorspace="SRGB")
    with pytest.raises(ImageError, match="Pillow misreads JPEG 2000 files .* imagecodecs installed"):
        pixels_of(PIL.Image.open(io.BytesIO(content)))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match="Pillow misreads JPEG 2000 files .* imagecodecs installed"):
        read_image(content)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_colors_that_are_multiplied_by_alpha_are_divided_by_it(dtype):
    white = 1 if dtype == "f4" else np.iinfo(dtype).max
    alpha = np.full((48, 64, 1), 128 / 255)
    alpha[:, :5] = 1
    values = np.concatenate([PICTURE / 255 * alpha, alpha], axis=2) * white
    values = values if dtype == "f4" else np.rint(values)
    result = read_image(tiff(values.astype(dtype), photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(result.astype(int) - PICTURE).max() <= (1 if dtype != "u1" else 2)


@pytest.mark.parametrize("largest", [255, 4095, 65535])
def test_deep_ppm_is_read_or_refused(largest):
    head = b"P6 64 48 %d\n" % largest
    values = np.rint(PICTURE * (largest / 255)).astype("u1" if largest == 255 else ">u2")
    assert_same(head + values.tobytes(), PICTURE)
    with pytest.raises(ImageError, match="nearly black in the 8 upper bits"):
        read_image(b"P6 64 48 65535\n" + at_depth(PICTURE, 12).astype(">u2").tobytes())
    with pytest.raises(ImageError, match="nearly black in the 8 upper bits"):
        read_image(b"P3 64 48 65535\n" + " ".join(map(str, at_depth(PICTURE, 12).ravel())).encode())


def test_16_bit_cmyk_and_palette_tiff_become_rgb():
    cmyk = PIL.Image.fromarray(PICTURE).convert("CMYK")
    inks = at_depth(np.asarray(cmyk), 16)
    assert_same(tiff(inks, photometric="separated"), np.asarray(cmyk.convert("RGB")))
    colors = RANDOM.integers(0, 256, (3, 2**16), np.uint8)
    indexes = RANDOM.integers(0, 2**16, (48, 64), np.uint16)
    content = tiff(indexes, photometric="palette", colormap=at_depth(colors, 16))
    assert_same(content, np.moveaxis(colors[:, indexes], 0, -1))


@pytest.mark.parametrize("space", ["cielab", "ycbcr", "cfa"])
def test_deep_tiff_in_other_color_spaces_is_refused(space):
    values = at_depth(PICTURE if space != "cfa" else PICTURE[:, :, 0], 16)
    options = {"subsampling": (1, 1)} if space == "ycbcr" else {}
    with pytest.raises(ImageError, match=f"16 bits per channel and the color space {space.upper()}: convert it to RGB"):
        read_image(tiff(values, photometric=space, **options))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4"])
def test_signed_tiff_keeps_negative_values(dtype):
    information = np.iinfo(dtype)
    step = (information.max - information.min) // 255
    values = (information.min + PICTURE[:, :, 0].astype(np.int64) * step).astype(dtype)
    np.testing.assert_array_equal(read_image(tiff(values)), as_rgb8(values))
    assert_same(tiff(values), PICTURE[:, :, 0])


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_unusual_channels_of_a_tiff_are_read(dtype):
    values = at_depth(PICTURE, 8 * np.dtype(dtype).itemsize).astype(dtype)
    more = np.concatenate([values, values[:, :, :2]], axis=2)
    assert_same(tiff(more, photometric="rgb", extrasamples=["unspecified"] * 2), PICTURE)
    assert_same(tiff(values, photometric="minisblack", planarconfig="contig"), PICTURE)


def test_12_bits_in_16_whose_smallest_value_is_white_are_inverted():
    gray = PICTURE[:, :, 0]
    assert_same(tiff(at_depth(255 - gray, 12), photometric="miniswhite"), gray)
    assert_same(tiff((1 - gray / 255).astype(np.float32), photometric="miniswhite"), gray)


def test_a_tiff_of_enormous_size_is_refused():
    content = packed_tiff(at_depth(PICTURE, 16), 16, 2, "<")
    for tag in (256, 257):
        place = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
        content = content[:place] + struct.pack("<I", 10**6) + content[place + 4 :]
    with pytest.raises(ImageError, match="The image has 1000000000000 pixels: expected at most"):
        read_image(content)


@pytest.mark.parametrize("kind", ["tiff", "png"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what is damaged
def test_damaged_files_are_read_or_refused_in_words(kind):
    values = colors_and_alpha(16)[0, 1, 2]
    content = deep_png(values) if kind == "png" else tiff(values, photometric="rgb", compression="zlib")
    for _ in range(150):
        damaged = bytearray(content[: RANDOM.integers(1, len(content))] if RANDOM.random() < 0.3 else content)
        for place in RANDOM.integers(0, min(len(damaged), 400), 3):
            damaged[place] = RANDOM.integers(256)
        try:
            result = read_image(bytes(damaged))
        except (OSError, ImageError, PIL.Image.DecompressionBombError):
            continue
        assert result.ndim == 3
        assert result.dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_files_are_read_as_pillow_shows_them(mode):
    image = PIL.Image.fromarray(PICTURE).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    for kind in ("tiff",) if mode == "CMYK" else ("png", "tiff"):
        np.testing.assert_array_equal(read_image(pillow(image, kind)), expected)


def test_a_path_and_its_content_give_the_same(tmp_path):
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(PICTURE).save(path)
    np.testing.assert_array_equal(read_image(path), PICTURE)
    np.testing.assert_array_equal(read_image(str(path)), read_image(path.read_bytes()))


def test_what_is_not_an_image_is_an_os_error(tmp_path):
    content = tiff(at_depth(PICTURE, 16), photometric="rgb")
    for broken in (b"", b"hello", content[:6], b"II*\0" + bytes(40)):
        with pytest.raises(OSError, match="cannot identify image file"):
            read_image(broken)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png")


def test_a_cut_tiff_is_an_error():
    content = tiff(at_depth(PICTURE, 16), photometric="rgb")
    with pytest.raises(OSError, match="The TIFF file is damaged"):
        read_image(content[: len(content) // 2])
