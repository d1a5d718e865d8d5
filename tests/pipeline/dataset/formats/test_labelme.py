"""LabelMe files, as the program writes them, are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.labelme import load_labelme
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.types import AnnotationError


def labelme_file(folder: Path, shapes: list[dict], name: str = "a") -> None:
    Image.new("RGB", (30, 20)).save(folder / f"{name}.jpg")
    content = {"version": "5.0", "shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": 20, "imageWidth": 30}
    (folder / f"{name}.json").write_text(json.dumps(content))


def shape(label: str, points: list, kind: str = "polygon", group: int | None = None, **flags: bool) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": flags}


def test_labelme_shapes_groups_and_flags(tmp_path: Path) -> None:
    labelme_file(
        tmp_path,
        [
            shape("dog", [[1, 1], [9, 1], [9, 5], [1, 5], [1, 1]], group=1),
            shape("dog", [[1, 10], [9, 10], [9, 12], [1, 12]], group=1),
            shape("cat", [[20, 3], [28, 9]], "rectangle", group=1),
            shape("dog", [[15, 15], [15, 18]], "circle"),
            shape("cat", [[3, 3]], "point"),
            shape("__ignore__", [[20, 15], [28, 19]], "rectangle"),
            shape("cat", [[10, 1], [14, 9]], "rectangle", iscrowd=True),
        ],
    )
    labelme_file(tmp_path, [], "b")
    annotated = load_annotations(str(tmp_path))
    assert [c.name for c in annotated.categories] == ["cat", "dog"]
    dog, cat, ball, ignored, crowd = annotated.images[0].instances
    assert dog.label == 2 and dog.mask(20, 30).sum() == 8 * 4 + 8 * 2 and dog.box == (1, 1, 9, 12)
    assert cat.box == (20, 3, 28, 9) and cat.mask(20, 30).sum() == 48
    assert abs(ball.mask(20, 30).sum() - np.pi * 9) < 4
    assert (ignored.label, ignored.iscrowd) == (0, True) and (crowd.label, crowd.iscrowd) == (1, True)
    assert annotated.images[1].instances == () and annotated.notes == {"points and lines left out": 1}


def test_labelme_labels_file_gives_the_order(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", [[1, 1], [9, 1], [9, 5]])])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\ndog\n")
    assert [c.name for c in load_labelme(str(tmp_path)).categories] == ["zebra", "dog"]
    (tmp_path / "labels.txt").write_text("zebra\n")
    with pytest.raises(AnnotationError, match=r"label 'dog' is not in labels\.txt: zebra"):
        load_labelme(str(tmp_path))


def test_labelme_faults_are_named(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", [[1, 1], [2, 2]], "spiral")])
    with pytest.raises(AnnotationError, match="type 'spiral'"):
        load_labelme(str(tmp_path))
    with pytest.raises(AnnotationError, match="holds no LabelMe annotations"):
        load_labelme(str(tmp_path / "nowhere"))
