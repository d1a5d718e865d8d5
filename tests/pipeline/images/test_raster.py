"""TIFFs of any number of bands: every supported kind is read exactly, and others are refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.images.raster import TiffHeader, UnsupportedTiff, is_tiff, read_tiff, read_tiff_bands, read_tiff_header
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes


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
    bands = random_bands(dtype)
    data = tiff_bytes(bands, **form)
    if form.get("predictor") and dtype.startswith("f"):  # differencing of these has another form
        with pytest.raises(UnsupportedTiff, match="predictor 2"):
            read_tiff(data)
        return
    read = read_tiff(data)
    assert is_tiff(data) and read.dtype == np.dtype(dtype) and np.array_equal(read, bands)


def test_pillows_own_tiffs_and_pages_as_bands(tmp_path: Path) -> None:
    rgb = random_bands("u1", 3)
    Image.fromarray(rgb).save(tmp_path / "rgb.tif")
    assert np.array_equal(read_tiff((tmp_path / "rgb.tif").read_bytes()), rgb)
    pages = [Image.fromarray(random_bands("u2", 5)[..., i]) for i in range(5)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(read_tiff((tmp_path / "pages.tif").read_bytes()), random_bands("u2", 5))


def test_unsupported_and_broken_files_are_refused() -> None:
    data = tiff_bytes(random_bands("u1"), compression=7)
    with pytest.raises(UnsupportedTiff, match="compression 7"):
        read_tiff(data)
    whole = tiff_bytes(random_bands("u1"))
    for broken in (whole[:100], whole[:-40], b"II*\0\xff\xff\xff\xff", whole.replace(whole[8:40], b"", 1)):
        with pytest.raises(ValueError):
            read_tiff(broken)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "lzma", "zstd", "tiff_adobe_deflate"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_every_lossless_compression_is_read(tmp_path: Path, compression: str, dtype: str) -> None:
    """Written by libtiff; several bands are several pages, each of several strips."""
    bands = random_bands(dtype, 5, 70, 301)
    pages = [Image.fromarray(bands[..., i]) for i in range(5)]
    tags = {278: 16}  # rows in a strip
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], compression=compression, tiffinfo=tags)
    assert Image.open(tmp_path / "x.tif").info["compression"] == compression
    assert np.array_equal(read_tiff((tmp_path / "x.tif").read_bytes()), bands)


@pytest.mark.parametrize(("dtype", "predictor"), [("u1", 2), ("u2", 2), ("f4", 3)])
def test_predictors_of_libtiff_are_undone(tmp_path: Path, dtype: str, predictor: int) -> None:
    bands = random_bands(dtype, 1, 70, 301)
    tags = {278: 16, 317: predictor}
    Image.fromarray(bands[..., 0]).save(tmp_path / "x.tif", compression="tiff_lzw", tiffinfo=tags)
    written = Image.open(tmp_path / "x.tif")
    assert isinstance(written, TiffImageFile) and written.tag_v2[317] == predictor
    assert np.array_equal(read_tiff((tmp_path / "x.tif").read_bytes()), bands)


@pytest.mark.parametrize("predictor", [1, 2])
def test_bands_side_by_side_in_lzw(tmp_path: Path, predictor: int) -> None:
    rgba = random_bands("u1", 4, 70, 301)
    tags = {278: 16, 317: predictor}
    Image.fromarray(rgba).save(tmp_path / "x.tif", compression="tiff_lzw", tiffinfo=tags)
    assert np.array_equal(read_tiff((tmp_path / "x.tif").read_bytes()), rgba)


def test_the_header_has_the_stored_size_and_the_orientation() -> None:
    data = tiff_bytes(random_bands("u1"), orientation=6)
    assert read_tiff_header(data) == TiffHeader(height=11, width=14, orientation=6)
    assert read_tiff_header(tiff_bytes(random_bands("u1"), orientation=9)).orientation is None
    with pytest.raises(ValueError, match="broken TIFF"):
        read_tiff_header(data[:20])


def test_a_cycle_of_pages_is_an_error() -> None:
    data = bytearray(tiff_bytes(random_bands("u1")))
    (directory,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * num_tags, directory)
    with pytest.raises(ValueError, match="circle"):
        read_tiff(bytes(data))


def test_too_many_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(random_bands("u1", 5)[..., i]) for i in range(5)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UnsupportedTiff, match="more than 4 pages"):
        read_tiff((tmp_path / "pages.tif").read_bytes(), max_pages=4)


def test_bands_are_parts_of_the_largest_of_their_type() -> None:
    for dtype, largest in (("u1", 255), ("u2", 65535), ("f4", 1)):
        bands = read_tiff_bands(tiff_bytes(random_bands(dtype)), 5)
        assert bands.dtype == np.float32
        np.testing.assert_allclose(bands, random_bands(dtype) / largest, rtol=1e-6)
    with pytest.raises(ValueError, match="it has 5 bands; 4 are wanted"):
        read_tiff_bands(tiff_bytes(random_bands("u1")), 4)
    with pytest.raises(UnsupportedTiff, match="1 is wanted"):
        read_tiff_bands(tiff_bytes(random_bands("u1", 3)), 1)


def test_coded_colours_are_left_to_pillow(tmp_path: Path) -> None:
    Image.fromarray(random_bands("u1", 3)).quantize(16).save(tmp_path / "palette.tif")
    with pytest.raises(UnsupportedTiff, match="photometric interpretation 3"):
        read_tiff((tmp_path / "palette.tif").read_bytes())
