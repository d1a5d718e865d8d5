"""COCO files are checked against one schema: what is read, noted, ignored and refused, and how files are decoded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.dataset.formats.coco import load_coco
from pipeline.dataset.formats.coco_file import CocoFile, check_coco, coco_box, read_coco
from pipeline.dataset.types import AnnotationError
from pipeline.storage.files import Location
from tests.pipeline.dataset.odd_coco import HEIGHT, KINDS, SQUARE, WIDTH, Kind, valid_content, write_odd


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_read_noted_ignored_or_refused(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = str(write_odd(tmp_path, kind))
    if kind.outcome == "refused":
        with pytest.raises(AnnotationError) as caught:
            read_coco(Location(path))
        assert kind.words in str(caught.value) and str(caught.value).startswith(path)
        return
    annotated = load_coco(path)
    instances = [instance for image in annotated.images for instance in image.instances]
    if kind.outcome == "read":
        assert annotated.notes == {} and len(instances) == 2 and not any(i.iscrowd for i in instances)
    elif kind.outcome == "ignored":
        assert [i.iscrowd for i in instances] == [True, False] and instances[0].label == 1
        assert any(kind.words in note for note in annotated.notes)
        x1, y1, x2, y2 = instances[0].box
        assert instances[0].mask(HEIGHT, WIDTH).sum() == (x2 - x1) * (y2 - y1) > 0
    else:
        assert not any(i.iscrowd for i in instances)


def records(file: CocoFile) -> object:
    return file.images, file.annotations, file.categories, file.notes


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.outcome != "refused"])
def test_a_parsed_object_is_checked_as_its_file(name: str, tmp_path: Path) -> None:
    path = write_odd(tmp_path, KINDS[name])
    content = json.loads(path.read_text())
    before = json.dumps(content)
    assert records(check_coco(content, str(path))) == records(read_coco(Location(str(path))))
    assert json.dumps(content) == before


def test_the_first_ten_faults_are_named_and_all_are_counted() -> None:
    content = valid_content()
    content["annotations"] = [{**content["annotations"][0], "id": number, "iscrowd": "0"} for number in range(25)]
    with pytest.raises(AnnotationError, match=r"annotation 9 has iscrowd '0'.*; and 15 more$") as caught:
        check_coco(content, "x.json")
    assert caught.value.count == 25 and len(caught.value.faults) == 10


def test_notes_name_the_first_ten() -> None:
    content = valid_content()
    content["annotations"] = [{**content["annotations"][0], "id": number, "segmentation": []} for number in range(12)]
    ((note, count),) = check_coco(content, "x.json").notes.items()
    assert count == 12 and note.endswith("(" + ", ".join(f"annotation {number}" for number in range(10)) + ", ...)")


def test_unknown_categories_are_kept_or_dropped_on_demand() -> None:
    content = valid_content()
    content["annotations"][0]["category_id"] = 9
    content["images"][0]["labelled_category_ids"] = [9]
    assert [a.category_id for a in check_coco(content, "x", unknown="ignore").annotations] == [9, 2]
    assert [a.category_id for a in check_coco(content, "x", unknown="drop").annotations] == [2]
    with pytest.raises(AnnotationError, match="'keep' is no choice"):
        check_coco(content, "x", unknown="keep")


def test_the_region_of_an_unusable_mask_lies_inside_the_image() -> None:
    content = valid_content()
    content["annotations"][0] |= {"bbox": [70, -10, 1e6, 1e6], "segmentation": None}
    (annotation, _) = check_coco(content, "x").annotations
    assert annotation.segmentation == [[70, 0, 80, 0, 80, 60, 70, 60]] and annotation.bbox == [70, -10, 1e6, 1e6]
    assert (annotation.iscrowd, annotation.fault) == (1, "it has no segmentation")


def test_values_are_not_rounded_or_clipped() -> None:
    content = valid_content()
    content["annotations"][0] |= {"bbox": [-5.25, 3.125, 500, 40], "area": 12.34567}
    (annotation, _) = check_coco(content, "x").annotations
    assert coco_box(annotation) == [-5.25, 3.125, 500, 40] and annotation.area == 12.34567
    assert annotation.segmentation == SQUARE and annotation.iscrowd == 0 and annotation.fault == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_are_read_in_any_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    path = write_odd(tmp_path, Kind(lambda content: content["categories"][0].update(name="Übergröße"), "read"))
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    assert load_coco(str(path)).categories[0].name == "Übergröße"


def test_files_that_are_no_json_are_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"images": [\n  {"id": 1,')
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON: .*line 2 column"):
        read_coco(Location(str(path)))
    path.write_bytes('{"images": [],\n "categories": [{"id": 1, "name": "é"}]}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"byte 0xe9 in line 2, column 36; if it is in Latin-1 or Windows-1252"):
        read_coco(Location(str(path)))
    for text in ("[]", "null", "{}", '"x"'):
        path.write_text(text)
        with pytest.raises(AnnotationError, match="has no list 'images', so it is no COCO annotation file"):
            read_coco(Location(str(path)))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_list_that_stands_there_twice_is_refused(key: str, tmp_path: Path) -> None:
    path = write_odd(tmp_path, KINDS["valid"])
    once = path.read_text()
    path.write_text(f'{once[:-1]}, "{key}": []}}')
    with pytest.raises(AnnotationError, match=rf"ann\.json has the list '{key}' twice; allowed is once"):
        read_coco(Location(str(path)))
    path.write_text(once.replace('"cat"', f'"{key}"'))
    assert read_coco(Location(str(path))).categories[0].name == key
