"""Other than three channels in segmentation: the decode children give what training is given, or say why not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.bulk.fetch import load_image
from pipeline.bulk.listing import PlannedImage
from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedImage
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes

LIMITS = DecodeLimits(timeout_s=20.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, LIMITS) as one:
        yield one


def encoded(pixels: np.ndarray, name: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    **{f"tiff of five {dtype}": (tiff_bytes(random_bands(dtype), deflate=True), 5) for dtype in ("u1", "u2", "f4")},
    **{f"tiff, turn {o}": (tiff_bytes(random_bands("u1", 4), tile=16, orientation=o), 4) for o in range(1, 9)},
    **{f"rgba png, turn {o}": (encoded(random_bands("u1", 4), exif=turned(o)), 4) for o in (1, 3, 5, 6, 7, 8)},
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


# --- two aligned files


PATTERN = "{folder}/../depth/{stem}.png"


@pytest.fixture
def pair(tmp_path: Path) -> PlannedImage:
    """A photo with its depth of 16 bits in another folder."""
    for folder in ("rgb", "depth"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rgb/a.jpg").write_bytes(encoded(random_bands("u1", 3), "JPEG", exif=turned(6)))
    (tmp_path / "depth/a.png").write_bytes(encoded(random_bands("u2", 1, 14, 11)[..., 0] * np.uint16(300)))
    return PlannedImage("rgb/a.jpg", str(tmp_path / "rgb/a.jpg"))


def load(pool: DecodePool, image: PlannedImage, num_bands: int = 4) -> Decoded:
    return load_image(pool, LIMITS, image, num_bands=num_bands, extra_channels=PATTERN)


def test_a_photo_and_its_depth_are_what_training_sees(pool: DecodePool, pair: PlannedImage) -> None:
    decoded = load(pool, pair)
    assert (decoded.status, decoded.height, decoded.width, decoded.exif_orientation) == ("ok", 14, 11, 6)
    depth = Path(pair.uri).parents[1] / "depth/a.png"
    annotated = AnnotatedImage(1, "a.jpg", pair.uri, 14, 11, extra_paths=(str(depth),))
    np.testing.assert_array_equal(decoded.image, load_photo(annotated, in_channels=4)[0])


def test_a_pair_that_does_not_fit_is_said(pool: DecodePool, pair: PlannedImage) -> None:
    depth = Path(pair.uri).parents[1] / "depth/a.png"
    for num_bands, words in ((5, "it has 3 bands; 4 are wanted"), (1, "it has 1 bands; 1 are wanted in all")):
        decoded = load(pool, pair, num_bands)
        assert decoded.status == "unsupported_format" and words in str(decoded.error)
    depth.write_bytes(encoded(random_bands("u1", 1)[..., 0]))
    decoded = load(pool, pair)
    assert decoded.status == "corrupt" and decoded.image is None
    assert str(decoded.error).endswith("depth/a.png: 11 x 14 px, the photo 14 x 11")
    depth.write_bytes(b"text")
    assert load(pool, pair).status == "unsupported_format"
    depth.unlink()
    decoded = load(pool, pair)
    assert decoded.status == "not_found" and "depth/a.png" in str(decoded.error)
    Path(pair.uri).unlink()
    assert "depth" not in str(load(pool, pair).error)
