"""Pixels of a network: turned upright, RGB or the file's own bands, the same in segmentation as in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedImage
from pipeline.images.decode_pool import DecodeLimits, DecodePool
from pipeline.images.pixels import (
    SIDEWAYS,
    TURNED_BACK_BY,
    TURNS,
    WrongBands,
    is_mask,
    orientation_of,
    to_8_bits,
    to_bands,
    to_unit,
    turn,
)
from pipeline.storage.files import Location
from tests.pipeline.images.image_files import encoded, exif_of
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes

LIMITS = DecodeLimits(timeout_s=20.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, LIMITS) as pool:
        yield pool


FILES = {
    **{f"tiff of five {dtype}": (tiff_bytes(random_bands(dtype), deflate=True), 5) for dtype in ("u1", "u2", "f4")},
    **{f"tiff, turn {o}": (tiff_bytes(random_bands("u1", 4), tile=16, orientation=o), 4) for o in range(1, 9)},
    **{f"rgba png, turn {o}": (encoded(random_bands("u1", 4), exif=exif_of(o)), 4) for o in (1, 3, 5, 6, 7, 8)},
    "rgba tiff in lzw": (encoded(random_bands("u1", 4), "TIFF", compression="tiff_lzw"), 4),
    "grey": (encoded(random_bands("u1", 1)[..., 0]), 1),
    "grey of 16 bits": (encoded(random_bands("u2", 1)[..., 0] * np.uint16(300)), 1),
    "grey tiff of floats": (encoded(random_bands("f4", 1)[..., 0], "TIFF"), 1),
    "colours as grey": (encoded(random_bands("u1", 3)), 1),
    "coloured tiff as grey": (encoded(random_bands("u1", 3), "TIFF"), 1),
    "all there are": (encoded(random_bands("u1", 4)), None),
}


@pytest.mark.parametrize("name", FILES)
def test_segmentation_sees_what_training_sees(pool: DecodePool, tmp_path: Path, name: str) -> None:
    data, num_bands = FILES[name]
    decoded = pool.submit(data, num_bands=num_bands).result(60)
    assert (decoded.status, decoded.error) == ("ok", None)
    assert decoded.image is not None and decoded.image.dtype == np.float32
    assert decoded.image.shape[:2] == decoded.size
    (tmp_path / "x").write_bytes(data)
    annotated = AnnotatedImage(1, "x", Location(str(tmp_path / "x")), *decoded.size)
    expected, _ = load_photo(annotated, in_channels=num_bands)
    np.testing.assert_array_equal(decoded.image, expected)


def test_a_turned_tiff_is_upright(pool: DecodePool) -> None:
    bands = random_bands("u1", 5)
    decoded = pool.submit(tiff_bytes(bands, orientation=6), num_bands=5).result(60)
    assert (decoded.height, decoded.width, decoded.exif_orientation) == (14, 11, 6)
    assert decoded.image is not None
    np.testing.assert_allclose(decoded.image, np.rot90(bands, -1) / 255, rtol=1e-6)
    assert pool.submit(tiff_bytes(bands, orientation=9), num_bands=5).result(60).exif_orientation is None


@pytest.mark.parametrize(
    ("data", "num_bands", "status", "words"),
    [
        (tiff_bytes(random_bands("u1")), 4, "unsupported_format", "it has 5 bands; 4 are wanted"),
        (encoded(random_bands("u1", 3)), 4, "unsupported_format", "it has 3 bands; 4 are wanted"),
        (tiff_bytes(random_bands("u1"))[:200], 5, "corrupt", "not readable as TIFF"),
        (tiff_bytes(random_bands("u1"), compression=99), 5, "unsupported_format", "compression 99"),
        (tiff_bytes(random_bands("u1")), 3, "unsupported_format", "it has 5 bands; 3 are wanted"),
        (b"", 5, "corrupt", "empty"),
    ],
)
def test_bands_that_cannot_be_had_are_a_status_with_its_reason(
    pool: DecodePool, data: bytes, num_bands: int, status: str, words: str
) -> None:
    decoded = pool.submit(data, num_bands=num_bands).result(60)
    assert decoded.status == status and words in str(decoded.error) and decoded.image is None


def test_limits_hold_for_bands() -> None:
    limits = DecodeLimits(max_pixels=100)
    with DecodePool(1, limits) as strict:
        decoded = strict.submit(tiff_bytes(random_bands("u1")), num_bands=5).result(60)
        assert (decoded.status, decoded.height, decoded.width) == ("too_large", 11, 14)
    wide = tiff_bytes(np.zeros((2000, 2000, 12), np.uint8), rows_per_strip=2000)
    with DecodePool(1, DecodeLimits(memory_bytes=128 << 20)) as strict:
        assert strict.submit(wide, num_bands=12).result(60).status == "too_large"
        assert strict.submit(encoded(random_bands("u1", 4)), num_bands=4).result(60).status == "ok"


# --- functions on one picture


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_arrays_are_turned_as_pillow_turns_pictures(orientation: int | None) -> None:
    samples = random_bands("u1", 3)
    picture = Image.fromarray(samples)
    upright = picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
    turned = turn(samples, orientation)
    np.testing.assert_array_equal(turned, np.asarray(upright))
    assert (turned.shape[:2] != samples.shape[:2]) == (orientation in SIDEWAYS)
    np.testing.assert_array_equal(turn(turned, TURNED_BACK_BY.get(orientation or 1, orientation)), samples)


@pytest.mark.parametrize(("value", "expected"), [(6, 6), (1, 1), (0, None), (9, None)])
def test_orientations_are_1_to_8(value: int, expected: int | None) -> None:
    picture = Image.new("RGB", (2, 2))
    assert orientation_of(picture) is None
    picture.getexif()[0x0112] = value
    assert orientation_of(picture) == expected


def test_whole_numbers_are_parts_of_the_largest_of_their_type() -> None:
    for dtype, largest in ((np.uint8, 255), (np.uint16, 65535), (np.int16, 32767)):
        samples = np.array([[[0, largest]]], dtype)
        assert to_unit(samples).tolist() == [[[0.0, 1.0]]] and to_unit(samples).dtype == np.float32
    assert to_unit(np.array([[[-2.5, 300.0]]], np.float64)).tolist() == [[[-2.5, 300.0]]]
    with pytest.raises(WrongBands, match="it has 2 bands; 3 are wanted"):
        to_unit(np.zeros((1, 1, 2), np.uint8), 3)


def test_palettes_and_inks_become_the_colours_they_mean() -> None:
    red = Image.new("RGB", (2, 1), (255, 0, 0))
    for picture in (red.quantize(2), red.convert("CMYK")):
        assert to_bands(picture, 3).tolist() == [[[1.0, 0.0, 0.0]] * 2]
    assert to_bands(red, 1)[0, 0, 0] == pytest.approx(0.299, abs=0.002)  # luma of ITU-R BT.601
    assert to_bands(Image.new("LA", (2, 1), (51, 255)), None).tolist() == [[[pytest.approx(0.2), 1.0]] * 2]


def test_samples_of_any_type_become_8_bits() -> None:
    assert to_8_bits(np.array([0, 255, 256, 65535], np.uint16)).tolist() == [0, 0, 1, 255]
    for bits in (8, 10, 12):  # the picture would be black otherwise
        assert to_8_bits(np.array([0, (1 << bits) - 1], np.uint16)).tolist() == [0, 255]
        assert to_8_bits(np.array([0, (1 << bits) - 1], np.uint16), whole_range=True).max() < 16
    assert to_8_bits(np.array([-2.0, 0.5, 3.0, np.nan])).tolist() == [0, 128, 255, 0]
    assert to_8_bits(np.array([-2.0, 0.5, 3.0]), whole_range=True).tolist() == [0, 128, 255]
    assert to_8_bits(np.array([7, 7], np.int32)).tolist() == [0, 0]
    with pytest.raises(ValueError, match="finite"):
        to_8_bits(np.full((2, 2), np.nan))


def test_a_mask_is_mostly_full_where_it_is_not_empty() -> None:
    mask = np.zeros((10, 10), np.uint8)
    assert not is_mask(Image.fromarray(mask))
    mask[2:5] = 255
    assert is_mask(Image.fromarray(mask))
    mask[5:9] = 200
    assert not is_mask(Image.fromarray(mask))
