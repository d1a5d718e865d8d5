"""Reading a planned image: its own file, and the aligned file that holds its other channels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.bulk.fetch import fetch_bytes, load_image
from pipeline.bulk.listing import PlannedImage, iter_corpus
from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedImage
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from tests.pipeline.images.image_files import encoded, exif_of
from tests.pipeline.images.tiff_files import random_bands

LIMITS = DecodeLimits(timeout_s=20.0, memory_bytes=256 << 20)
PATTERN = "{folder}/../depth/{stem}.png"


def test_a_changed_or_vanished_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    (image,) = iter_corpus(str(tmp_path))
    assert fetch_bytes(DecodeLimits(), image) == b"one"
    assert fetch_bytes(DecodeLimits(max_bytes=2), image).status == "too_large"
    path.write_bytes(b"two!")
    assert fetch_bytes(DecodeLimits(), image).status == "changed"
    path.unlink()
    assert fetch_bytes(DecodeLimits(), image).status == "not_found"


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, LIMITS) as pool:
        yield pool


@pytest.fixture
def pair(tmp_path: Path) -> PlannedImage:
    """A photo with its depth of 16 bits in another folder."""
    for folder in ("rgb", "depth"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rgb/a.jpg").write_bytes(encoded(random_bands("u1", 3), "JPEG", exif=exif_of(6)))
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
