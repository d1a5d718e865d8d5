"""LabelMe files, as the program writes them, are read."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.labelme import load_labelme
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.types import AnnotationError
from tests.pipeline.dataset.formats.junk import replaced


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
    with pytest.raises(
        AnnotationError, match=r"a\.json: shape 0 has the label 'dog', which is not in labels\.txt: zebra"
    ):
        load_labelme(str(tmp_path))


def test_labelme_faults_are_named(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", [[1, 1], [2, 2]], "spiral")])
    with pytest.raises(AnnotationError, match=r"a\.json: shape 0 has shape_type 'spiral'; allowed are polygon"):
        load_labelme(str(tmp_path))
    with pytest.raises(AnnotationError, match="holds no LabelMe annotations"):
        load_labelme(str(tmp_path / "nowhere"))


SQUARE = [[1, 1], [9, 1], [9, 5], [1, 5]]
ABSENT = object()


def png(height: int, width: int, value: int = 1) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 255 * value, np.uint8)).convert("1").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# What is changed in the only shape, or in the file (keys with a capital letter) -> the boxes and crowds that are read.
READ: dict[str, tuple[dict[str, Any], list[tuple[tuple[float, ...], bool]], str]] = {
    "whole number as label": ({"label": 7}, [((1, 1, 9, 5), False)], ""),
    "type null": ({"shape_type": None}, [((1, 1, 9, 5), False)], ""),
    "type absent": ({"shape_type": ABSENT}, [((1, 1, 9, 5), False)], ""),
    "rotated rectangle of other tools": ({"shape_type": "rotation"}, [((1, 1, 9, 5), False)], ""),
    "flags null": ({"flags": None}, [((1, 1, 9, 5), False)], ""),
    "flags of other names": ({"flags": {"blurred": "yes", "iscrowd": None}}, [((1, 1, 9, 5), False)], ""),
    "crowd": ({"flags": {"iscrowd": True}}, [((1, 1, 9, 5), True)], ""),
    "group 0": ({"group_id": 0}, [((1, 1, 9, 5), False)], ""),
    "rectangle from the far corner": (
        {"shape_type": "rectangle", "points": [[9, 5], [1, 1]]}, [((1, 1, 9, 5), False)], ""
    ),
    "rectangle of four corners in any order": (
        {"shape_type": "rectangle", "points": [[9, 5], [1, 1], [9, 1], [1, 5]]}, [((1, 1, 9, 5), False)], ""
    ),
    "rectangle of one point": (
        {"shape_type": "rectangle", "points": [[4, 5]]}, [((4, 5, 5, 6), True)], "without an area that are ignore"
    ),
    "circle without a radius": (
        {"shape_type": "circle", "points": [[4, 5], [4, 5]]}, [((4, 5, 5, 6), True)], "without an area that are ignore"
    ),
    "polygon of two points": ({"points": [[1, 1], [9, 5]]}, [((1, 1, 9, 5), True)], "without an area that are ignore"),
    "no points": ({"points": []}, [], "objects without a point left out (a.json: shape 0)"),
    "outside": ({"points": [[40, 1], [50, 1], [50, 5]]}, [], "objects outside the image left out (a.json: shape 0)"),
    "linestrip": ({"shape_type": "linestrip"}, [], "points and lines left out"),
    "mask without a pixel": (
        {"shape_type": "mask", "points": [[2, 3], [5, 4]], "mask": png(2, 4, 0)}, [], "objects without a pixel left out"
    ),
    "mask": ({"shape_type": "mask", "points": [[2, 3], [5, 4]], "mask": png(2, 4)}, [((2, 3, 6, 5), False)], ""),
    "photo in another folder, as Windows writes it": ({"imagePath": "..\\x\\a.jpg"}, [((1, 1, 9, 5), False)], ""),
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "label null": ({"label": None}, r"a\.json: shape 0 has label None; allowed is a whole number or a text"),
    "label empty": ({"label": ""}, r"a\.json: shape 0 has label ''; allowed is a text"),
    "label true": ({"label": True}, "shape 0 has label True"),
    "label absent": ({"label": ABSENT}, "shape 0 has no label"),
    "points null": ({"points": None}, "shape 0 has points None; allowed is a list"),
    "points of three numbers": ({"points": [[1, 2, 3]]}, r"shape 0 has points\[0\] \[1, 2, 3\]; allowed is a list of"),
    "point as text": ({"points": [["1", 2]]}, r"shape 0 has points\[0\]\[0\] '1'; allowed is a number"),
    "point NaN": ({"points": [[float("nan"), 2]]}, r"shape 0 has points\[0\]\[0\] nan; allowed is a number"),
    "point far": ({"points": [[1e30, 2]]}, r"shape 0 has points\[0\]\[0\] 1e\+30; allowed is a number"),
    "crowd as text": ({"flags": {"iscrowd": "false"}}, r"shape 0 has flags\.iscrowd 'false'; allowed is true or false"),
    "rectangle of three points": ({"shape_type": "rectangle", "points": SQUARE[:3]}, "a rectangle, has 3 points"),
    "circle of three points": ({"shape_type": "circle", "points": SQUARE[:3]}, "a circle, has 3 points; allowed are 2"),
    "mask without an image": ({"shape_type": "mask", "points": SQUARE[:2], "mask": None}, "shape 0 has the mask None"),
    "mask that is no base64": ({"shape_type": "mask", "points": SQUARE[:2], "mask": "?"}, "allowed is a PNG in base64"),
    "mask that is no image": ({"shape_type": "mask", "points": SQUARE[:2], "mask": "aaaa"}, "allowed is a PNG"),
    "mask of another size": (
        {"shape_type": "mask", "points": [[2, 3], [5, 4]], "mask": png(3, 4)}, r"a mask of \(3, 4\) pixels"
    ),
    "mask beyond the image": (
        {"shape_type": "mask", "points": [[28, 3], [31, 4]], "mask": png(2, 4)}, r"at \(28, 3\) on an image"
    ),
    "height null": ({"imageHeight": None}, r"a\.json has imageHeight None; allowed is a whole number"),
    "height absent": ({"imageHeight": ABSENT}, r"a\.json has no imageHeight"),
    "height as text": ({"imageHeight": "20"}, r"a\.json has imageHeight '20'"),
    "height 0": ({"imageHeight": 0}, r"a\.json has imageHeight 0; allowed is a whole number from 1"),
    "size of too many pixels": ({"imageHeight": 10**6, "imageWidth": 10**6}, r"a\.json is of 1000000 x 1000000 pixels"),
    "half a character": ({"label": "\ud800"}, r"a\.json is not valid JSON: .*surrogates not allowed"),
    "path null": ({"imagePath": None}, r"a\.json has imagePath None; allowed is a text"),
    "shapes null": ({"shapes": None}, r"a\.json has shapes None; allowed is a list"),
    "shape null": ({"shapes": [None]}, r"a\.json: shape 0 is None; allowed is an object"),
}  # fmt: skip


def write_changed(folder: Path, change: dict[str, Any]) -> None:
    labelme_file(folder, [shape("dog", SQUARE)])
    content = json.loads((folder / "a.json").read_text())
    for key, value in change.items():
        target = content if key in content else content["shapes"][0]
        target[key] = value
    text = json.dumps(content, default=lambda value: "ABSENT" if value is ABSENT else None)
    content = json.loads(text, object_hook=lambda entry: {k: v for k, v in entry.items() if v != "ABSENT"})
    (folder / "a.json").write_text(json.dumps(content))


@pytest.mark.parametrize("kind", READ)
def test_odd_shapes_are_read_or_become_ignore_regions(tmp_path: Path, kind: str) -> None:
    change, expected, note = READ[kind]
    write_changed(tmp_path, change)
    annotated = load_labelme(str(tmp_path))
    assert [(i.box, i.iscrowd) for i in annotated.images[0].instances] == expected
    assert note in " ".join(annotated.notes) and bool(annotated.notes) == bool(note)


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_entries_are_refused_by_file_shape_key_and_value(tmp_path: Path, kind: str) -> None:
    change, sentence = REFUSED[kind]
    write_changed(tmp_path, change)
    with pytest.raises(ValueError, match=sentence):
        load_labelme(str(tmp_path))


def test_the_first_ten_faults_are_named_and_all_are_counted(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", [["1", 2]])] * 7)
    labelme_file(tmp_path, [shape("dog", [[None, 2]])] * 7, "b")
    with pytest.raises(AnnotationError, match=r"a\.json: shape 0 .*b\.json: shape 2 .*; and 4 more") as caught:
        load_labelme(str(tmp_path))
    assert caught.value.count == 14


def test_other_json_beside_is_noted_and_broken_json_named(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", SQUARE)])
    (tmp_path / "zz.json").write_text('\ufeff{"images": [], "annotations": [], "categories": []}')
    annotated = load_labelme(str(tmp_path))
    assert annotated.notes == {"JSON files without 'shapes' left out (zz.json)": 1} and len(annotated) == 1
    (tmp_path / "zz.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"zz\.json is not valid JSON: .* line 1 column 2"):
        load_labelme(str(tmp_path))


@pytest.mark.parametrize("value", ["[" * 200_000, "[" * 200_000 + "]" * 200_000, "9" * 5000])
def test_json_that_no_parser_takes_is_named(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"shapes": {value}}}')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON: "):
        load_labelme(str(tmp_path / "a.json"))


def test_sub_folders_are_read_with_their_photos(tmp_path: Path) -> None:
    for name in ("s", "t"):
        (tmp_path / name).mkdir()
        labelme_file(tmp_path / name, [shape("dog", SQUARE)])
    annotated = load_annotations(str(tmp_path))  # the format is detected
    assert [(image.file_name, image.path.uri) for image in annotated.images] == [
        (f"{name}/a.jpg", str(tmp_path / name / "a.jpg")) for name in ("s", "t")
    ]
    elsewhere = load_labelme(str(tmp_path), "/photos")
    assert [image.path.uri for image in elsewhere.images] == ["/photos/s/a.jpg", "/photos/t/a.jpg"]


def test_two_files_of_one_photo_are_refused(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", SQUARE)])
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    with pytest.raises(AnnotationError, match=r"a\.json and b\.json are of one photo, .*a\.jpg"):
        load_labelme(str(tmp_path))


def test_a_list_of_labels_may_have_a_mark_and_carriage_returns(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", SQUARE)])
    (tmp_path / "labels.txt").write_bytes("\ufeffzebra\r\ndog\r\n".encode())
    assert [c.name for c in load_labelme(str(tmp_path)).categories] == ["zebra", "dog"]
    (tmp_path / "labels.txt").write_text("dog\nzebra\ndog\n")
    with pytest.raises(AnnotationError, match=r"labels\.txt: the class 'dog' stands there twice"):
        load_labelme(str(tmp_path))


def test_whatever_a_value_is_replaced_by_is_read_or_refused_by_name(tmp_path: Path) -> None:
    shapes = [
        shape("dog", SQUARE, group=1, iscrowd=False),
        {**shape("cat", [[2, 3], [5, 4]], "mask"), "mask": png(2, 4)},
        shape("dog", [[12, 12], [14, 14]], "rectangle", group=1),
        shape("dog", [[20, 12], [22, 14]], "circle"),
    ]
    labelme_file(tmp_path, shapes)
    num_read = num_refused = 0
    for content in replaced(json.loads((tmp_path / "a.json").read_text())):
        (tmp_path / "a.json").write_text(json.dumps(content))
        try:
            annotated = load_labelme(str(tmp_path / "a.json"))
        except ValueError as error:
            num_refused += 1
            assert "a.json" in str(error)
            continue
        num_read += 1
        for image in annotated.images:
            for instance in image.instances:
                assert instance.mask(image.height, image.width).any() or instance.area < 4
    assert num_refused > 4 * num_read > 500
