"""The page of labels: its counts are those of the check, faults come first, names are escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.check import DataReport, check_data
from pipeline.dataset.check_report import displayable
from pipeline.manifest import to_json
from pipeline.results.label_report import IGNORED, build_label_report

NASTY = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def labels(tmp_path: Path) -> DataReport:
    """Twelve photos with a square each, of which the fourth has the same square twice, and the last photo is gone."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(12):
        name = f"{number}.png"
        if number < 11:
            Image.fromarray(np.full((40, 60, 3), 20 * number, np.uint8)).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "height": 40, "width": 60})
        for _ in range(2 if number == 3 else 1):
            square = [10, 10, 30, 10, 30, 25, 10, 25]
            entry = {"id": len(annotations), "image_id": number, "category_id": 1 + (number == 2), "iscrowd": 0}
            annotations.append(entry | {"segmentation": [square], "bbox": [10, 10, 20, 15], "area": 300})
    annotations[1] |= {"iscrowd": 1}
    categories = [{"id": 1, "name": NASTY}, {"id": 2, "name": "rare"}]
    (tmp_path / "labels.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return check_data(str(tmp_path / "labels.json"))


def gallery_of(html: str) -> list[dict[str, Any]]:
    found = re.search(r'id="data">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])["pictures"]


def test_photos_with_faults_come_first_and_the_object_is_marked(labels):
    html = build_label_report(labels, displayable)
    pictures = gallery_of(html)
    assert pictures[0]["id"] == "3.png" and pictures[0]["note"].startswith("duplicate_object: ")
    assert [("fault" in o) for o in pictures[0]["truth"]] == [False, True]
    assert {picture["id"] for picture in pictures} == {f"{number}.png" for number in range(11)}
    crowd = next(picture for picture in pictures if picture["id"] == "1.png")["truth"]
    assert "m" not in crowd[0] and pictures[0]["truth"][0]["m"] == []
    assert pictures[0]["truth"][0]["b"] == [10, 10, 30, 25]
    assert "1 chosen images cannot be shown" in html and "<b>11.png</b>" in html
    assert "<img src=x" not in html and "<td>duplicate_object</td>" in html
    assert "<b>12</b>images" in html and "<b>13</b>objects" in html


def test_of_many_photos_each_class_is_seen(labels):
    few = gallery_of(build_label_report(labels, displayable, num_images=6))
    assert "rare" in {o["c"] for picture in few for o in picture["truth"]} and len(few) <= 6


def test_refused_annotations_have_a_page_without_photos(tmp_path: Path):
    (tmp_path / "labels.json").write_text('{"images": [], "annotations": [{"id": 1}], "categories": []}')
    report = check_data(str(tmp_path / "labels.json"))
    html = build_label_report(report, displayable)
    assert "refused_annotations" in html and "Training refuses" in html and 'id="gallery"' not in html


def test_an_ignored_region_has_a_name_of_its_own(labels):
    from dataclasses import replace

    assert labels.annotated is not None
    image = labels.annotated.images[0]
    region = replace(image.instances[0], label=0, iscrowd=True)
    annotated = replace(labels.annotated, images=(replace(image, instances=(region,)),))
    (picture,) = gallery_of(build_label_report(replace(labels, annotated=annotated, findings=()), displayable))
    assert picture["truth"][0]["c"] == IGNORED
    assert b"annotated" not in to_json(labels.to_dict())
