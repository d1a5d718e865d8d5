"""The check finds each kind of fault that is planted, and nothing in clean data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.dataset.check import ERROR, KINDS, check_data
from pipeline.dataset.check_report import draw_offenders
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotatedSet, AnnotationError
from tests.paths import DOCS


def test_clean_data_has_no_finding(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    write_coco(awkward_set, str(tmp_path / "x.json"))
    progress: list[tuple[int, int]] = []
    report = check_data(str(tmp_path / "x.json"), progress=lambda done, of: progress.append((done, of)))
    assert report.ok and report.findings == ()
    assert (report.num_images, report.num_instances, report.num_negatives) == (5, awkward_set.num_instances, 1)
    assert sum(report.class_counts.values()) == awkward_set.num_instances
    assert progress[-1] == (5, 5)
    assert draw_offenders(report, str(tmp_path / "pictures")) == []


def test_every_planted_fault_is_found_once(faulty_file: Path) -> None:
    report = check_data(str(faulty_file))
    counts = {finding.kind: finding.count for finding in report.findings}
    expected = dict.fromkeys(KINDS, 1)
    del expected["unreadable_annotations"]
    # The box of width 0 does not fit its mask either.
    assert counts == {**expected, "box_off_mask": 2}
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


def test_the_report_can_be_written_as_json(faulty_file: Path) -> None:
    report = check_data(str(faulty_file))
    content = json.loads(json.dumps(report.to_dict()))
    assert content["ok"] is False and len(content["findings"]) == len(report.findings)
    assert set(content["findings"][0]) == {"kind", "severity", "meaning", "count", "examples"}
    assert report.count("empty_box") == 1 and report.count("nothing") == 0


def test_examples_are_limited_and_counts_are_not(faulty_file: Path) -> None:
    report = check_data(str(faulty_file), max_examples=1)
    (off,) = (finding for finding in report.findings if finding.kind == "box_off_mask")
    assert off.count == 2 and len(off.examples) == 1


def test_annotations_that_cannot_be_read_are_a_finding(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    report = check_data(str(tmp_path / "x.json"))
    assert [finding.kind for finding in report.findings] == ["unreadable_annotations"]
    assert "file_name" in report.findings[0].examples[0].detail
    with pytest.raises(AnnotationError, match="there is no annotation file"):
        check_data(str(tmp_path / "gone.json"))


def test_other_formats_are_checked_too(shared_data: Path) -> None:
    report = check_data(AnnotationSource(uri=str(shared_data / "balloon/val"), default_category="balloon"))
    assert report.ok and report.format == "via" and report.class_counts == {"balloon": 50}


def test_the_page_on_annotations_names_every_kind_of_fault() -> None:
    page = (DOCS / "annotations.md").read_text()
    for kind, (severity, meaning) in KINDS.items():
        assert f"| `{kind}` | {severity} | {meaning} |" in page
