"""Decoding of every kind of file, as docs/formats.md states it, against drawn files whose pixels are known."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode_image import FORMATS, DecodeLimits, Outcome, decode_image, sniff_format
from tests.pipeline.images.tiff_files import tiff_bytes

LIMITS = DecodeLimits()
# By the EXIF standard: which side of the scene the stored row 0 and column 0 show.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def scene(height: int = 48, width: int = 80) -> np.ndarray:
    """uint8 [H, W, 3]: blocks of 16 px, all of different colours, so that every turn shows."""
    random = np.random.default_rng(7)
    blocks = random.integers(30, 226, (height // 16, width // 16, 3), np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The array a camera stores for this scene under this EXIF orientation."""
    row_0, column_0 = SIDES[orientation]
    rows = upright.swapaxes(0, 1) if row_0 in ("left", "right") else upright
    rows = rows[::-1] if row_0 in ("bottom", "right") else rows
    return np.ascontiguousarray(rows[:, ::-1] if column_0 in ("bottom", "right") else rows)


def write(image: Image.Image | np.ndarray, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, name, **options)
    return file.getvalue()


def pixels(data: bytes, limits: DecodeLimits = LIMITS) -> np.ndarray:
    outcome = decode_image(data, limits)
    assert (outcome.status, outcome.error) == ("ok", None)
    assert outcome.picture is not None and outcome.picture.mode == "RGB"
    assert (outcome.height, outcome.width) == (outcome.picture.height, outcome.picture.width)
    return np.asarray(outcome.picture)


def check_fails(data: bytes, status: str, words: str, limits: DecodeLimits = LIMITS) -> Outcome:
    outcome = decode_image(data, limits)
    assert outcome.status == status and outcome.picture is None
    assert words in str(outcome.error)
    return outcome


def png(height: int, width: int, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand, for what Pillow cannot write; `rows` without filter bytes."""
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(height: int, width: int, bits: int, samples: bytes, order: str = "<") -> bytes:
    """A grey TIFF of one strip, written by hand."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, len(samples))]
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack(order + "HHI", tag, kind, 1)
        directory += struct.pack(order + ("I" if kind == 4 else "HH"), *([value] if kind == 4 else [value, 0]))
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "I", 8 + len(samples)) + samples + directory + bytes(4)


# --- the turn

TURNED: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("name", TURNED)
def test_pictures_are_turned_upright_by_exif(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = write(stored(scene(), orientation), name, exif=exif, **TURNED[name])
    outcome = decode_image(data, LIMITS)
    kept = None if (name, orientation) == ("AVIF", 1) else orientation  # Pillow writes no turn of 1 into an AVIF
    assert (outcome.status, outcome.exif_orientation) == ("ok", kept)
    assert (outcome.height, outcome.width) == (48, 80)
    tolerance = 0 if name in ("PNG", "WEBP", "TIFF") else 6
    np.testing.assert_allclose(pixels(data).astype(int), scene(), atol=tolerance)


def test_compressed_tiffs_are_turned_upright_by_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = write(stored(scene(), 6), "TIFF", exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(pixels(data), scene())


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    outcome = decode_image(write(scene(), "PNG", exif=exif), LIMITS)
    assert (outcome.status, outcome.exif_orientation, outcome.height) == ("ok", None, 48)


def test_broken_exif_is_no_fault_of_the_picture() -> None:
    data = write(scene(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(data, LIMITS).exif_orientation is None
    assert pixels(data).shape == (48, 80, 3)


def test_failures_state_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = write(stored(scene(), 6), "JPEG", exif=exif)
    tiff = bytearray(write(stored(scene(), 6), "TIFF", exif=exif, compression="tiff_lzw"))
    tiff[20:60] = bytes(40)
    for data in (jpeg[:-40], bytes(tiff)):
        outcome = decode_image(data, LIMITS)
        assert (outcome.status, outcome.height, outcome.width) == ("corrupt", 48, 80)
        assert outcome.exif_orientation == 6


# --- kinds of samples


def test_grey_and_bilevel() -> None:
    grey = scene()[:, :, 0]
    np.testing.assert_array_equal(pixels(write(grey, "PNG")), grey[:, :, None].repeat(3, 2))
    bilevel = Image.fromarray((grey > 128).astype(np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(pixels(write(bilevel, "TIFF"))[:, :, 1], (grey > 128) * 255)


def test_palette() -> None:
    image = Image.fromarray(scene()).quantize(64, dither=Image.Dither.NONE)
    for name in ("PNG", "GIF", "BMP"):
        np.testing.assert_array_equal(pixels(write(image, name)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk(name: str) -> None:
    ink = np.dstack([255 - scene(), np.zeros((48, 80), np.uint8)])  # without black, ink is what light lacks
    data = write(Image.fromarray(ink, "CMYK"), name, **({"quality": 100} if name == "JPEG" else {}))
    np.testing.assert_allclose(pixels(data).astype(int), scene(), atol=6)


def test_lab() -> None:
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[:, :2] = (255, 128, 128)  # white
    lab[:, 2:] = (137, 209, 195)  # sRGB's red is L 53.2, a 80.1, b 67.2
    image = Image.frombytes("LAB", (4, 4), (lab ^ np.array([0, 128, 128], np.uint8)).tobytes())
    decoded = pixels(write(image, "TIFF")).astype(int)
    np.testing.assert_allclose(decoded[0, 0], [255, 255, 255], atol=2)
    np.testing.assert_allclose(decoded[0, 3], [255, 0, 0], atol=12)


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize(
    "data",
    [
        png(256, 256, 16, 0, RAMP.astype(">u2").tobytes()),
        tiff(256, 256, 16, RAMP.astype("<u2").tobytes()),
        tiff(256, 256, 16, RAMP.astype(">u2").tobytes(), ">"),
        b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes(),
        png(256, 256, 16, 2, RAMP.astype(">u2").repeat(3, 1).tobytes()),
    ],
    ids=["png", "tiff-little", "tiff-big", "pgm", "png-rgb"],
)
def test_16_bit_keeps_the_high_byte(data: bytes) -> None:
    np.testing.assert_array_equal(pixels(data), (RAMP >> 8)[:, :, None].repeat(3, 2))


def test_12_bit_tiff_keeps_the_high_8_of_12() -> None:
    samples = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    pairs = samples.reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    np.testing.assert_array_equal(pixels(tiff(16, 16, 12, packed.tobytes()))[:, :, 0], samples >> 4)


def test_float_and_32_bit_samples_span_their_own_range() -> None:
    samples = np.linspace(-2.0, 3.0, 256, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(pixels(write(samples, "TIFF"))[:, :, 0], np.arange(256).reshape(16, 16))
    whole = np.arange(1_000_000, 1_000_256, dtype=np.int32).reshape(16, 16)
    np.testing.assert_array_equal(pixels(write(whole, "TIFF"))[:, :, 2], np.arange(256).reshape(16, 16))


def test_float_samples_that_are_no_numbers() -> None:
    samples = np.array([[0.0, 1.0], [np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(pixels(write(samples, "TIFF"))[:, :, 0], [[0, 255], [0, 0]])
    flat = np.full((2, 2), 3.5, np.float32)
    assert (pixels(write(flat, "TIFF")) == 0).all()
    check_fails(write(np.full((2, 2), np.nan, np.float32), "TIFF"), "corrupt", "finite")


def test_alpha_lies_on_white() -> None:
    colour = scene()
    alpha = np.linspace(0, 255, 80, dtype=np.uint8)[None].repeat(48, 0)
    expected = 255 + (colour.astype(float) - 255) * alpha[:, :, None] / 255
    rgba = np.dstack([colour, alpha])
    lossless: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}}
    for name, options in lossless.items():
        np.testing.assert_allclose(pixels(write(rgba, name, **options)), expected, atol=1.01)
    grey = Image.merge("LA", [Image.fromarray(colour[:, :, 0]), Image.fromarray(alpha)])
    np.testing.assert_allclose(pixels(write(grey, "PNG"))[:, :, 1], expected[:, :, 0], atol=1.01)


def test_alpha_of_a_tiff_lies_on_white_where_it_is_a_mask_and_is_another_band_elsewhere() -> None:
    colour, mask = scene(), np.zeros((48, 80), np.uint8)
    mask[8:40, 8:72], mask[8:40, 72:76] = 255, 100
    near_infrared = scene()[::-1, :, 0]
    for bands in (colour, colour.astype(np.uint16) * 257):
        full = np.iinfo(bands.dtype).max
        for kind in (1, 2):
            alpha = (mask.astype(np.uint32) * full // 255).astype(bands.dtype)
            stored = bands.astype(np.uint64) * alpha[..., None] // full if kind == 1 else bands
            data = tiff_bytes(np.dstack([stored.astype(bands.dtype), alpha]), photometric=2, extra_samples=(kind,))
            expected = 255 + (colour.astype(float) - 255) * mask[..., None] / 255
            np.testing.assert_allclose(pixels(data), expected, atol=2.01)
            band = near_infrared.astype(bands.dtype) * bands.dtype.type(full // 255)
            data = tiff_bytes(np.dstack([bands, band]), photometric=2, extra_samples=(kind,))
            np.testing.assert_array_equal(pixels(data), colour)


@pytest.mark.parametrize("bits", [8, 16])
def test_further_bands_beside_rgb_are_left_out(bits: int) -> None:
    colour = scene().astype(f"u{bits // 8}") * (1 if bits == 8 else 257)
    data = tiff_bytes(np.dstack([colour, colour[..., :2]]), photometric=2, extra_samples=(0, 0))
    np.testing.assert_array_equal(pixels(data), scene())
    check_fails(tiff_bytes(np.dstack([colour, colour])), "unsupported_format", "it has 6 bands; 3 are wanted")


def test_white_is_zero_is_inverted_for_every_number_type() -> None:
    grey = scene()[..., :1]
    for stored in (255 - grey, (65535 - grey.astype(np.uint16) * 257), 1 - grey / np.float32(255)):
        lightness = (grey - float(grey.min())) / np.ptp(grey) * 255 if stored.dtype == np.float32 else grey
        for options in ({}, {"deflate": True}, {"tile": 16}, {"endian": ">"}):
            decoded = pixels(tiff_bytes(stored, photometric=0, **options))
            np.testing.assert_allclose(decoded, lightness.repeat(3, 2), atol=1.01)
    bands = decode_image(tiff_bytes(65535 - grey.astype(np.uint16) * 257, photometric=0), LIMITS, None, 1).bands
    assert bands is not None
    np.testing.assert_allclose(bands, grey / 255, atol=1e-6)
    outcome = decode_image(tiff_bytes(1 - grey / np.float32(255), photometric=0), LIMITS, None, 1)
    assert outcome.status == "unsupported_format" and "0 is white" in str(outcome.error)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_few_bits_in_16_are_not_black(bits: int) -> None:
    colour = scene().astype(np.uint16) << (bits - 8)
    grey = np.ascontiguousarray(colour[..., 0])
    for data in (
        png(48, 80, 16, 0, grey.astype(">u2").tobytes()),
        tiff(48, 80, 16, grey.astype("<u2").tobytes()),
        b"P5 80 48 65535\n" + grey.astype(">u2").tobytes(),
        write(grey, "JPEG2000", irreversible=False),
    ):
        np.testing.assert_array_equal(pixels(data), scene()[..., :1].repeat(3, 2))
    alpha = np.full((48, 80, 1), 65535, np.uint16)
    alpha[:, :8] = 0
    for data in (png(48, 80, 16, 2, colour.astype(">u2").tobytes()), tiff_bytes(colour, photometric=2)):
        np.testing.assert_array_equal(pixels(data), scene())
    rgba = np.dstack([colour, alpha]).astype(">u2")
    expected = np.where(alpha == 0, 255, scene())
    np.testing.assert_array_equal(pixels(png(48, 80, 16, 6, rgba.tobytes())), expected)
    whole = decode_image(tiff(48, 80, 16, grey.astype("<u2").tobytes()), LIMITS, None, 1).bands
    assert whole is not None
    np.testing.assert_allclose(whole, grey[..., None] / np.float32(65535))  # bands keep the range of their type


def test_colour_keys_lie_on_white() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    decoded = pixels(write(grey, "PNG", transparency=77))
    np.testing.assert_array_equal(decoded[:, :, 0], np.where(grey == 77, 255, grey))
    palette = Image.fromarray(scene()).quantize(8)
    for name in ("GIF", "PNG"):
        key = int(np.asarray(palette)[0, 0])
        decoded = pixels(write(palette, name, transparency=key))
        expected = np.where((np.asarray(palette) == key)[:, :, None], 255, np.asarray(palette.convert("RGB")))
        np.testing.assert_array_equal(decoded, expected)


def test_16_bit_colour_key_lies_on_white() -> None:
    data = png(256, 256, 16, 0, RAMP.astype(">u2").tobytes())
    key = struct.pack(">I4sHI", 2, b"tRNS", 0x1234, zlib.crc32(b"tRNS\x12\x34"))
    decoded = pixels(data[:33] + key + data[33:])
    np.testing.assert_array_equal(decoded[:, :, 0], np.where(RAMP == 0x1234, 255, RAMP >> 8))


ANIMATED: dict[str, dict[str, Any]] = {
    "GIF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "MPO": {"quality": 100, "subsampling": 0},
}


@pytest.mark.parametrize("name", ANIMATED)
def test_first_frame_and_limit_of_frames(name: str) -> None:
    images = [Image.fromarray(np.roll(scene(), 16 * i, 0)) for i in range(3)]
    images = [image.quantize(64, dither=Image.Dither.NONE) for image in images] if name == "GIF" else images
    data = write(images[0], name, save_all=True, append_images=images[1:], **ANIMATED[name])
    tolerance = 6 if name in ("AVIF", "MPO") else 0
    expected = np.asarray(images[0].convert("RGB")).astype(int)
    np.testing.assert_allclose(pixels(data).astype(int), expected, atol=tolerance)
    np.testing.assert_allclose(pixels(data, DecodeLimits(max_frames=3)).astype(int), expected, atol=tolerance)
    outcome = check_fails(data, "too_large", "3 frames; at most 2", DecodeLimits(max_frames=2))
    assert (outcome.height, outcome.width) == (48, 80)


# --- what is refused


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"])
def test_every_format_of_the_allow_list(name: str) -> None:
    assert name in FORMATS
    data = write(scene(), name)
    assert sniff_format(data) == name
    assert pixels(data).shape == (48, 80, 3)
    others = DecodeLimits(formats=tuple(set(FORMATS) - {name}))
    check_fails(data, "unsupported_format", f"{name} is not among", others)
    exact = DecodeLimits(max_pixels=48 * 80)
    assert pixels(data, exact).shape == (48, 80, 3)
    outcome = check_fails(data, "too_large", "3839", DecodeLimits(max_pixels=48 * 80 - 1)) if name != "WEBP" else None
    assert outcome is None or (outcome.height, outcome.width) == (48, 80)
    check_fails(data, "too_large", "pixels", DecodeLimits(max_pixels=1000))


@pytest.mark.parametrize(
    "data",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        b"%PDF-1.7\n",
        b"BM is how this text begins, and it is no bitmap",
        b"P5ychology",
        b"\0",
        b"RIFF\x24\0\0\0WAVEfmt ",
        bytes(1000),
    ],
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    check_fails(data, "unsupported_format", "starts with")


def test_valid_kinds_that_no_decoder_reads_are_unsupported_and_not_corrupt() -> None:
    baseline = write(scene(), "JPEG")
    frame = baseline.index(b"\xff\xc0")
    twelve = baseline[: frame + 4] + b"\x0c" + baseline[frame + 5 :]
    lossless = baseline[: frame + 1] + b"\xc3" + baseline[frame + 2 :]
    bitmap = bytearray(write(scene(), "BMP"))
    bitmap[30] = 4  # a JPEG inside a bitmap
    cases = {
        twelve: "12 bits a sample",
        lossless: "process 3",
        bytes(bitmap): "BMP",
        tiff_bytes(np.zeros((4, 4, 1), np.complex64)): "bands of 64 bits",
        tiff_bytes(np.zeros((4, 4, 1), np.uint64)): "bands of 64 bits",
        tiff_bytes(np.zeros((4, 4, 3), np.int64), photometric=2): "bands of 64 bits",
        tiff_bytes(np.zeros((4, 4, 3), np.uint16), photometric=8): "photometric interpretation 8",
        tiff_bytes(np.zeros((4, 4, 3), np.uint16), photometric=2, compression=99): "compression 99",
    }
    for data, words in cases.items():
        check_fails(data, "unsupported_format", words)
    for num_bands in (1, 3, None):
        assert decode_image(tiff_bytes(np.zeros((4, 4, 1), np.uint64)), LIMITS, None, num_bands).status != "corrupt"


def test_heic_is_read_where_it_is_asked_for() -> None:
    import pillow_heif

    heic, allowed = io.BytesIO(), DecodeLimits(formats=("HEIC",))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(stored(scene(), 6))
    pillow_heif.from_pillow(picture).save(heic, quality=100, chroma=444, exif=exif.tobytes())
    data = heic.getvalue()
    assert sniff_format(data) == "HEIC"
    outcome = decode_image(data, allowed)
    assert (outcome.status, outcome.height, outcome.width, outcome.exif_orientation) == ("ok", 48, 80, 6)
    np.testing.assert_allclose(np.asarray(outcome.picture).astype(int), scene(), atol=10)
    check_fails(data, "unsupported_format", "pip install 'maskfleet[heif]'`")
    check_fails(data, "too_large", "48 x 80 pixels", DecodeLimits(formats=("HEIC",), max_pixels=100))
    for length in range(20, len(data), 97):
        assert decode_image(data[:length], allowed).status == "corrupt"


def test_heic_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    check_fails(data, "unsupported_format", "pip install 'maskfleet[heif]'", DecodeLimits(formats=("HEIC",)))


@pytest.mark.parametrize("start", [b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF\4\0\0\0WEBP"])
def test_a_start_alone_is_corrupt(start: bytes) -> None:
    check_fails(start, "corrupt", "not readable as")


def test_an_empty_file_is_corrupt() -> None:
    check_fails(b"", "corrupt", "empty")


@pytest.mark.parametrize("name", ["PNG", "GIF", "BMP", "PPM"])
def test_a_bomb_is_too_large_before_anything_is_decoded(name: str) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 50000, 8, 0, 0, 0, 0)
    small = png(1, 1, 8, 0, b"\0")
    bombs = {
        "PNG": small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:],
        "GIF": b"GIF89a" + struct.pack("<HHBBB", 60000, 50000, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 50000, 1, 24, 0, 0, 0, 0, 0, 0),
        "PPM": b"P6 60000 50000 255\n",
    }
    outcome = check_fails(bombs[name], "too_large", "50000 x 60000 pixels; at most 100000000")
    assert (outcome.height, outcome.width) == (50000, 60000)


def test_a_wrong_checksum_of_pixels_is_corrupt() -> None:
    data = bytearray(write(scene(), "PNG"))
    data[data.index(b"IDAT") + 30] ^= 1
    check_fails(bytes(data), "corrupt", "")
    good = write(scene(), "PNG")
    end = good.index(b"IEND") - 4
    check_fails(good[: end - 1] + bytes([good[end - 1] ^ 1]) + good[end:], "corrupt", "checksum")


CUT: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")},
    "progressive": ("JPEG", {"progressive": True}),
    "lossless": ("WEBP", {"lossless": True}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate": ("TIFF", {"compression": "tiff_deflate"}),
}


@pytest.mark.parametrize("case", CUT)
def test_a_cut_file_is_whole_or_corrupt_never_half(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    name, options = CUT[case]
    noise = np.random.default_rng(3).integers(0, 256, (20, 24, 3), np.uint8)
    data = write(noise, name, **options)
    whole = pixels(data)
    lengths = {*np.linspace(1, len(data) - 1, 60).astype(int).tolist(), *range(len(data) - 14, len(data))}
    num_corrupt = 0
    for length in sorted(lengths):
        for cut in (data[:length], data[:length] + bytes(len(data) - length)):  # broken off; filled up with zeros
            outcome = decode_image(cut, LIMITS)
            num_corrupt += outcome.status == "corrupt"
            if outcome.picture is not None and (len(cut) == length or name in ("JPEG", "PNG")):
                np.testing.assert_array_equal(np.asarray(outcome.picture), whole)
    assert num_corrupt > 30


def test_no_warning_is_emitted() -> None:
    data = write(Image.fromarray(scene()).quantize(8), "PNG", transparency=bytes(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, LIMITS).status == "ok"
        check_fails(b"\x89PNG\r\n\x1a\n" + bytes(40), "corrupt", "PNG")


def test_the_error_text_is_the_same_every_time() -> None:
    for data in (b"\xff\xd8", b"\x89PNG\r\n\x1a\n" + bytes(40), write(scene(), "TIFF")[:600]):
        words = {decode_image(data, LIMITS).error for _ in range(3)}
        assert len(words) == 1 and "0x7" not in str(words)
