"""Cityscapes folders, as the data set has them, are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.cityscapes import load_cityscapes
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.types import AnnotationError


def make_cityscapes(root: Path) -> np.ndarray:
    ids = np.full((20, 30), 7)  # road
    ids[2:8, 2:8] = 26000
    ids[2:8, 10:14] = 26001
    ids[12:18, 2:12] = 24  # a group of persons
    ids[12:18, 20:28] = 29000  # a caravan
    target = root / "gtFine/val/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    target.parent.mkdir(parents=True)
    Image.fromarray(ids.astype(np.uint16)).save(target)
    (target.parent / "ulm_000001_000019_gtFine_labelIds.png").write_bytes(b"")
    photo = root / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(photo)
    return ids


@pytest.mark.parametrize("part", ["", "gtFine", "gtFine/val", "gtFine/val/ulm"])
def test_cityscapes_objects_groups_and_ignored_classes_are_read(tmp_path: Path, part: str) -> None:
    ids = make_cityscapes(tmp_path)
    annotated = load_annotations(str(tmp_path / part), format="auto")
    assert [c.id for c in annotated.categories] == [24, 25, 26, 27, 28, 31, 32, 33]
    (image,) = annotated.images
    assert image.image_id == "ulm_000001_000019" and Path(image.path).is_file()
    by_area = {(i.label, i.iscrowd, i.area): i for i in image.instances}
    assert set(by_area) == {(3, False, 36.0), (3, False, 24.0), (1, True, 60.0), (0, True, 48.0)}
    assert np.array_equal(by_area[3, False, 24.0].mask(20, 30), ids == 26001)


def test_cityscapes_without_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no \*_instanceIds\.png below"):
        load_cityscapes(str(tmp_path))
