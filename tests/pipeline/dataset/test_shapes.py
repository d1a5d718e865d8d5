"""Synthetic shapes: masks are the visible pixels, and the same arguments draw the same corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.shapes import SHAPE_CATEGORIES, draw_image, draw_shapes


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
    assert all(image.path.parent.name == "train" for image in train.images)
    for image in train.images:
        with Image.open(image.path.uri) as photo:
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


@pytest.mark.parametrize("seed", range(20))
def test_a_mask_has_the_shape_of_its_class_and_its_edges_are_those_of_the_picture(seed: int) -> None:
    drawn = draw_image(np.random.default_rng(seed), (300, 400), max_shapes=1)
    (mask,), (label,) = drawn.masks, drawn.labels
    y, x = np.nonzero(mask)
    # The area over the root of the determinant of the covariance does not depend on size, place and tilt.
    expected = {"circle": 4 * np.pi, "square": 12, "triangle": 6 * 3**0.5}[SHAPE_CATEGORIES[label - 1].name]
    touches_border = any(side.any() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    tolerance = 0.03 if touches_border else 0.002
    assert len(x) / np.linalg.det(np.cov([x, y])) ** 0.5 == pytest.approx(expected, rel=tolerance)
    steps = np.abs(np.diff(drawn.pixels.astype(float), axis=1)).mean(axis=2)
    edge = mask[:, 1:] != mask[:, :-1]
    assert steps[edge].mean() > 5 * steps[~edge].mean()


def test_jpeg_and_refusals(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path), num_train=1, num_val=0, num_unlabelled=0, image_format="jpeg")
    assert Image.open(tmp_path / "train/train_00000.jpg").format == "JPEG"
    with pytest.raises(ValueError, match="at least 32 px"):
        draw_shapes(str(tmp_path), image_size=(16, 160))
    with pytest.raises(ValueError, match="png or jpeg, not 'gif'"):
        draw_shapes(str(tmp_path), image_format="gif")
    with pytest.raises(ValueError, match="must not be negative"):
        draw_shapes(str(tmp_path), num_train=-1)
