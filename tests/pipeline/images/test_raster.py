"""TIFFs that Pillow does not open or shows wrongly: every supported kind is read exactly, others are refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.images.pixels import WrongBands
from pipeline.images.raster import (
    TiffHeader,
    UnsupportedTiff,
    is_tiff,
    pillow_shows,
    read_tiff,
    read_tiff_bands,
    read_tiff_header,
    read_tiff_rgb,
)
from tests.pipeline.images.image_files import encoded
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes


def pages_of(bands: np.ndarray, **options: Any) -> bytes:
    """A TIFF written by libtiff, one page for each band."""
    file = io.BytesIO()
    first, *others = (Image.fromarray(bands[..., index]) for index in range(bands.shape[2]))
    first.save(file, "TIFF", save_all=True, append_images=others, **options)
    return file.getvalue()


def written(samples: np.ndarray, **options: Any) -> bytes:
    """A TIFF written by tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"endian": ">"},
        {"planar": True},
        {"tile": 16},
        {"tile": 16, "planar": True, "deflate": True},
        {"deflate": True},
        {"deflate": True, "predictor": True, "endian": ">"},
        {"rows_per_strip": 11},
        {"rows_per_strip": 4096},
    ],
)
def test_tiffs_of_every_form_are_read(dtype: str, form: dict) -> None:
    if form.get("predictor") and dtype.startswith("f"):
        pytest.skip("differences of floats are stored in another form")
    bands = random_bands(dtype)
    data = tiff_bytes(bands, **form)
    read = read_tiff(data)
    assert is_tiff(data) and read.dtype == np.dtype(dtype) and np.array_equal(read, bands)


def test_pillows_own_tiffs_and_pages_as_bands() -> None:
    rgb = random_bands("u1", 3)
    assert np.array_equal(read_tiff(encoded(rgb, "TIFF")), rgb)
    assert np.array_equal(read_tiff(pages_of(random_bands("u2", 5))), random_bands("u2", 5))
    thumbnail = Image.new("L", (3, 2))
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "TIFF", save_all=True, append_images=[thumbnail])
    assert np.array_equal(read_tiff(file.getvalue()), rgb)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "lzma", "zstd", "tiff_adobe_deflate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_every_lossless_compression_of_libtiff_is_read(compression: str, dtype: str) -> None:
    bands = random_bands(dtype, 5, 70, 301)
    data = pages_of(bands, compression=compression, tiffinfo={278: 16})
    assert Image.open(io.BytesIO(data)).info["compression"] == compression
    assert np.array_equal(read_tiff(data), bands)


@pytest.mark.parametrize(("dtype", "predictor"), [("u1", 2), ("u2", 2), ("f4", 3)])
def test_predictors_of_libtiff_are_undone(dtype: str, predictor: int) -> None:
    bands = random_bands(dtype, 1, 70, 301)
    data = pages_of(bands, compression="tiff_lzw", tiffinfo={278: 16, 317: predictor})
    assert np.array_equal(read_tiff(data), bands)
    rgba = random_bands("u1", 4, 70, 301)
    side_by_side = encoded(rgba, "TIFF", compression="tiff_lzw", tiffinfo={278: 16, 317: min(predictor, 2)})
    assert np.array_equal(read_tiff(side_by_side), rgba)


@pytest.mark.parametrize("compression", ["webp", "png", "jpeg2000", "jpegxl", "zstd", "lerc"])
def test_compressions_that_libtiff_lacks_in_pillow_are_read(compression: str) -> None:
    rgb = random_bands("u1", 3, 64, 80)
    lossless = {"webp": {"level": -1}, "jpegxl": {"level": 101}, "jpeg2000": {"level": 0}}
    options = {"photometric": "rgb", "compression": compression, "tile": (32, 32), "bigtiff": True}
    arguments = lossless.get(compression, {})
    data = written(rgb, **options, compressionargs=arguments)
    read = read_tiff_rgb(data)
    assert np.abs(read.astype(int) - rgb).max() <= (3 if compression == "webp" else 0)
    assert np.array_equal(read_tiff(data), read)


def test_unsupported_and_broken_files_are_refused() -> None:
    with pytest.raises(UnsupportedTiff, match="compression 99"):
        read_tiff(tiff_bytes(random_bands("u1"), compression=99))
    with pytest.raises(UnsupportedTiff, match="bands of 64 bits"):
        read_tiff(tiff_bytes(np.zeros((2, 2, 1), np.complex64)))
    palette = io.BytesIO()
    Image.fromarray(random_bands("u1", 3)).quantize(16).save(palette, "TIFF")
    with pytest.raises(UnsupportedTiff, match="photometric interpretation 3"):
        read_tiff(palette.getvalue())
    whole = tiff_bytes(random_bands("u1"))
    for broken in (whole[:100], whole[:-40], b"II*\0\xff\xff\xff\xff", whole.replace(whole[8:40], b"", 1)):
        for read in (read_tiff, read_tiff_rgb):
            with pytest.raises(ValueError, match="not readable as TIFF"):
                read(broken)


@pytest.mark.parametrize("form", [{}, {"deflate": True}, {"tile": 16}, {"planar": True, "deflate": True}])
def test_a_strip_or_tile_that_is_missing_or_short_is_an_error(form: dict) -> None:
    """Each of them in turn loses its end, and then its place and size."""
    data = tiff_bytes(random_bands("u2", 3, 40, 40), **form)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        counts = page.tags[325 if form.get("tile") else 279]
        num_parts = len(page.databytecounts)
    for index in range(num_parts):
        for size in (0, 5):
            broken = bytearray(data)
            struct.pack_into("<I", broken, counts.valueoffset + 4 * index, size)
            with pytest.raises(ValueError):
                read_tiff(bytes(broken))


def test_the_header_has_the_stored_size_the_orientation_and_the_number_of_pages() -> None:
    data = tiff_bytes(random_bands("u1"), orientation=6)
    assert read_tiff_header(data) == TiffHeader(height=11, width=14, orientation=6, num_pages=1)
    assert read_tiff_header(tiff_bytes(random_bands("u1"), orientation=9)).orientation is None
    assert read_tiff_header(pages_of(random_bands("u1", 5))).num_pages == 5
    with pytest.raises(ValueError, match="not readable as TIFF"):
        read_tiff_header(data[:20])


def test_a_cycle_of_pages_ends() -> None:
    data = bytearray(tiff_bytes(random_bands("u1")))
    (directory,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * num_tags, directory)
    assert np.array_equal(read_tiff(bytes(data)), random_bands("u1"))


def test_bands_are_parts_of_the_largest_of_their_type() -> None:
    for dtype, largest in (("u1", 255), ("u2", 65535), ("f4", 1)):
        bands = read_tiff_bands(tiff_bytes(random_bands(dtype)), 5)
        assert bands.dtype == np.float32
        np.testing.assert_allclose(bands, random_bands(dtype) / largest, rtol=1e-6)
    with pytest.raises(WrongBands, match="it has 5 bands; 4 are wanted"):
        read_tiff_bands(tiff_bytes(random_bands("u1")), 4)
    with pytest.raises(UnsupportedTiff, match="1 is wanted"):  # Pillow shows it
        read_tiff_bands(encoded(random_bands("u1", 3), "TIFF"), 1)
    deep = random_bands("u2", 3) * np.uint16(300)
    grey = read_tiff_bands(tiff_bytes(deep, photometric=2), 1)[..., 0]
    expected = np.asarray(Image.fromarray((deep >> 8).astype(np.uint8)).convert("L")) / np.float32(255)
    np.testing.assert_array_equal(grey, expected.astype(np.float32))


def test_pillow_shows_what_has_8_bits_and_no_more() -> None:
    rgb = random_bands("u1", 3)
    for shown in (encoded(rgb, "TIFF"), encoded(rgb, "TIFF", compression="jpeg"), tiff_bytes(rgb[..., :1])):
        assert pillow_shows(shown)
    for other in (
        tiff_bytes(random_bands("u2", 1)),
        tiff_bytes(random_bands("u1", 5)),
        tiff_bytes(random_bands("u1", 4), photometric=2, extra_samples=(1,)),
        written(rgb, photometric="rgb", compression="webp"),
        b"II*\0",
    ):
        assert not pillow_shows(other)


@pytest.mark.parametrize("form", [{}, {"planar": True}, {"tile": 16, "deflate": True}, {"endian": ">"}])
def test_rgb_of_every_number_type(form: dict) -> None:
    eight = random_bands("u1", 3, 40, 30)
    eight[0, 0], eight[0, 1] = 0, 255
    sixteen = eight.astype(np.uint16) * 257
    for stored in (eight, sixteen, sixteen.astype(np.uint32), eight.astype(np.int16) - 100, eight / np.float32(255)):
        read = read_tiff_rgb(tiff_bytes(stored, photometric=2, **form))
        np.testing.assert_allclose(read.astype(int), eight, atol=1)
        by_number = read_tiff_rgb(tiff_bytes(stored, **form))  # three bands that no tag names as colours
        np.testing.assert_array_equal(by_number, read)
    ink = 255 - np.dstack([eight, np.full((40, 30), 255, np.uint8)])
    read = read_tiff_rgb(tiff_bytes(ink.astype(np.uint16) * 257, photometric=5, **form))
    np.testing.assert_allclose(read.astype(int), eight, atol=1)
    for count in (2, 4, 7):
        with pytest.raises(WrongBands, match=f"it has {count} bands; 3 are wanted"):
            read_tiff_rgb(tiff_bytes(random_bands("u2", count), **form))
