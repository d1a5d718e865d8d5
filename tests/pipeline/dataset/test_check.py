"""The check finds each kind of warning that is planted, nothing in clean data, and refuses what training refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pipeline.dataset.check import ERROR, KINDS, check_data, check_learnable
from pipeline.dataset.check_report import draw_offenders
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotatedSet, AnnotationError
from pipeline.storage.files import Location
from tests.paths import DOCS
from tests.pipeline.dataset.odd_coco import KINDS as KINDS_OF_FILES
from tests.pipeline.dataset.odd_coco import random_damage, write_odd


def test_clean_data_has_no_finding(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    write_coco(awkward_set, str(tmp_path / "x.json"))
    progress: list[tuple[int, int]] = []
    report = check_data(str(tmp_path / "x.json"), progress=lambda done, of: progress.append((done, of)))
    assert report.ok and report.findings == ()
    assert (report.num_images, report.num_instances, report.num_negatives) == (5, awkward_set.num_instances, 1)
    assert sum(report.class_counts.values()) == awkward_set.num_instances
    assert progress[-1] == (5, 5)
    assert draw_offenders(report, str(tmp_path / "pictures")) == []


def test_every_planted_warning_is_found_once(faulty_file: Path) -> None:
    report = check_data(str(faulty_file))
    counts = {finding.kind: finding.count for finding in report.findings}
    expected = dict.fromkeys((kind for kind, (severity, _) in KINDS.items() if severity != ERROR), 1)
    assert counts == {**expected, "polygon_outside": 2}  # that of the object outside, too
    assert report.ok
    examples = {finding.kind: finding.examples[0] for finding in report.findings}
    assert "20 x 30 px (H x W), but annotated as 40 x 60" in examples["size_disagrees"].detail
    assert "30.0 px outside" in examples["polygon_outside"].detail
    assert examples["unreadable_photo"].file_name == "4.png"
    assert examples["duplicate_photo"].image_id == 5
    assert report.class_counts == {"cat": 8, "dog": 0}
    ignored = "annotations that are ignore regions, neither positive nor negative: it has no segmentation"
    assert report.notes[f"{ignored} (annotation 12)"] == 1 and report.notes["classes without an object ('dog')"] == 1


def test_the_report_can_be_written_as_json(faulty_file: Path) -> None:
    report = check_data(str(faulty_file))
    content = json.loads(json.dumps(report.to_dict()))
    assert content["ok"] is True and len(content["findings"]) == len(report.findings)
    assert set(content["findings"][0]) == {"kind", "severity", "meaning", "count", "examples"}
    assert report.count("empty_box") == 1 and report.count("nothing") == 0


def test_examples_are_limited_and_counts_are_not(faulty_file: Path) -> None:
    report = check_data(str(faulty_file), max_examples=1)
    (outside,) = (finding for finding in report.findings if finding.kind == "polygon_outside")
    assert outside.count == 2 and len(outside.examples) == 1


def test_annotations_that_are_refused_are_a_finding_with_their_count(tmp_path: Path) -> None:
    images = [{"id": number} for number in range(30)]
    (tmp_path / "x.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    report = check_data(str(tmp_path / "x.json"))
    (finding,) = report.findings
    assert (finding.kind, finding.count, len(finding.examples), report.ok) == ("refused_annotations", 30, 10, False)
    assert finding.examples[0].detail == "image 0 has no file_name"
    (tmp_path / "x.json").write_text('{"images": [], "annotations": [}')
    assert "line 1 column" in check_data(str(tmp_path / "x.json")).findings[0].examples[0].detail
    with pytest.raises(AnnotationError, match="there is no annotation file"):
        check_data(str(tmp_path / "gone.json"))


def test_a_set_without_an_object_to_learn_is_an_error_with_the_reason(
    awkward_set: AnnotatedSet, tmp_path: Path
) -> None:
    check_learnable(awkward_set, "here")
    crowds = [replace(i, instances=tuple(replace(j, iscrowd=True) for j in i.instances)) for i in awkward_set.images]
    only_crowds = replace(awkward_set, images=tuple(crowds), notes={"masks left out (annotation 3)": 1})
    with pytest.raises(AnnotationError, match=r"^here has no object to learn.*5 images.*\(annotation 3\): 1$"):
        check_learnable(only_crowds, "here")
    no_photos = [replace(image, path=Location(str(tmp_path / "gone.png"))) for image in awkward_set.images]
    with pytest.raises(AnnotationError, match=r"none of the photos .*gone\.png: there is no such file"):
        check_learnable(replace(awkward_set, images=tuple(no_photos)), "here")
    one_photo = replace(awkward_set, images=(*no_photos[:-1], awkward_set.images[-1]))
    check_learnable(one_photo, "here")
    write_coco(only_crowds, str(tmp_path / "x.json"))
    report = check_data(str(tmp_path / "x.json"))
    assert not report.ok and report.count("nothing_to_learn") == 1


@pytest.mark.parametrize("first", [0, pytest.param(50, marks=pytest.mark.long)])
def test_random_damage_is_refused_by_check_and_training_alike_or_gives_samples(first: int, tmp_path: Path) -> None:
    path = write_odd(tmp_path, KINDS_OF_FILES["valid"])
    num_used = 0
    for seed in range(first, 50 if first == 0 else 2_000):
        path.write_text(json.dumps(random_damage(Random(seed))))
        try:
            is_ok = check_data(str(path)).ok
        except AnnotationError:  # no file of a known format
            is_ok = False
        try:
            annotated = load_annotations(str(path))
            check_learnable(annotated, str(path))
        except ValueError:
            assert not is_ok, seed
            continue
        assert is_ok, seed
        samples = SampleSet(annotated)
        assert all(samples[(0, index)].image.ndim == 3 for index in range(len(samples)))
        num_used += 1
    assert num_used > 5


def test_other_formats_are_checked_too(shared_data: Path) -> None:
    report = check_data(AnnotationSource(uri=str(shared_data / "balloon/val"), default_category="balloon"))
    assert report.ok and report.format == "via" and report.class_counts == {"balloon": 50}


def test_the_page_on_annotations_names_every_kind_of_fault() -> None:
    page = (DOCS / "annotations.md").read_text()
    for kind, (severity, meaning) in KINDS.items():
        assert f"| `{kind}` | {severity} | {meaning} |" in page
