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
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotatedImage, AnnotationError
from tests.pipeline.dataset.formats.junk import replaced

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
    annotated = load_annotations(AnnotationSource(uri=str(folder), default_category="balloon"))
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
    with pytest.raises(AnnotationError, match=r"a\.png: region 0 is of shape 'heart'; allowed are polygon"):
        load_via(str(via_folder([region({"name": "heart"})])))


def test_the_class_is_found_in_the_attributes(via_folder: Callable[..., Path]) -> None:
    regions = [region(SQUARE, label="dog", note="x"), region(SQUARE, label="cat", note="y")]
    annotated = load_via(str(via_folder(regions)))
    assert [c.name for c in annotated.categories] == ["cat", "dog"]
    assert [i.label for i in annotated.images[0].instances] == [2, 1]
    boxes = [region(SQUARE, kind={"dog": True, "cat": False})]
    assert load_via(str(via_folder(boxes))).categories[0].name == "dog"
    odd = [region(SQUARE, colour="red", note="x")]
    with pytest.raises(AnnotationError, match=r"none of the region attributes \['colour', 'note'\] is one of class"):
        load_via(str(via_folder(odd)))
    with pytest.raises(AnnotationError, match=r"a\.png: region 1 has 'label' None; allowed is a text"):
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
    assert annotated.notes == {"photos that cannot be read (a.png: there is no such file)": 1}
    assert annotated.images[0].height == 0


@pytest.mark.parametrize(("split", "num_images", "num_regions"), [("train", 61, 255), ("val", 13, 50)])
def test_balloon_has_its_stated_counts(shared_data: Path, split: str, num_images: int, num_regions: int) -> None:
    annotated = load_annotations(AnnotationSource(uri=str(shared_data / "balloon" / split), default_category="balloon"))
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
    sample = SampleSet(annotated)[(0, 0)]
    assert len(sample.target["labels"]) == len(annotated.images[0].instances)
    assert sample.skipped == {}


@pytest.mark.parametrize(
    "content", ["[]", "{}", "null", '{"_via_img_metadata": {}}', '{"a": {"regions": []}}', '{"a": 1}']
)
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(AnnotationError, match="no VIA annotation file"):
        load_via(str(tmp_path / "x.json"))


def polygon(x: object, y: object) -> dict:
    return {"name": "polygon", "all_points_x": x, "all_points_y": y}


# The regions -> the boxes and crowds that are read, and the note.
READ: dict[str, tuple[Any, list[tuple[tuple[float, ...], bool]], str]] = {
    "regions null": (None, [], "photos without 'regions', which show no object (a.png)"),
    "no regions": ([], [], ""),
    "no points": ([region(polygon([], []))], [], "objects without a point left out (a.png: region 0)"),
    "one point": ([region(polygon([4], [5]))], [((4, 5, 5, 6), True)], "without an area that are ignore regions"),
    "two points": ([region(polygon([4, 9], [5, 7]))], [((4, 5, 9, 7), True)], "without an area that are ignore"),
    "outside": ([region(polygon([40, 50, 50], [1, 1, 9]))], [], "objects outside the image left out"),
    "rect drawn to the left": (
        [region({"name": "rect", "x": 9, "y": 7, "width": -5, "height": -2})], [((4, 5, 9, 7), False)], ""
    ),
    "rect without a width": (
        [region({"name": "rect", "x": 4, "y": 5, "width": 0, "height": 2})], [((4, 5, 5, 7), True)], "without an area"
    ),
    "ellipse beyond the border": (
        [region({"name": "ellipse", "cx": 28, "cy": 10, "rx": 10, "ry": 4, "theta": 0})], [((18, 6, 30, 14), False)], ""
    ),
    "attributes null": ([{"shape_attributes": SQUARE, "region_attributes": None}], [((5, 4, 15, 14), False)], ""),
    "attributes absent": ([{"shape_attributes": SQUARE}], [((5, 4, 15, 14), False)], ""),
    "whole number as class": ([region(SQUARE, label=3)], [((5, 4, 15, 14), False)], ""),
    "crowd 1": ([region(SQUARE, label="a", iscrowd="1")], [((5, 4, 15, 14), True)], ""),
    "crowd 0": ([region(SQUARE, label="a", iscrowd=0)], [((5, 4, 15, 14), False)], ""),
}  # fmt: skip

REFUSED: dict[str, tuple[Any, str]] = {
    "regions a text": ("none", r"photo 'a\.png123' has regions 'none'; allowed is an object or a list or null"),
    "region null": ([None], r"a\.png: region 0 is None; allowed is an object"),
    "no shape": ([{"region_attributes": {}}], "region 0 has no shape_attributes"),
    "shape null": ([{"shape_attributes": None}], "region 0 has shape_attributes None; allowed is an object"),
    "shape without a name": ([region({"x": 1})], "region 0 is of shape None; allowed are polygon"),
    "shape of a list": ([region({"name": ["rect"]})], r"region 0 is of shape \['rect'\]; allowed are polygon"),
    "class with a NUL": ([region(SQUARE, a="x\0")], r"region 0 has 'a' 'x.x00'; allowed is a text"),
    "points absent": ([region({"name": "polygon", "all_points_x": []})], "region 0 has no all_points_y"),
    "points null": ([region(polygon(None, [1]))], "region 0 has all_points_x None; allowed is a list"),
    "a null among the points": (
        [region(SQUARE), region(polygon([1, None, 3], [1, 2, 3]))], r"region 1 has all_points_x\[1\] None; allowed"
    ),
    "points as texts": ([region(polygon(["1"], ["2"]))], r"region 0 has all_points_x\[0\] '1'; allowed is a number"),
    "points infinite": ([region(polygon([1e999], [2]))], r"region 0 has all_points_x\[0\] inf; allowed is a number"),
    "unequal lists": ([region(polygon([1, 2, 3], [1, 2]))], "region 0 has 3 all_points_x and 2 all_points_y"),
    "radius as text": ([region({"name": "circle", "cx": 1, "cy": 2, "r": "3"})], "region 0 has r '3'; allowed"),
    "class empty": ([region(SQUARE, a="x"), region(SQUARE, a="")], "region 1 has 'a' ''; allowed is a text that is"),
    "class true": ([region(SQUARE, a=True)], "region 0 has 'a' True; allowed is a text"),
    "two boxes checked": ([region(SQUARE, a={"x": True, "y": True})], r"region 0 has 'a' \{'x': True, 'y': True\}"),
    "box checked by a text": ([region(SQUARE, a={"x": "false"})], r"region 0 has 'a' \{'x': 'false'\}"),
    "crowd true": ([region(SQUARE, a="x", iscrowd="true")], "region 0 has iscrowd 'true'; allowed are 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_odd_regions_are_read_or_become_ignore_regions(via_folder: Callable[..., Path], kind: str) -> None:
    regions, expected, note = READ[kind]
    annotated = load_via(str(via_folder(regions)))
    instances = annotated.images[0].instances
    assert [instance.iscrowd for instance in instances] == [iscrowd for _, iscrowd in expected]
    for instance, (box, _) in zip(instances, expected, strict=True):
        assert instance.box == pytest.approx(box)
    assert note in " ".join(annotated.notes) and bool(annotated.notes) == bool(note)


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_regions_are_refused_by_photo_region_key_and_value(via_folder: Callable[..., Path], kind: str) -> None:
    regions, sentence = REFUSED[kind]
    with pytest.raises(AnnotationError, match=sentence) as caught:
        load_via(str(via_folder(regions)))
    assert "via_region_data.json" in str(caught.value)


def test_two_entries_of_one_photo_are_refused_by_their_keys(tmp_path: Path) -> None:
    entries = {key: {"filename": "a.png", "regions": [region(SQUARE)]} for key in ("first", "second")}
    (tmp_path / "x.json").write_text(json.dumps(entries))
    with pytest.raises(AnnotationError, match=r"photos 'first' and 'second' are of one file, 'a\.png'"):
        load_via(str(tmp_path / "x.json"))


@pytest.mark.parametrize("name", ["http://127.0.0.1:1/a.jpg", "nothing.jpg", "..", "a" * 300])
def test_a_photo_that_is_nowhere_is_noted_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"k": {"filename": name, "regions": [region(SQUARE)]}}))
    annotated = load_via(str(tmp_path / "x.json"))
    (note,) = annotated.notes
    assert note.startswith(f"photos that cannot be read ({name}: ") and len(annotated.images[0].instances) == 1


def test_a_stated_size_goes_before_the_photo(via_folder: Callable[..., Path]) -> None:
    folder = via_folder([region(SQUARE)], orientation=6)
    content = json.loads((folder / "via_region_data.json").read_text())
    content["a.png123"]["file_attributes"] = {"image_height": 20, "image_width": 30}
    (folder / "via_region_data.json").write_text(json.dumps(content))
    annotated = load_via(str(folder))
    assert (annotated.images[0].height, annotated.images[0].width) == (20, 30)  # the stored size, though both fit
    assert SampleSet(annotated).load_sample(0, 0).exif == 2
    content["a.png123"]["file_attributes"] = {"image_height": "tall"}
    (folder / "via_region_data.json").write_text(json.dumps(content))
    assert load_via(str(folder)).images[0].height == 30


def test_whatever_a_value_is_replaced_by_is_read_or_refused_by_name(via_folder: Callable[..., Path]) -> None:
    shapes = [
        region(SQUARE, kind="dog", iscrowd="1"),
        region({"name": "rect", "x": 11, "y": 11, "width": 5, "height": 5}, kind={"cat": True}),
        region({"name": "circle", "cx": 5, "cy": 14, "r": 3}, kind="x"),
        region({"name": "ellipse", "cx": 20, "cy": 10, "rx": 3, "ry": 2, "theta": 0.1}, kind="x"),
    ]
    file = via_folder(shapes) / "via_region_data.json"
    num_read = num_refused = 0
    for content in replaced(json.loads(file.read_text())):
        file.write_text(json.dumps(content))
        try:
            annotated = load_via(str(file))
        except ValueError as error:
            num_refused += 1
            assert file.name in str(error)
            continue
        num_read += 1
        for image in annotated.images:
            for instance in image.instances if image.height else ():
                assert instance.mask(image.height, image.width).any() or instance.area < 4
    assert num_refused > 3 * num_read > 500
