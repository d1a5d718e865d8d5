"""Label Studio's JSON, as it exports it, is read; predictions are written as it imports them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.brush_rle import encode_brush
from pipeline.dataset.formats.label_studio import load_labelstudio, write_labelstudio
from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Prediction, mask_to_instance
from pipeline.storage.files import Location
from tests.pipeline.dataset.formats.junk import replaced

POINTS = [[10, 10], [30, 10], [30, 30], [10, 30]]  # XYXY 3, 2, 9, 6 in pixels
MASK = np.zeros((20, 30), bool)
MASK[10:15, 20:25] = True


def region(value: dict[str, Any], kind: str = "polygonlabels", **more: Any) -> dict[str, Any]:
    labels = {} if kind in ("labels", "polygon") else {kind: ["dog"]}
    sizes = {"original_width": 30, "original_height": 20, "image_rotation": 0}
    return {
        "id": "r",
        "type": kind,
        "from_name": "x",
        "to_name": "image",
        **sizes,
        "value": {**labels, **value},
        **more,
    }


def task(*regions: dict[str, Any], image: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 2, "result": list(regions)}], **more}


def write(folder: Path, *tasks: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    (folder / "tasks.json").write_text(json.dumps(list(tasks)))


def test_regions_of_a_task(tmp_path: Path) -> None:
    write(
        tmp_path,
        task(
            region({"points": POINTS, "closed": True, "polygonlabels": ["cat"]}),
            region({"format": "rle", "rle": encode_brush(MASK)}, "brushlabels"),
            region({"x": 50, "y": 50, "width": 20, "height": 10, "rotation": 0}, "rectanglelabels"),
            region({"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0}, "ellipselabels"),
            region({"points": POINTS, "polygonlabels": ["__ignore__"]}),
            region({"points": POINTS}, meta={"text": ["iscrowd"]}),
            region({"x": 1, "y": 2, "width": 1}, "keypointlabels"),
            {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}},
        ),
    )
    for place in (tmp_path, tmp_path / "tasks.json"):
        assert detect_format(str(place)) == "labelstudio"
    annotated = load_annotations(str(tmp_path))
    assert [(c.id, c.name) for c in annotated.categories] == [(1, "cat"), (2, "dog")]
    polygon, brush, box, ellipse, ignored, crowd = annotated.images[0].instances
    assert polygon.label == 1 and polygon.box == pytest.approx((3, 2, 9, 6)) and polygon.mask(20, 30).sum() == 24
    assert brush.label == 2 and np.array_equal(brush.mask(20, 30), MASK)
    assert box.box == pytest.approx((15, 10, 21, 12)) and ellipse.box == pytest.approx((12, 8, 18, 12))
    assert (ignored.label, ignored.iscrowd, crowd.label, crowd.iscrowd) == (0, True, 2, True)
    assert annotated.notes == {
        "rectangle shapes that are read as the pixels inside": 1,
        "ellipse shapes that are read as the pixels inside": 1,
        "results without an area left out (keypointlabels)": 1,
        "results without an area left out (choices)": 1,
    }


def test_a_turned_rectangle_turns_about_its_corner_in_pixels(tmp_path: Path) -> None:
    value = {"x": 50, "y": 10, "width": 20, "height": 10, "rotation": 90}  # at (15, 2), 6 wide, 2 high
    write(tmp_path, task(region(value, "rectanglelabels")))
    (instance,) = load_labelstudio(str(tmp_path)).images[0].instances
    assert instance.box == pytest.approx((13, 2, 15, 8))


def test_labels_apart_from_the_shape_and_shapes_without_labels(tmp_path: Path) -> None:
    shape = region({"points": POINTS}, "polygon")
    write(tmp_path, task(shape, region({"labels": ["cow"]}, "labels")))
    annotated = load_labelstudio(str(tmp_path))
    assert [c.name for c in annotated.categories] == ["cow"] and annotated.num_instances == 1
    write(tmp_path, task(shape))
    assert [c.name for c in load_labelstudio(str(tmp_path), default_category="pig").categories] == ["pig"]
    write(tmp_path, task(shape, region({"points": POINTS}, id="other")))
    with pytest.raises(AnnotationError, match=r"result 0 has the labels \[\]; allowed is one"):
        load_labelstudio(str(tmp_path))


def test_which_annotation_counts(tmp_path: Path) -> None:
    first, second = region({"points": POINTS}), region({"points": POINTS, "polygonlabels": ["cat"]})
    results = [
        {"result": [first]},
        {"result": [second]},
        {"result": [first, first], "was_cancelled": True},
    ]
    several = {"data": {"image": "a.png"}, "annotations": results}
    unlabelled = {"data": {"image": "b.png"}, "annotations": [], "predictions": [{"result": [first]}]}
    empty = task(image="c.png")
    write(tmp_path, several, unlabelled, empty)
    annotated = load_labelstudio(str(tmp_path))
    assert [c.name for c in annotated.categories] == ["cat"] and [len(i.instances) for i in annotated.images] == [1, 0]
    assert annotated.notes["tasks with several annotations, of which the last is read (task 0)"] == 1
    assert annotated.notes["tasks without an annotation left out (task 1)"] == 1
    assert annotated.notes["photos that cannot be read (c.png: there is no such file)"] == 1
    assert (annotated.images[1].height, annotated.images[1].width) == (0, 0)
    write(tmp_path, unlabelled, {"data": {"image": "c.png"}})
    annotated = load_labelstudio(str(tmp_path))
    assert len(annotated) == 1 and annotated.num_instances == 1
    assert annotated.notes["tasks without an annotation, of which the prediction is read (task 0)"] == 1
    write(tmp_path, {"data": {"image": "c.png"}})
    with pytest.raises(AnnotationError, match="none of its 1 tasks has an annotation or a prediction"):
        load_labelstudio(str(tmp_path))


@pytest.mark.parametrize(
    ("image", "photo"),
    [
        ("a.png", "a.png"),
        ("sub/a b.png", "sub/a b.png"),
        ("/data/local-files/?d=sub/a%20b.png", "sub/a b.png"),
        ("http://host:8080/data/local-files/?d=sub/a%20b.png", "sub/a b.png"),
        ("/data/upload/3/0123abcd-a.png", "a.png"),
        ("https://host/photos/a.png?token=1", "a.png"),
        ("s3://bucket/a%20.png", "s3://bucket/a%20.png"),
    ],
)
def test_where_a_photo_is(tmp_path: Path, image: str, photo: str) -> None:
    write(tmp_path, task(region({"points": POINTS}), image=image))
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "sub/a b.png")
    found = load_labelstudio(str(tmp_path)).images[0]
    assert found.path.uri == (photo if photo.startswith("s3:") else str(tmp_path / photo))
    if "a.png" in photo:
        (tmp_path / "photos").mkdir()
        (tmp_path / "a.png").rename(tmp_path / "photos/a.png")
        elsewhere = load_labelstudio(str(tmp_path), str(tmp_path / "photos")).images[0]
        assert elsewhere.path.uri == str(tmp_path / "photos/a.png")


REFUSED: dict[str, tuple[Any, str]] = {
    "no task": (None, "allowed is a list of one or more tasks"),
    "task null": ([None], "task 0 is None; allowed is an object"),
    "no data": ([{"annotations": []}], "task 0 has no data"),
    "no photo": ([{"data": {"text": 7}, "annotations": [{"result": []}]}], "task 0 has data .*allowed is the photo's"),
    "photos to choose from": ([{"data": {"a": "x", "b": "y"}, "annotations": [{"result": []}]}], "task 0 has data"),
    "result null": ([{"data": {"image": "a"}, "annotations": [{"result": None}]}], "annotation 0 has result None"),
    "unknown type": ([task({"type": "videolabels", "value": {}})], "result 0 has type 'videolabels'; allowed are"),
    "type absent": ([task({"value": {}})], "task 0: annotation 0: result 0 has no type"),
    "two labels": ([task(region({"points": POINTS, "polygonlabels": ["a", "b"]}))], "has the labels .*allowed is one"),
    "label number": ([task(region({"points": POINTS, "polygonlabels": [1]}))], r"polygonlabels \[1\]; allowed is"),
    "points null": ([task(region({"points": None}))], "result 0: value has points None; allowed is a list"),
    "point as text": ([task(region({"points": [["1", 2]]}))], r"value has points\[0\]\[0\] '1'; allowed is a number"),
    "pixels": ([task(region({"points": [[1e5, 2]]}))], "value has points"),
    "value null": ([task(region({}) | {"value": None})], "result 0: value is None|has the labels"),
    "width null": ([task(region({"x": 1, "y": 1, "width": None, "height": 2}, "rectanglelabels"))], "has width None"),
    "brush of another size": (
        [task(region({"rle": encode_brush(MASK[:5])}, "brushlabels"))], "result 0 has an rle of 600 values; allowed"
    ),
    "brush of texts": ([task(region({"rle": ["a"]}, "brushlabels"))], r"value has rle\[0\] 'a'; allowed is a whole"),
    "brush of large numbers": ([task(region({"rle": [300]}, "brushlabels"))], r"value has rle\[0\] 300"),
    "turned photo": ([task(region({"points": POINTS}, image_rotation=90))], "image_rotation 90; allowed is 0"),
    "two sizes": (
        [task(region({"points": POINTS}), region({"points": POINTS}, original_width=31))], "photos of the sizes"
    ),
    "size of half": ([task(region({"points": POINTS}, original_width=30.5))], r"original_width 30\.5; allowed is"),
    "size of too many pixels": (
        [task(region({"points": POINTS}, original_width=10**6, original_height=10**6))], "1000000 x 1000000 pixels"
    ),
    "two tasks of one photo": ([task(), task()], r"task 0 and task 1 are of one photo, .*a\.png"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_entries_are_refused_by_file_task_key_and_value(tmp_path: Path, kind: str) -> None:
    tasks, sentence = REFUSED[kind]
    write(tmp_path)
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(AnnotationError, match=rf"tasks\.json.*({sentence})"):
        load_labelstudio(str(tmp_path))


def test_whatever_a_value_is_replaced_by_is_read_or_refused_by_name(tmp_path: Path) -> None:
    entry = task(
        region({"points": POINTS, "closed": True}, meta={"text": ["iscrowd"]}),
        region({"x": 50, "y": 50, "width": 20, "height": 10, "rotation": 0}, "rectanglelabels"),
        region({"x": 50, "y": 50, "radiusX": 10, "radiusY": 10}, "ellipselabels"),
    )
    write(tmp_path, entry)
    num_read = num_refused = 0
    for content in replaced([copy.deepcopy(entry)]):
        (tmp_path / "tasks.json").write_text(json.dumps(content))
        try:
            annotated = load_labelstudio(str(tmp_path / "tasks.json"))
        except ValueError as error:
            num_refused += 1
            assert "tasks.json" in str(error)
            continue
        num_read += 1
        for image in annotated.images:
            for instance in image.instances:
                assert instance.mask(image.height, image.width).any() or instance.area < 4
    assert num_refused > 500 and num_read > 200


def test_predictions_are_what_label_studio_imports(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    ring = MASK.copy()
    ring[12, 22] = False
    found = [mask_to_instance(1, MASK), mask_to_instance(2, ring)]
    predicted = tuple(
        Prediction(i.label, i.box, i.segmentation, area=i.area, score=score) for i, score in zip(found, (0.9, 0.6))
    )
    image = AnnotatedImage(1, "sub/a b.png", Location(str(tmp_path / "a.png")), 20, 30, predicted)
    annotated = AnnotatedSet((image,), SHAPE_CATEGORIES)
    write_labelstudio(annotated, str(tmp_path / "out"), as_predictions=True)
    (entry,) = json.loads((tmp_path / "out/tasks.json").read_text())
    assert entry["data"] == {"image": "/data/local-files/?d=images/sub/a b.png"} and "annotations" not in entry
    (prediction,) = entry["predictions"]
    assert (prediction["score"], prediction["model_version"]) == (0.75, "maskfleet")
    polygon, brush = prediction["result"]
    assert polygon["type"] == "polygonlabels" and polygon["score"] == 0.9 and polygon["original_width"] == 30
    assert np.allclose(
        sorted(map(tuple, polygon["value"]["points"])), [(200 / 3, 50), (200 / 3, 75), (250 / 3, 50), (250 / 3, 75)]
    )
    assert brush["type"] == "brushlabels" and brush["value"]["brushlabels"] == ["square"]
    config = (tmp_path / "out/label_config.xml").read_text()
    assert 'name="polygon"' in config and 'name="brush"' in config and 'value="triangle"' in config
    again = load_annotations(str(tmp_path / "out"))
    assert [np.array_equal(i.mask(20, 30), want) for i, want in zip(again.images[0].instances, (MASK, ring))] == [
        True
    ] * 2
    write_labelstudio(annotated, str(tmp_path / "truth"))
    (entry,) = json.loads((tmp_path / "truth/tasks.json").read_text())
    assert "predictions" not in entry and len(entry["annotations"][0]["result"]) == 2
