"""YOLO segmentation sets, as Ultralytics, Roboflow and Label Studio lay them out, are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.formats.yolo import load_yolo
from pipeline.dataset.types import AnnotationError

HEIGHT, WIDTH = 20, 40
SQUARE = "0.1 0.1 0.4 0.1 0.4 0.6 0.1 0.6"  # XYXY 4, 2, 16, 12 in pixels
DATA = {"train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}}


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def label(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_one(folder: Path, text: str, data: dict | None = None) -> None:
    """A set of one photo, with `data.yaml`."""
    photo(folder / "images/a.png")
    label(folder / "labels/a.txt", text)
    (folder / "data.yaml").write_text(yaml.safe_dump({**DATA, "train": "images", "val": "images", **(data or {})}))


def write_flat(folder: Path) -> None:
    """Ultralytics' own layout: images/PART and labels/PART."""
    (folder / "data.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": "../elsewhere", **DATA}))
    for part in ("train", "val"):
        photo(folder / f"images/{part}/{part}.png")
        label(folder / f"labels/{part}/{part}.txt", f"1 {SQUARE}\n")


def write_nested(folder: Path) -> None:
    """Roboflow's layout: PART/images and PART/labels, and a description that seems to lead upwards."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"train": "../train/images", "val": "../val/images", "nc": 2, "names": ["cat", "dog"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    for part in ("train", "val"):
        photo(folder / f"{part}/images/{part}.png")
        label(folder / f"{part}/labels/{part}.txt", f"1 {SQUARE}\n")


@pytest.mark.parametrize("layout", [write_flat, write_nested])
def test_a_part_is_read_by_its_folder(tmp_path: Path, layout: object) -> None:
    layout(tmp_path / "set")  # type: ignore[operator]
    folders = ("images/val", "labels/val") if layout is write_flat else ("val", "val/images", "val/labels")
    for folder in folders:
        assert detect_format(str(tmp_path / "set" / folder)) == "yolo"
        annotated = load_annotations(str(tmp_path / "set" / folder))
        (image,) = annotated.images
        assert image.file_name == "val.png" and image.path.is_file() and (image.height, image.width) == (HEIGHT, WIDTH)
        (dog,) = image.instances
        assert annotated.categories[dog.label - 1].name == "dog" and annotated.categories[dog.label - 1].id == 1
        assert dog.box == pytest.approx((4, 2, 16, 12)) and dog.mask(HEIGHT, WIDTH).sum() == 120
        assert [category.name for category in annotated.categories] == ["cat", "dog"] and not annotated.notes


@pytest.mark.parametrize("layout", [write_flat, write_nested])
def test_a_set_of_several_parts_is_refused_with_their_folders(tmp_path: Path, layout: object) -> None:
    layout(tmp_path / "set")  # type: ignore[operator]
    for place in ("", "data.yaml"):
        with pytest.raises(AnnotationError, match=r"has several parts, train \(.*\), val \(.*val.*\); give the part"):
            load_annotations(str(tmp_path / "set" / place))
        for part in ("train", "val"):
            (image,) = load_annotations(str(tmp_path / "set" / place), part=part).images
            assert image.file_name == f"{part}.png" and len(image.instances) == 1
        with pytest.raises(AnnotationError, match="has no part 'test'; allowed are train, val"):
            load_annotations(str(tmp_path / "set" / place), part="test")


def test_a_description_that_lies_elsewhere_names_classes_and_parts(tmp_path: Path) -> None:
    write_flat(tmp_path / "sets/coco8")
    (tmp_path / "sets/coco8/data.yaml").unlink()
    (tmp_path / "coco8.yaml").write_text(yaml.safe_dump({"path": "sets/coco8", **DATA}))
    (image,) = load_annotations(str(tmp_path / "coco8.yaml"), part="val").images
    assert image.path.uri == str(tmp_path / "sets/coco8/images/val/val.png") and image.instances[0].label == 2


def test_one_part_is_read_by_the_description(tmp_path: Path) -> None:
    write_one(tmp_path, f"0 {SQUARE}\n")
    for place in ("data.yaml", ""):
        assert load_annotations(str(tmp_path / place)).num_instances == 1


def test_a_list_of_photos_is_read(tmp_path: Path) -> None:
    write_flat(tmp_path)
    (tmp_path / "val.txt").write_text("./images/val/val.png\n\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"val": "val.txt", "names": ["cat", "dog"]}))
    for place in ("val.txt", "data.yaml", ""):
        annotated = load_annotations(str(tmp_path / place))
        assert [image.file_name for image in annotated.images] == ["val.png"] and annotated.num_instances == 1


def test_photos_in_sub_folders_have_their_labels_in_the_same(tmp_path: Path) -> None:
    write_one(tmp_path, f"0 {SQUARE}\n")
    photo(tmp_path / "images/deep/er/b.png")
    label(tmp_path / "labels/deep/er/b.txt", f"1 {SQUARE}\n")
    annotated = load_annotations(str(tmp_path))
    assert [(image.file_name, image.instances[0].label) for image in annotated.images] == [
        ("a.png", 1),
        ("deep/er/b.png", 2),
    ]


@pytest.mark.parametrize("names_file", ["classes.txt", "obj.names"])
def test_other_lists_of_classes_and_labels_beside_the_photos(tmp_path: Path, names_file: str) -> None:
    photo(tmp_path / "set/a.png")
    label(tmp_path / "set/a.txt", f"1 {SQUARE}\n")
    (tmp_path / "set" / names_file).write_text("cat\r\ndog\r\n")
    annotated = load_annotations(str(tmp_path / "set"))
    assert [c.name for c in annotated.categories] == ["cat", "dog"] and annotated.images[0].instances[0].label == 2


def test_one_class_without_a_name_is_the_default_category(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.png")
    label(tmp_path / "labels/a.txt", f"0 {SQUARE}\n")
    annotated = load_annotations(str(tmp_path), default_category="person")
    assert [c.name for c in annotated.categories] == ["person"] and annotated.num_instances == 1
    label(tmp_path / "labels/a.txt", f"1 {SQUARE}\n")
    with pytest.raises(
        AnnotationError, match=r"line 1 is of class '1'; allowed are 0, or a data\.yaml or classes\.txt"
    ):
        load_annotations(str(tmp_path))


def test_the_image_root_is_where_the_photos_are(tmp_path: Path) -> None:
    write_one(tmp_path / "set", f"0 {SQUARE}\n")
    (tmp_path / "set/images").rename(tmp_path / "photos")
    (tmp_path / "set/images").mkdir()
    annotated = load_yolo(str(tmp_path / "set"), str(tmp_path / "photos"))
    assert annotated.images[0].path.uri == str(tmp_path / "photos/a.png") and annotated.num_instances == 1


# Text of the label file -> boxes and crowds that are read, and words of the only note.
READ: dict[str, tuple[str, list[tuple[tuple[float, ...], bool]], str]] = {
    "polygon": (f"0 {SQUARE}", [((4, 2, 16, 12), False)], ""),
    "class with a point": (f"1.0 {SQUARE}", [((4, 2, 16, 12), False)], ""),
    "carriage returns, a mark, blank lines": (f"\ufeff0 {SQUARE}\r\n\r\n", [((4, 2, 16, 12), False)], ""),
    "exponents": ("0 1e-1 1e-1 4e-1 .1 .4 .6 1.e-1 +0.6", [((4, 2, 16, 12), False)], ""),
    "no object": ("", [], ""),
    "across the border": (f"0 {SQUARE.replace('0.1', '-0.1')}", [((0, 0, 16, 12), False)], ""),
    "box": ("0 0.25 0.35 0.3 0.5", [((4, 2, 16, 12), True)], "boxes without an outline, which are ignore regions"),
    "points on one line": ("0 0.1 0.1 0.2 0.1 0.3 0.1", [((4, 2, 12, 3), True)], "without an area that are ignore"),
    "outside": ("0 1.1 0.1 1.2 0.1 1.2 0.2", [], "objects outside the image left out"),
}
REFUSED: dict[str, tuple[str, str]] = {
    "class that has no name": (f"2 {SQUARE}", r"line 1 is of class '2'; allowed are 0 \(cat\), 1 \(dog\)"),
    "class below 0": (f"-1 {SQUARE}", "is of class '-1'"),
    "class of half": (f"0.5 {SQUARE}", r"is of class '0\.5'"),
    "name as class": (f"dog {SQUARE}", "line 1 has 'dog'; allowed are numbers"),
    "NaN": ("0 nan 0.1 0.2 0.1 0.3 0.4", "has 'nan'; allowed are numbers"),
    "infinity": ("0 0.1 inf 0.2 0.1 0.3 0.4", "has 'inf'; allowed are numbers"),
    "commas": ("0,0.1,0.1,0.2,0.1,0.2,0.3", "has '0,0.1"),
    "half a point": ("0 0.1 0.1 0.2 0.1 0.3 0.4 0.5", "has 7 numbers behind the class; allowed are x and y of 3"),
    "no point": ("0", "has 0 numbers behind the class"),
    "one point": ("0 0.1 0.1", "has 2 numbers behind the class"),
    "pixels": ("0 4 2 16 2 16 12", "has 4; allowed are shares of the photo's width and height, 0 to 1"),
    "second line": (f"0 {SQUARE}\n0 x", "line 2 has 'x'"),
}


@pytest.mark.parametrize("kind", READ)
def test_odd_lines_are_read_or_become_ignore_regions(tmp_path: Path, kind: str) -> None:
    text, expected, note = READ[kind]
    write_one(tmp_path, "")
    (tmp_path / "labels/a.txt").write_bytes(text.encode())
    annotated = load_annotations(str(tmp_path))
    found = annotated.images[0].instances
    assert [i.iscrowd for i in found] == [crowd for _, crowd in expected]
    for instance, (box, _) in zip(found, expected, strict=True):
        assert instance.box == pytest.approx(box)
    assert note in " ".join(annotated.notes) and bool(annotated.notes) == bool(note)


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_lines_are_refused_by_file_line_and_value(tmp_path: Path, kind: str) -> None:
    text, sentence = REFUSED[kind]
    write_one(tmp_path, text)
    with pytest.raises(AnnotationError, match=rf"labels/a\.txt: .*{sentence}"):
        load_annotations(str(tmp_path))


# What is changed in data.yaml -> what is said.
YAML: dict[str, tuple[object, str]] = {
    "names absent": ({"names": None}, "has names None; allowed is a list, or an object of numbers and names"),
    "names a text": ({"names": "cat"}, "has names 'cat'"),
    "names empty": ({"names": []}, r"has names \[\]"),
    "a name that YAML takes for true": ({"names": ["cat", True]}, "class 1 is named True; allowed is a text"),
    "a name that is null": ({"names": ["cat", None]}, "class 1 is named None"),
    "a number that is a text": ({"names": {"0": "cat"}}, "has the class '0'; allowed are whole numbers from 0"),
    "one name twice": ({"names": ["cat", "cat"]}, "the class 'cat' stands there twice"),
    "another count": ({"nc": 3}, "has nc 3 and 2 names; allowed is the same"),
    "a part that is a number": ({"train": 7}, "has train 7; allowed is a folder"),
    "no part that is there": ({"train": "gone", "val": "gone"}, "names no folder that is there: .*gone"),
}


@pytest.mark.parametrize("kind", YAML)
def test_wrong_descriptions_are_refused(tmp_path: Path, kind: str) -> None:
    change, sentence = YAML[kind]
    write_one(tmp_path, f"0 {SQUARE}", change)  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match=rf"data\.yaml.*{sentence}"):
        load_annotations(str(tmp_path / "data.yaml"))


@pytest.mark.parametrize("text", ["{", "- \x07", "a: b: c", "&a [*a"])
def test_a_description_that_is_no_yaml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(AnnotationError, match=r"data\.yaml is not valid YAML: "):
        load_annotations(str(tmp_path / "data.yaml"))


def test_photos_and_labels_that_do_not_pair_are_counted(tmp_path: Path) -> None:
    write_one(tmp_path, f"0 {SQUARE}")
    photo(tmp_path / "images/b.png")
    label(tmp_path / "labels/c.txt", f"0 {SQUARE}")
    label(tmp_path / "images/broken.jpg", "no image")
    label(tmp_path / "labels/broken.txt", f"0 {SQUARE}")
    annotated = load_annotations(str(tmp_path))
    assert annotated.notes["photos without a label file, which show no object (b.png)"] == 1
    assert annotated.notes["label files without a photo left out (c.txt)"] == 1
    assert any(note.startswith("photos that cannot be read (broken.jpg: ") for note in annotated.notes)
    assert [(image.file_name, len(image.instances)) for image in annotated.images] == [
        ("a.png", 1),
        ("b.png", 0),
        ("broken.jpg", 0),
    ]


def test_a_set_without_a_label_file_or_with_one_for_two_photos_is_refused(tmp_path: Path) -> None:
    write_one(tmp_path, f"0 {SQUARE}")
    photo(tmp_path / "images/a.jpg")
    with pytest.raises(AnnotationError, match=r"two photos have one label file, .*a\.txt"):
        load_annotations(str(tmp_path))
    (tmp_path / "images/a.jpg").unlink()
    (tmp_path / "labels/a.txt").unlink()
    with pytest.raises(AnnotationError, match="none of its 1 photos has a label file"):
        load_annotations(str(tmp_path))


def test_a_photo_with_an_exif_orientation_is_labelled_as_it_is_shown(tmp_path: Path) -> None:
    write_one(tmp_path, f"0 {SQUARE}")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/a.png", exif=exif)
    (image,) = load_annotations(str(tmp_path)).images
    assert (image.height, image.width) == (WIDTH, HEIGHT)
    assert image.instances[0].box == pytest.approx((2, 4, 8, 24))


def test_a_relative_place_finds_the_description_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flat(tmp_path)
    for start, place in ((tmp_path, "images/val"), (tmp_path / "images", "val"), (tmp_path / "labels/val", ".")):
        monkeypatch.chdir(start)
        annotated = load_annotations(place)
        assert [c.name for c in annotated.categories] == ["cat", "dog"] and annotated.num_instances == 1


def test_labelme_files_in_a_folder_called_labels_are_labelme(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.png")
    label(tmp_path / "labels/labels.txt", "dog\n")
    shape = {"label": "dog", "points": [[1, 1], [9, 1], [9, 5]], "shape_type": "polygon"}
    content = {"shapes": [shape], "imagePath": "../images/a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (tmp_path / "labels/a.json").write_text(json.dumps(content))
    assert detect_format(str(tmp_path / "labels")) == "labelme"


def test_supervision_reads_what_is_written(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    write_one(tmp_path, f"0 {SQUARE}")
    read = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    (_, _, detections) = next(iter(read))
    ours = load_annotations(str(tmp_path)).images[0].instances[0].mask(HEIGHT, WIDTH)
    assert np.count_nonzero(detections.mask[0] != ours) <= 44  # their filling includes the outline
