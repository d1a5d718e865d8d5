"""The format of a file or folder is detected, and others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotationError


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"images": [], "annotations": []}', "coco"),
        ('{"version": "5", "shapes": [], "imagePath": "x"}', "labelme"),
        ('{"a": {"filename": "a", "regions": {}}}', "via"),
        ('{"_via_img_metadata": {}}', "via"),
        ('\ufeff [{"data": {"image": "a"}, "annotations": []}]', "labelstudio"),
        ('[{"data": {"image": "a", "images": 1}, "predictions": []}]', "labelstudio"),
    ],
)
def test_the_format_of_a_file_is_detected_from_its_content(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert detect_format(str(tmp_path / "x.json")) == expected


def test_other_files_and_folders_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"hello": 1}')
    with pytest.raises(AnnotationError, match="no annotation file that is understood"):
        load_annotations(str(tmp_path / "x.json"))
    with pytest.raises(AnnotationError, match=r"there is no annotation file or folder .*/gone"):
        load_annotations(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match=r"looked for via_region_data\.json"):
        load_annotations(str(tmp_path / "empty"))
    with pytest.raises(AnnotationError, match="no annotation format 'pascal'; allowed are auto, coco"):
        load_annotations(AnnotationSource(uri=str(tmp_path), format="pascal"))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ("Annotations/a.xml", "JPEGImages/a.jpg"),
            "these look like VOC, but there is no SegmentationObject/, and boxes",
        ),
        (("images/a.jpg", "labels/a.xyz"), r"these look like YOLO, but labels/ holds no \.txt file"),
        (
            ("PNGImages/a.png",),
            r"these look like photos \(PNGImages/\), but there is neither labels/ nor masks/ beside",
        ),
        (("a.jpg",), "these look like photos, but there are no annotations beside them"),
        (("a.xml",), "these look like XML, but none of CVAT's"),
        (("set.zip",), r"these look like a download that is not unpacked, set\.zip"),
        (("a.bin",), "that are understood: looked for"),
    ],
)
def test_a_folder_that_is_none_is_told_what_it_looks_like(
    tmp_path: Path, files: tuple[str, ...], sentence: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("<annotation/>")
    with pytest.raises(AnnotationError, match=rf"{sentence}.*looked for via_region_data\.json|{sentence}"):
        load_annotations(str(tmp_path))


def test_files_that_are_no_annotations_are_told_what_they_look_like(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"image_id": 1, "category_id": 1, "score": 0.5}]')
    with pytest.raises(AnnotationError, match="these look like COCO results, but have no 'images' and 'categories'"):
        load_annotations(str(tmp_path / "r.json"))
    (tmp_path / "a.xml").write_text("<annotation/>")
    with pytest.raises(AnnotationError, match="CVAT's XML has the root <annotations>"):
        load_annotations(str(tmp_path / "a.xml"))


def test_categories_without_an_object_are_dropped_where_wanted(tmp_path: Path) -> None:
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 9}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}
        ],
        "categories": [{"id": 0, "name": "animals", "supercategory": "none"}, {"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    for drop, names in ((False, ["animals", "cat"]), (True, ["cat"])):
        annotated = load_annotations(str(tmp_path / "a.json"), drop_empty_categories=drop)
        assert [category.name for category in annotated.categories] == names
