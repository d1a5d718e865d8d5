"""VIA files of every version and shape, and the balloon data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.formats.via import load_via
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.types import AnnotatedImage, AnnotationError

SQUARE = {"name": "polygon", "all_points_x": [5, 15, 15, 5, 5], "all_points_y": [4, 4, 14, 14, 4]}


@pytest.fixture
def via_folder(tmp_path: Path, write_photo: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """Writes a VIA file with these regions of one photo of 20 x 30 px."""

    def write(regions: object, *, project: bool = False, **photo: int) -> Path:
        write_photo(tmp_path / "a.png", 20, 30, **photo)
        images = {"a.png123": {"filename": "a.png", "size": 123, "regions": regions, "file_attributes": {}}}
        content = {"_via_settings": {}, "_via_img_metadata": images} if project else images
        (tmp_path / "via_region_data.json").write_text(json.dumps(content))
        return tmp_path

    return write


def region(shape: dict, **attributes: object) -> dict:
    return {"shape_attributes": shape, "region_attributes": attributes}


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
def test_lists_dicts_and_projects_are_read(via_folder: Callable[..., Path], project: bool, as_dict: bool) -> None:
    regions = [region(SQUARE)]
    folder = via_folder(dict(enumerate(regions)) if as_dict else regions, project=project)
    annotated = load_annotations(str(folder), default_category="balloon")
    (instance,) = annotated.images[0].instances
    assert (annotated.images[0].height, annotated.images[0].width) == (20, 30)
    assert instance.segmentation == [[5, 4, 15, 4, 15, 14, 5, 14]]  # without the closing point
    assert instance.box == (5, 4, 15, 14) and instance.area == 100 and instance.mask(20, 30).sum() == 100
    assert [(c.id, c.name) for c in annotated.categories] == [(1, "balloon")]


def test_every_shape_with_an_area_becomes_a_polygon(via_folder: Callable[..., Path]) -> None:
    shapes: list[dict[str, Any]] = [
        {"name": "rect", "x": 1, "y": 2, "width": 6, "height": 5},
        {"name": "circle", "cx": 15, "cy": 10, "r": 6},
        {"name": "ellipse", "cx": 15, "cy": 10, "rx": 8, "ry": 4, "theta": np.pi / 2},
        {"name": "point", "cx": 3, "cy": 3},
        {"name": "polyline", "all_points_x": [5, 15, 15, 5], "all_points_y": [4, 4, 14, 14]},
    ]
    annotated = load_via(str(via_folder([region(shape) for shape in shapes])))
    rect, circle, ellipse, line = annotated.images[0].instances
    assert rect.mask(20, 30).sum() == 30 and rect.box == (1, 2, 7, 7)
    assert abs(circle.mask(20, 30).sum() - np.pi * 36) < 6
    assert ellipse.box == pytest.approx((11, 2, 19, 18), abs=0.05)  # turned upright
    assert line.mask(20, 30).sum() == 100
    assert annotated.notes == {"points left out": 1}
    with pytest.raises(AnnotationError, match="shape 'heart'"):
        load_via(str(via_folder([region({"name": "heart"})])))


def test_the_class_is_found_in_the_attributes(via_folder: Callable[..., Path]) -> None:
    regions = [region(SQUARE, label="dog", note="x"), region(SQUARE, label="cat", note="y")]
    annotated = load_via(str(via_folder(regions)))
    assert [c.name for c in annotated.categories] == ["cat", "dog"]
    assert [i.label for i in annotated.images[0].instances] == [2, 1]
    boxes = [region(SQUARE, kind={"dog": True, "cat": False})]
    assert load_via(str(via_folder(boxes))).categories[0].name == "dog"
    odd = [region(SQUARE, colour="red", note="x")]
    with pytest.raises(AnnotationError, match=r"\['colour', 'note'\] names the class"):
        load_via(str(via_folder(odd)))
    assert load_via(str(via_folder(odd)), class_attribute="colour").categories[0].name == "red"
    with pytest.raises(AnnotationError, match="no 'label'"):
        load_via(str(via_folder([region(SQUARE, label="dog"), region(SQUARE)])))


def test_a_photo_with_exif_orientation_has_the_size_that_its_regions_fit(via_folder: Callable[..., Path]) -> None:
    far = {"name": "polygon", "all_points_x": [20, 28, 28], "all_points_y": [4, 4, 14]}
    unturned = load_via(str(via_folder([region(far)], orientation=6)))
    assert (unturned.images[0].height, unturned.images[0].width) == (20, 30)
    assert unturned.notes == {"photos annotated without their EXIF turn": 1}
    assert SampleSet(unturned).load_sample(0, 0).exif == 2
    turned = load_via(str(via_folder([region(SQUARE)], orientation=6)))  # fits both ways: the turned size is taken
    assert (turned.images[0].height, turned.images[0].width) == (30, 20)
    assert SampleSet(turned).load_sample(0, 0).exif == 1


def test_an_absent_photo_has_no_size_and_is_counted(via_folder: Callable[..., Path]) -> None:
    folder = via_folder([region(SQUARE)])
    (folder / "a.png").unlink()
    annotated = load_via(str(folder))
    assert annotated.notes == {"photos that cannot be read": 1} and annotated.images[0].height == 0


@pytest.mark.parametrize(("split", "num_images", "num_regions"), [("train", 61, 255), ("val", 13, 50)])
def test_balloon_has_its_stated_counts(shared_data: Path, split: str, num_images: int, num_regions: int) -> None:
    annotated = load_annotations(str(shared_data / "balloon" / split), default_category="balloon")
    assert (len(annotated), annotated.num_instances) == (num_images, num_regions)
    assert len(annotated.categories) == 1 and not annotated.notes
    outlines: list[tuple[AnnotatedImage, list[float]]] = []
    for image in annotated.images:
        for instance in image.instances:
            assert isinstance(instance.segmentation, list)
            outlines.append((image, instance.segmentation[0]))
            x1, y1, x2, y2 = instance.box
            assert 0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height
    assert all(outline[:2] != outline[-2:] for _, outline in outlines)  # without a closing point
    at_border = sum(
        max(outline[0::2]) == image.width or max(outline[1::2]) == image.height for image, outline in outlines
    )
    assert at_border == {"train": 13, "val": 0}[split]


def test_a_balloon_sample_has_every_object(shared_data: Path) -> None:
    annotated = load_annotations(str(shared_data / "balloon/val"))
    _, target = SampleSet(annotated)[0]
    assert len(target["labels"]) == len(annotated.images[0].instances)
    assert target["skipped"].numel() == 0


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": {"regions": []}}'])
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AnnotationError, match="no VIA annotation file"):
        load_via(str(tmp_path / "x.json"))
