"""Other than three channels in segmentation: the decode children give what training is given, or say why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedImage
from pipeline.images.decode_pool import DecodeLimits, DecodePool
from tests.pipeline.images.image_files import encoded, exif_of
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes

LIMITS = DecodeLimits(timeout_s=20.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, LIMITS) as one:
        yield one


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
    assert decoded.image.shape[:2] == (decoded.height, decoded.width)
    (tmp_path / "x").write_bytes(data)
    annotated = AnnotatedImage(1, "x", str(tmp_path / "x"), decoded.height, decoded.width)
    expected, _ = load_photo(annotated, in_channels=num_bands)
    np.testing.assert_array_equal(decoded.image, expected)


def test_a_turned_tiff_is_upright(pool: DecodePool) -> None:
    bands = random_bands("u1", 5)
    decoded = pool.submit(tiff_bytes(bands, orientation=6), num_bands=5).result(60)
    assert (decoded.height, decoded.width, decoded.exif_orientation) == (14, 11, 6)
    np.testing.assert_allclose(decoded.image, np.rot90(bands, -1) / 255, rtol=1e-6)
    assert pool.submit(tiff_bytes(bands, orientation=9), num_bands=5).result(60).exif_orientation is None


@pytest.mark.parametrize(
    ("data", "num_bands", "status", "words"),
    [
        (tiff_bytes(random_bands("u1")), 4, "unsupported_format", "it has 5 bands; 4 are wanted"),
        (encoded(random_bands("u1", 3)), 4, "unsupported_format", "it has 3 bands; 4 are wanted"),
        (tiff_bytes(random_bands("u1"))[:200], 5, "corrupt", "broken TIFF"),
        (tiff_bytes(random_bands("u1"), compression=7), 5, "unsupported_format", "compression 7"),
        (tiff_bytes(random_bands("u1")), 3, "corrupt", "not readable as TIFF"),
        (b"", 5, "corrupt", "empty"),
    ],
)
def test_what_cannot_be_given_is_said(pool: DecodePool, data: bytes, num_bands: int, status: str, words: str) -> None:
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
