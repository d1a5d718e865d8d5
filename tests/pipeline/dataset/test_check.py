"""The check finds each kind of fault that is planted, and nothing in clean data."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.check import ERROR, KINDS, check_data
from pipeline.dataset.check_report import draw_offenders
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.transforms.augment import build_transforms
from pipeline.dataset.types import AnnotatedSet, AnnotationError
from tests.paths import DOCS

SQUARE = [[5.0, 4.0, 15.0, 4.0, 15.0, 14.0, 5.0, 14.0]]


def annotation(number: int, image_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [5, 4, 10, 10],
        "area": 100,
        "iscrowd": 0,
        "segmentation": SQUARE,
        **changes,
    }


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "height": 20, "width": 30, **changes}


@pytest.fixture
def faulty_file(tmp_path: Path, write_photo: Callable[..., np.ndarray]) -> Path:
    """One fault of each kind that a COCO file can have."""
    for number in range(1, 8):
        write_photo(tmp_path / f"{number}.png", 20, 30, orientation=6 if number == 6 else None)
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:200])
    content = {
        "images": [
            image(1),
            image(2, labelled_category_ids=[2]),
            image(2, file_name="1.png"),  # duplicate_image_id
            image(3, height=40, width=60),  # size_disagrees
            image(4),  # unreadable_photo
            image(5, file_name="1.png"),  # duplicate_photo
            image(6),  # exif_not_applied
            image(7),
        ],
        "annotations": [
            annotation(1, 1),
            annotation(1, 7),  # duplicate_annotation_id
            annotation(2, 2),  # class_not_looked_for
            annotation(3, 7, category_id=9),  # unknown_category
            annotation(4, 99),  # unlisted_image
            annotation(5, 7, bbox=[5, 4, 0, 10]),  # empty_box (and box_off_mask)
            annotation(6, 7, segmentation=[[5.2, 4.2, 5.3, 4.2, 5.3, 4.3]], bbox=[5, 4, 1, 1]),  # empty_mask
            annotation(7, 7, segmentation=[[5, 4, 15, 4, 15, 28.5]], bbox=[5, 4, 10, 16]),  # polygon_outside
            annotation(8, 7, bbox=[1, 4, 14, 10]),  # box_off_mask
            annotation(9, 7, bbox=[5, 3, 10, 10], segmentation={"size": [5, 5], "counts": [25]}),  # unusable_mask
            annotation(10, 7, bbox=[5.5, 4, 10, 10]),
            annotation(11, 7, bbox=[5.5, 4, 10, 10]),  # duplicate_object
            annotation(12, 7, bbox=[6, 4, 9, 10], keypoints=[1, 2, 2]),  # wrong_keypoints
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content))
    return path


def test_clean_data_has_no_finding(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    write_coco(awkward_set, str(tmp_path / "x.json"))
    seen: list[tuple[int, int]] = []
    report = check_data(str(tmp_path / "x.json"), progress=lambda done, of: seen.append((done, of)))
    assert report.ok and report.findings == ()
    assert (report.num_images, report.num_instances, report.num_negatives) == (5, awkward_set.num_instances, 1)
    assert sum(report.class_counts.values()) == awkward_set.num_instances
    assert seen[-1] == (5, 5)
    assert draw_offenders(report, str(tmp_path / "pictures")) == []


def test_every_planted_fault_is_found_once(faulty_file: Path) -> None:
    report = check_data(str(faulty_file))
    found = {finding.kind: finding.count for finding in report.findings}
    expected = dict.fromkeys(KINDS, 1)
    del expected["unreadable_annotations"]
    # The box of width 0 is off its mask as well.
    assert found == {**expected, "box_off_mask": 2}
    assert not report.ok
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=lambda severity: severity != ERROR)
    examples = {finding.kind: finding.examples[0] for finding in report.findings}
    assert "20 x 30 px (H x W), but annotated as 40 x 60" in examples["size_disagrees"].detail
    assert "annotation 3 has category_id 9" in examples["unknown_category"].detail
    assert "8.5 px outside" in examples["polygon_outside"].detail
    assert examples["unreadable_photo"].file_name == "4.png"
    assert examples["duplicate_image_id"].image_id == 2
    assert report.class_counts == {"cat": 11, "dog": 0}


def test_the_report_is_plain_values(faulty_file: Path) -> None:
    report = check_data(str(faulty_file))
    content = json.loads(json.dumps(report.to_dict()))
    assert content["ok"] is False and len(content["findings"]) == len(report.findings)
    assert set(content["findings"][0]) == {"kind", "severity", "meaning", "count", "examples"}
    assert report.count("empty_box") == 1 and report.count("nothing") == 0


def test_examples_are_limited_and_counts_are_not(faulty_file: Path) -> None:
    report = check_data(str(faulty_file), max_examples=1)
    (off,) = (finding for finding in report.findings if finding.kind == "box_off_mask")
    assert off.count == 2 and len(off.examples) == 1


def test_pictures_show_the_offender_in_red(faulty_file: Path, tmp_path: Path) -> None:
    report = check_data(str(faulty_file))
    written = draw_offenders(report, str(tmp_path / "pictures"))
    names = {Path(uri).name for uri in written}
    assert {"polygon_outside_00.png", "empty_box_00.png", "size_disagrees_00.png"} <= names
    assert not any(name.startswith(("unreadable_photo", "unlisted_image")) for name in names)
    with Image.open(tmp_path / "pictures/polygon_outside_00.png") as picture:
        assert picture.size == (30 + 16, 20 + 16)  # a border of 8 px
        red = np.argwhere((np.array(picture) == (255, 0, 0)).all(axis=2))
    # From the corner at (x 5, y 4) of the photo down to the point that lies outside it.
    assert red.min(axis=0).tolist() == [12, 13] and red[:, 0].max() > 8 + 20
    assert len(draw_offenders(report, str(tmp_path / "few"), max_pictures=2)) == 2


def test_annotations_that_cannot_be_read_are_a_finding(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    report = check_data(str(tmp_path / "x.json"))
    assert [finding.kind for finding in report.findings] == ["unreadable_annotations"]
    assert "file_name" in report.findings[0].examples[0].detail
    with pytest.raises(AnnotationError, match="there is no annotation file"):
        check_data(str(tmp_path / "gone.json"))


def test_other_formats_are_checked_too(shared_data: Path) -> None:
    report = check_data(str(shared_data / "balloon/val"), default_category="balloon")
    assert report.ok and report.format == "via" and report.class_counts == {"balloon": 50}


def test_the_page_names_every_kind_of_fault_and_every_setting() -> None:
    page = (DOCS / "annotations.md").read_text()
    for kind, (severity, meaning) in KINDS.items():
        assert f"| `{kind}` | {severity} | {meaning} |" in page
    settings = set(inspect.signature(build_transforms).parameters) - {"keypoint_names"}
    assert not {name for name in settings if f"`{name}`" not in page}
