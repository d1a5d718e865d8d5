"""The format of a file or folder is detected, and others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

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
