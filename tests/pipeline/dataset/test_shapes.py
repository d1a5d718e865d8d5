"""Synthetic shapes: masks are the visible pixels, and the same arguments draw the same corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.shapes import SHAPE_CATEGORIES, _paint, _shape_mask, draw_image, draw_shapes


def digest(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in paths)).hexdigest()


def test_the_corpus_is_complete_and_repeats(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_shapes(str(tmp_path / name), num_train=6, num_val=3, num_unlabelled=4, seed=5)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    draw_shapes(str(tmp_path / "c"), num_train=6, num_val=3, num_unlabelled=4, seed=6)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")
    train, val = (load_annotations(str(tmp_path / f"a/{name}.json")) for name in ("train", "val"))
    assert (len(train), len(val), len(list((tmp_path / "a/unlabelled").iterdir()))) == (6, 3, 4)
    assert train.categories == val.categories == SHAPE_CATEGORIES
    assert all(Path(image.path).parent.name == "train" for image in train.images)
    for image in train.images:
        with Image.open(image.path) as photo:
            assert photo.size == (image.width, image.height)
        assert image.instances
        assert abs(image.height - 128) <= 16 and abs(image.width - 160) <= 20
    assert len({(image.height, image.width) for image in train.images}) > 1
    assert len(load_annotations(str(tmp_path / "a/unlabelled_truth.json"))) == 4


def test_more_images_do_not_change_the_first_ones(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "a"), num_train=2, num_val=0, num_unlabelled=0)
    draw_shapes(str(tmp_path / "b"), num_train=3, num_val=1, num_unlabelled=0)
    assert (tmp_path / "a/train/train_00001.png").read_bytes() == (tmp_path / "b/train/train_00001.png").read_bytes()


def test_masks_are_disjoint_and_not_tiny_and_all_classes_occur() -> None:
    labels: list[int] = []
    for seed in range(60):
        drawn = draw_image(np.random.default_rng(seed), (128, 160))
        assert drawn.pixels.shape == (128, 160, 3) and drawn.pixels.dtype == np.uint8
        assert np.sum(drawn.masks, axis=0).max() == 1
        assert min(mask.sum() for mask in drawn.masks) >= 40
        labels += drawn.labels
        for instance, mask in zip(drawn.instances, drawn.masks, strict=True):
            assert np.array_equal(instance.mask(128, 160), mask)
    assert min(np.bincount(labels, minlength=4)[1:]) > 0.2 * len(labels)


def test_a_mask_is_where_the_picture_was_painted() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        canvas = np.full((64, 80, 3), -1000.0)
        inside = _shape_mask(rng, seed % 3 + 1, 64, 80)
        _paint(rng, canvas, inside)
        assert np.array_equal((canvas != -1000).any(axis=2), inside)


def test_shapes_have_the_area_of_their_geometry() -> None:
    class FixedDraws(np.random.Generator):
        """Draws a radius of a quarter of the side, a centre near the middle, and a tilt of 0.25 radians."""

        def uniform(self, low: float = 0.0, high: float = 1.0, size: None = None) -> float:  # type: ignore[override]  # one number only
            return 0.25 if high < 1 else (low + high) / 2 + 0.1

    radius = 400 * 0.25
    for label, area in ((1, np.pi * radius**2), (2, (1.7 * radius) ** 2), (3, 3 * 3**0.5 * (0.55 * radius) ** 2)):
        assert _shape_mask(FixedDraws(np.random.PCG64()), label, 400, 400).sum() == pytest.approx(area, rel=0.01)


def test_jpeg_and_refusals(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path), num_train=1, num_val=0, num_unlabelled=0, image_format="jpeg")
    assert Image.open(tmp_path / "train/train_00000.jpg").format == "JPEG"
    with pytest.raises(ValueError, match="at least 32 px"):
        draw_shapes(str(tmp_path), image_size=(16, 160))
    with pytest.raises(ValueError, match="png or jpeg, not 'gif'"):
        draw_shapes(str(tmp_path), image_format="gif")
    with pytest.raises(ValueError, match="must not be negative"):
        draw_shapes(str(tmp_path), num_train=-1)
