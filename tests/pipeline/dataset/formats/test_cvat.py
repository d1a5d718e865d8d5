"""CVAT's XML of images, as CVAT writes it, is read; what it holds is written."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.cvat import decode_row_runs, encode_row_runs, load_cvat, write_cvat
from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import (
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    Prediction,
    mask_to_instance,
)
from pipeline.storage.files import Location

META = "<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task></meta>"
POLYGON = (
    '<polygon label="dog" source="manual" occluded="0" points="3.00,2.00;9.00,2.00;9.00,6.00;3.00,6.00" z_order="0"/>'
)
BOX = (3.0, 2.0, 9.0, 6.0)


def write_xml(
    folder: Path, shapes: str, *, meta: str = META, image: str = 'id="0" name="a.png" width="30" height="20"'
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / "a.png")
    head = f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}'
    text = f"{head}<image {image}>{shapes}</image></annotations>"
    (folder / "annotations.xml").write_text(text)


def test_shapes_of_an_image(tmp_path: Path) -> None:
    write_xml(
        tmp_path,
        POLYGON
        + '<polygon label="cat" points="1,10;4,10;4,12;1,12" group_id="1"/>'
        + '<polygon label="cat" points="6,10;9,10;9,12;6,12" group_id="1"><attribute name="age">7</attribute></polygon>'
        + '<mask label="dog" rle="1, 2, 2, 1" left="20" top="10" width="3" height="2" z_order="0"/>'
        + '<box label="cat" xtl="12" ytl="2" xbr="16.0" ybr="6"/>'
        + '<ellipse label="cat" cx="24" cy="5" rx="3" ry="2"/>'
        + '<points label="dog" points="1,1"/><tag label="dog"/>'
        + '<polygon label="__ignore__" points="20,15;28,15;28,19"/>'
        + '<polygon label="dog" points="12,10;16,10;16,14"><attribute name="iscrowd">true</attribute></polygon>',
    )
    for place in (tmp_path, tmp_path / "annotations.xml"):
        assert detect_format(str(place)) == "cvat"
    annotated = load_annotations(str(tmp_path))
    assert [(c.id, c.name) for c in annotated.categories] == [(1, "dog"), (2, "cat")]
    polygon, pair, mask, box, ellipse, ignored, crowd = annotated.images[0].instances
    assert polygon.box == BOX and polygon.label == 1
    assert pair.label == 2 and pair.mask(20, 30).sum() == 12 and pair.box == (1, 10, 9, 12)
    assert mask.box == (21, 10, 23, 12) and mask.mask(20, 30)[10:12, 20:23].tolist() == [[0, 1, 1], [0, 0, 1]]
    assert box.box == (12, 2, 16, 6) and abs(ellipse.mask(20, 30).sum() - np.pi * 6) < 4
    assert (ignored.label, ignored.iscrowd, crowd.label, crowd.iscrowd) == (0, True, 1, True)
    assert annotated.notes == {
        "box shapes that are read as the pixels inside": 1,
        "ellipse shapes that are read as the pixels inside": 1,
        "shapes without an area left out (points)": 1,
        "shapes without an area left out (tag)": 1,
    }


def test_a_turned_box_turns_about_its_middle(tmp_path: Path) -> None:
    write_xml(tmp_path, '<box label="dog" xtl="8" ytl="8" xbr="16" ybr="10" rotation="90"/>')
    (instance,) = load_cvat(str(tmp_path)).images[0].instances
    assert instance.box == pytest.approx((11, 5, 13, 13))


def test_labels_that_are_not_declared_are_those_used(tmp_path: Path) -> None:
    write_xml(tmp_path, POLYGON, meta="")
    assert [c.name for c in load_cvat(str(tmp_path)).categories] == ["dog"]
    project = META.replace("task", "project")
    write_xml(tmp_path, POLYGON, meta=project)
    assert [c.name for c in load_cvat(str(tmp_path)).categories] == ["dog", "cat"]


def test_photos_are_in_images_and_there_in_the_folder_of_a_subset(tmp_path: Path) -> None:
    write_xml(tmp_path, POLYGON, image='id="0" name="a.png" subset="Train" width="30" height="20"')
    (tmp_path / "images/Train").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "images/Train/a.png")
    assert load_cvat(str(tmp_path)).images[0].path.uri == str(tmp_path / "images/Train/a.png")
    write_xml(tmp_path, POLYGON)
    assert load_cvat(str(tmp_path)).images[0].path.uri == str(tmp_path / "images/a.png")
    assert load_cvat(str(tmp_path), str(tmp_path)).images[0].path.uri == str(tmp_path / "a.png")


REFUSED: dict[str, tuple[str, str]] = {
    "label that is not declared": (POLYGON.replace("dog", "cow"), "polygon 0 has label 'cow'; allowed are dog, cat"),
    "no label": ('<box xtl="1" ytl="1" xbr="2" ybr="2"/>', "box 0 has label ''; allowed are dog"),
    "unknown shape": ('<star label="dog"/>', "star 0 is of a kind that is not known; allowed are polygon, box, mask"),
    "no points": ('<polygon label="dog"/>', ""),
    "half a point": (POLYGON.replace("9.00,6.00", "9.00"), r"polygon 0 has points '9\.00'; allowed is x,y"),
    "text as point": (POLYGON.replace("9.00,6.00", "9.00,x"), "has points 'x'; allowed is a number"),
    "NaN": (POLYGON.replace("9.00,6.00", "9.00,nan"), "has points 'nan'; allowed is a number"),
    "far away": (POLYGON.replace("9.00,6.00", "9.00,1e9"), "has points '1e9'; allowed is a number from -1000000"),
    "box without a side": ('<box label="dog" xtl="1" ytl="1" xbr="2"/>', "box 0 has no ybr"),
    "rotation as text": ('<box label="dog" xtl="1" ytl="1" xbr="2" ybr="3" rotation="x"/>', "has rotation 'x'"),
    "mask too short": (
        '<mask label="dog" rle="1,2" left="1" top="1" width="2" height="2"/>', "has an rle of 3 pixels; allowed is"
    ),
    "mask of negative runs": (
        '<mask label="dog" rle="-1,5" left="1" top="1" width="2" height="2"/>', "has an rle of 4 pixels"
    ),
    "mask of huge runs": (
        f'<mask label="dog" rle="{2**64},5" left="1" top="1" width="2" height="2"/>', "mask 0 "
    ),
    "mask of texts": ('<mask label="dog" rle="a" left="1" top="1" width="2" height="2"/>', "has rle 'a'; allowed are"),
    "mask without an rle": ('<mask label="dog" left="1" top="1" width="2" height="2"/>', "has rle ''"),
    "mask beyond the image": (
        '<mask label="dog" rle="0,4" left="29" top="1" width="2" height="2"/>', r"of 2 x 2 pixels \(H, W\) at \(29, 1\)"
    ),
    "crowd as text": (
        POLYGON.replace("/>", '><attribute name="iscrowd">maybe</attribute></polygon>'), "has iscrowd 'maybe'; allowed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if REFUSED[kind][1]])
def test_wrong_shapes_are_refused_by_file_image_shape_and_value(tmp_path: Path, kind: str) -> None:
    shape, sentence = REFUSED[kind]
    write_xml(tmp_path, shape)
    with pytest.raises(AnnotationError, match=rf"annotations\.xml: image 'a\.png': .*{sentence}"):
        load_cvat(str(tmp_path))


IMAGES: dict[str, tuple[str, str]] = {
    "no name": ('id="0" width="30" height="20"', "image 0 has name ''; allowed is a text"),
    "no size": ('id="0" name="a.png" height="20"', r"image 'a\.png' has width None; allowed is a whole number"),
    "size 0": ('id="0" name="a.png" width="0" height="20"', "has width '0'"),
    "size of half": ('id="0" name="a.png" width="30.5" height="20"', r"has width '30\.5'"),
    "negative size": ('id="0" name="a.png" width="-30" height="20"', "has width '-30'"),
    "long size": (f'id="0" name="a.png" width="{"9" * 30}" height="20"', "has width '999"),
    "many pixels": ('id="0" name="a.png" width="1000000" height="1000000"', "is of 1000000 x 1000000 pixels; allowed"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_wrong_images_are_refused(tmp_path: Path, kind: str) -> None:
    image, sentence = IMAGES[kind]
    write_xml(tmp_path, POLYGON, image=image)
    with pytest.raises(AnnotationError, match=sentence):
        load_cvat(str(tmp_path))


def test_files_that_are_none_of_cvats_images_are_refused(tmp_path: Path) -> None:
    write_xml(tmp_path, POLYGON)
    path = tmp_path / "annotations.xml"
    text = path.read_text()
    path.write_text(text.replace("<image ", '<track id="0" label="dog"></track><image '))
    with pytest.raises(AnnotationError, match="has tracks, which are objects of a video; allowed are images"):
        load_cvat(str(tmp_path))
    path.write_text(text.replace("</annotations>", ""))
    with pytest.raises(AnnotationError, match="is not valid XML: "):
        load_cvat(str(tmp_path))
    path.write_text("<annotations/>")
    with pytest.raises(AnnotationError, match="has no <image>"):
        load_cvat(str(tmp_path))
    path.write_text("<annotation/>")
    with pytest.raises(AnnotationError, match="its root is <annotation>; allowed is <annotations>"):
        load_cvat(str(path))
    path.write_text(text.replace("</annotations>", text[text.index("<image") :]))
    with pytest.raises(AnnotationError, match=r"image 'a\.png' stands there twice"):
        load_cvat(str(tmp_path))
    with pytest.raises(AnnotationError, match="there is no annotation file"):
        load_cvat(str(tmp_path / "gone.xml"))
    (tmp_path / "b").mkdir()
    with pytest.raises(AnnotationError, match=r"should hold annotations\.xml or one XML file, but holds: none"):
        load_cvat(str(tmp_path / "b"))


@pytest.mark.parametrize("points", ["", "5,5", "1,1;9,5", "40,1;50,1;50,5"])
def test_polygons_without_an_area_are_noted(tmp_path: Path, points: str) -> None:
    write_xml(tmp_path, POLYGON.replace("3.00,2.00;9.00,2.00;9.00,6.00;3.00,6.00", points))
    annotated = load_cvat(str(tmp_path))
    assert len(annotated.notes) == 1 and all(i.iscrowd for i in annotated.images[0].instances)


JUNK = [
    "",
    " ",
    "x",
    "-1",
    "0",
    "1.5",
    "1e9",
    "1e308",
    "nan",
    "inf",
    "9" * 400,
    "1,2",
    "a;b",
    ";",
    "日",
    "../z",
    "s3://b/x",
]


def test_whatever_an_attribute_is_replaced_by_is_read_or_refused_by_name(tmp_path: Path) -> None:
    shapes = (
        POLYGON.replace(" z_order", ' group_id="1" z_order')
        + '<mask label="cat" rle="0, 2, 2, 2" left="20" top="10" width="3" height="2" z_order="0" group_id="1"/>'
        + '<box label="cat" xtl="12" ytl="2" xbr="16.0" ybr="6" rotation="10"/>'
        + '<ellipse label="cat" cx="24" cy="5" rx="3" ry="2"><attribute name="iscrowd">false</attribute></ellipse>'
    )
    write_xml(tmp_path, shapes)
    path = tmp_path / "annotations.xml"
    text = path.read_text()
    attributes = [(tag, key) for tag, element in enumerate(ET.fromstring(text).iter()) for key in element.attrib]
    num_read = num_refused = 0
    for tag, key in attributes:
        for junk in [*JUNK, None]:
            root = ET.fromstring(text)
            element = list(root.iter())[tag]
            if junk is None:
                del element.attrib[key]
            else:
                element.set(key, junk)
            path.write_bytes(ET.tostring(root))
            try:
                annotated = load_cvat(str(path))
            except AnnotationError as error:
                num_refused += 1
                assert "annotations.xml: " in str(error)
                continue
            num_read += 1
            for image in annotated.images:
                for instance in image.instances:
                    assert instance.mask(image.height, image.width).any() or instance.area < 4
    assert num_refused > num_read > 100


def test_runs_go_row_by_row_and_start_outside() -> None:
    mask = np.array([[1, 1, 0], [0, 1, 0]], bool)
    assert encode_row_runs(mask) == [0, 2, 2, 1, 1]
    for each in (mask, ~mask, np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        assert np.array_equal(decode_row_runs(encode_row_runs(each), *each.shape), each)


def test_what_is_written_is_cvats(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    ring = np.zeros((20, 30), bool)
    ring[5:15, 5:15] = True
    ring[8:10, 8:10] = False
    found = mask_to_instance(2, ring)
    predicted = Prediction(2, found.box, found.segmentation, area=found.area, score=0.75)
    polygon = Instance(1, BOX, [[3, 2, 9.5, 2, 9, 6]], iscrowd=True)
    image = AnnotatedImage(1, "a.png", Location(str(tmp_path / "a.png")), 20, 30, (predicted, polygon))
    write_cvat(AnnotatedSet((image,), SHAPE_CATEGORIES), str(tmp_path / "out"))
    root = ET.parse(tmp_path / "out/annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label.text for label in root.findall("meta/task/labels/label/name")] == ["circle", "square", "triangle"]
    mask, outline = root.findall("image/*")
    assert mask.attrib | {"rle": ""} == {
        "label": "square", "source": "auto", "occluded": "0", "rle": "", "left": "5", "top": "5", "width": "10",
        "height": "10", "z_order": "0",
    }  # fmt: skip
    assert mask.get("rle", "").startswith("0, 33, 2, 8, 2, ")
    assert [(a.get("name"), a.text) for a in mask] == [("score", "0.7500")]
    assert outline.get("points") == "3,2;9.5,2;9,6" and [(a.get("name"), a.text) for a in outline] == [
        ("iscrowd", "true")
    ]
