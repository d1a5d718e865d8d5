"""Drawn discs: the same seed gives the same photos, and their annotations are masks that training takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.draw_balloons import CATEGORY, MIN_VISIBLE_PX, draw_photo, main
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import segmentation_to_mask


def test_the_same_seed_draws_the_same_photos(tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        main([str(tmp_path / name), "--num", "3", "--seed", seed])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["00000.jpg", "00001.jpg", "00002.jpg", "discs.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert not any((tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in files)


def test_discs_are_round_do_not_share_pixels_and_are_read_as_annotations(tmp_path: Path) -> None:
    main([str(tmp_path), "--num", "12", "--seed", "1"])
    annotated = load_annotations(AnnotationSource(uri=str(tmp_path)), None)
    assert annotated.categories == (CATEGORY,) and len(annotated.images) == 12
    instances = [instance for image in annotated.images for instance in image.instances]
    assert len(instances) > 12 and min(instance.area for instance in instances) >= MIN_VISIBLE_PX
    for image in annotated.images:
        assert Image.open(tmp_path / image.file_name).size == (image.width, image.height)
        covered = np.zeros((image.height, image.width), np.int64)
        for instance in image.instances:
            assert instance.segmentation is not None
            covered += segmentation_to_mask(instance.segmentation, image.height, image.width)
        assert covered.max() <= 1


def test_a_disc_differs_from_what_is_behind_it() -> None:
    random = np.random.default_rng(5)
    differences = []
    for _ in range(10):
        pixels, masks = draw_photo(random)
        for mask in masks:
            differences.append(np.abs(pixels[mask].mean(0) - pixels[~mask].mean(0)).max())
    assert np.median(differences) > 20
