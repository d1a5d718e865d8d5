"""PASCAL VOC folders, as other programs write them, are read; what VOC cannot hold is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.id_masks import voc_palette
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.formats.voc import load_voc, write_voc
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, mask_to_instance
from pipeline.storage.files import Location

XML = "<annotation><filename>p.jpg</filename>{}</annotation>"


OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox></bndbox></object>"


def save_palette(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(voc_palette())
    image.save(path)


def make_voc(folder: Path, *, class_map: bool, names: tuple[str, str] = ("dog", "person")) -> np.ndarray:
    """Writes a VOC folder of one photo with two objects, void around the first one, and gives its object numbers."""
    ids = np.zeros((20, 30))
    ids[4:12, 4:12] = 255
    ids[5:11, 5:11] = 1
    ids[10:18, 20:28] = 2
    save_palette(folder / "SegmentationObject/p.png", ids)
    if class_map:
        classes = np.choose(np.where(ids == 255, 3, ids).astype(int), [0, 12, 15, 255])
        save_palette(folder / "SegmentationClass/p.png", classes)
    (folder / "Annotations").mkdir()
    objects = OBJECT.format(names[0], 0) + OBJECT.format(names[1], 1)
    (folder / "Annotations/p.xml").write_text(XML.format(objects))
    (folder / "JPEGImages").mkdir()
    Image.new("RGB", (30, 20)).save(folder / "JPEGImages/p.jpg")
    return ids


@pytest.mark.parametrize("class_map", [False, True])
def test_voc_classes_come_from_the_class_map_or_the_xml(tmp_path: Path, class_map: bool) -> None:
    ids = make_voc(tmp_path, class_map=class_map)
    annotated = load_annotations(str(tmp_path))
    assert len(annotated.categories) == 20
    dog, person = annotated.images[0].instances
    assert [annotated.categories[i.label - 1].name for i in (dog, person)] == ["dog", "person"]
    assert (dog.iscrowd, person.iscrowd) == (False, True)
    assert np.array_equal(dog.mask(20, 30), ids == 1) and np.array_equal(person.mask(20, 30), ids == 2)
    assert annotated.images[0].path.uri.endswith("JPEGImages/p.jpg")


def test_voc_lists_choose_images_and_other_class_names_are_taken_from_the_xml(tmp_path: Path) -> None:
    make_voc(tmp_path, class_map=False, names=("zebra", "ant"))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("p\nabsent\n")
    annotated = load_annotations(str(tmp_path / "ImageSets/Segmentation/val.txt"))
    assert [c.name for c in annotated.categories] == ["ant", "zebra"]
    assert annotated.notes == {"listed names without a file (absent)": 1}


def test_voc_faults_are_named(tmp_path: Path) -> None:
    make_voc(tmp_path, class_map=False)
    (tmp_path / "Annotations/p.xml").write_text(XML.format(OBJECT.format("dog", 0)))
    with pytest.raises(AnnotationError, match=r"object 2 has no class.*lists 1 objects"):
        load_voc(str(tmp_path))
    (tmp_path / "Annotations/p.xml").write_text("<annotation>")
    with pytest.raises(AnnotationError, match="not valid XML"):
        load_voc(str(tmp_path))
    Image.new("RGB", (30, 20)).save(tmp_path / "SegmentationObject/p.png")
    (tmp_path / "Annotations/p.xml").unlink()
    with pytest.raises(AnnotationError, match="palette, grey or 16-bit image, not of mode RGB"):
        load_voc(str(tmp_path))
    with pytest.raises(AnnotationError, match="no VOC folder with instance masks"):
        load_voc(str(tmp_path / "nowhere"))


def test_voc_holds_254_objects(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[3, 3] = True
    image = AnnotatedImage(1, "a.png", Location("a.png"), 20, 30, (mask_to_instance(1, mask),) * 255)
    with pytest.raises(AnnotationError, match="has 255 objects; VOC holds at most 254"):
        write_voc(AnnotatedSet((image,), SHAPE_CATEGORIES), str(tmp_path))


def write_list(root: Path, text: str) -> str:
    path = root / "ImageSets/Segmentation/val.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode())
    return str(path)


def write_xml(root: Path, *objects: tuple[str, str]) -> None:
    (root / "Annotations/p.xml").write_text(XML.format("".join(OBJECT.format(*entry) for entry in objects)))


# What is done to the folder -> the sentence, or None where it is read.
CHANGES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "no change": (lambda root: None, None),
    "XML of another encoding": (
        lambda root: (root / "Annotations/p.xml").write_bytes(
            '<?xml version="1.0" encoding="latin1"?><annotation/>'.encode("latin1")
        ),
        "object 1 has no class: .* lists 0 objects",
    ),
    "XML cut short": (
        lambda root: (root / "Annotations/p.xml").write_text("<annotation>\n<object>"),
        r"Annotations/p\.xml is not valid XML: .*line 2, column 8",
    ),
    "XML of an unknown encoding": (
        lambda root: (root / "Annotations/p.xml").write_text('<?xml version="1.0" encoding="x-none"?><annotation/>'),
        r"p\.xml is not valid XML: unknown encoding",
    ),
    "no XML": (lambda root: (root / "Annotations/p.xml").unlink(), "object 1 has no class"),
    "XML shorter than the mask": (lambda root: write_xml(root, ("dog", "0")), "object 2 has no class: .* lists 1 obj"),
    "XML longer than the mask": (lambda root: write_xml(root, ("dog", "0"), ("cat", "1"), ("cow", "0")), None),
    "no difficult": (lambda root: write_xml(root, ("dog", ""), ("cat", "Unspecified")), None),
    "difficult as a word": (
        lambda root: write_xml(root, ("dog", "0"), ("cat", "yes")),
        r"p\.xml: object 2 has <difficult> 'yes'; allowed are 0 and 1",
    ),
    "object without a name": (
        lambda root: write_xml(root, ("", "0"), ("cat", "0")), r"p\.xml: object 1 is of class ''; allowed are aeroplane"
    ),
    "class that the list lacks": (
        lambda root: (root / "class_names.txt").write_text("_background_\ndog\n"),
        r"Annotations/p\.xml: object 2 is of class 'person'; allowed are dog",
    ),
    "list with a mark": (
        lambda root: (root / "class_names.txt").write_bytes("\ufeff_background_\r\ndog \r\nperson\r\n\r\n".encode()),
        None,
    ),
    "list without background": (
        lambda root: (root / "class_names.txt").write_text("dog\nperson\n"), "must have _background_ in its first line"
    ),
    "list with a blank line": (
        lambda root: (root / "class_names.txt").write_text("_background_\n\ndog\nperson\n"), "none blank"
    ),
    "list with a class twice": (
        lambda root: (root / "class_names.txt").write_text("_background_\ndog\ndog\nperson\n"), "'dog' stands there"
    ),
    "empty list": (lambda root: (root / "class_names.txt").write_text(""), "must have _background_ in its first"),
    "class map of another size": (
        lambda root: save_palette(root / "SegmentationClass/p.png", np.ones((20, 29))), r"of size \(20, 29\), its inst"
    ),
    "class map beyond the list": (
        lambda root: save_palette(root / "SegmentationClass/p.png", np.full((20, 30), 21)),
        r"SegmentationClass/p\.png: object 1 is of class 21; allowed are 1 to 20",
    ),
    "mask cut short": (
        lambda root: (root / "SegmentationObject/p.png").write_bytes(b"\x89PNG"), r"p\.png cannot be read"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_folders_are_read_or_refused_by_file_and_object(tmp_path: Path, kind: str) -> None:
    make_voc(tmp_path, class_map=False)
    change, sentence = CHANGES[kind]
    change(tmp_path)
    if sentence is None:
        assert [i.label > 0 for i in load_voc(str(tmp_path)).images[0].instances] == [True, True]
        return
    with pytest.raises(AnnotationError, match=sentence):
        load_voc(str(tmp_path))


@pytest.mark.parametrize("text", ["p\n", "p \r\n\r\n", "\ufeffp\n", "p  1\n", "  p"])
def test_lists_of_every_kind_name_the_photo(tmp_path: Path, text: str) -> None:
    make_voc(tmp_path, class_map=True)
    annotated = load_voc(write_list(tmp_path, text))
    assert [image.image_id for image in annotated.images] == ["p"] and not annotated.notes


def test_a_listed_name_may_have_blanks_but_stands_there_once(tmp_path: Path) -> None:
    ids = make_voc(tmp_path, class_map=False)
    save_palette(tmp_path / "SegmentationObject/my photo.png", 0 * ids)
    uri = write_list(tmp_path, "my photo\np\n")
    negative, _ = load_voc(uri).images
    assert (negative.image_id, negative.instances) == ("my photo", ())
    Path(uri).write_text("p\nmy photo\np\n")
    with pytest.raises(AnnotationError, match=r"val\.txt: the image 'p' stands there twice"):
        load_voc(uri)


def test_of_two_photos_of_one_name_the_jpg_is_used_and_that_is_noted(tmp_path: Path) -> None:
    make_voc(tmp_path, class_map=True)
    Image.new("RGB", (3, 3)).save(tmp_path / "JPEGImages/p.png")
    annotated = load_voc(str(tmp_path))
    assert annotated.images[0].file_name == "p.jpg"
    assert annotated.notes == {"photos of one name, of which the .jpg or else the first is used (p.jpg, p.png)": 1}


@pytest.mark.parametrize("file_name", [" a.png", "a\nb.png", "a\x01.png"])
def test_a_photo_that_a_list_cannot_name_is_refused(tmp_path: Path, file_name: str) -> None:
    image = AnnotatedImage(1, file_name, Location("a.png"), 20, 30)
    with pytest.raises(AnnotationError, match="which VOC's lists of one name a line cannot hold"):
        write_voc(AnnotatedSet((image,), SHAPE_CATEGORIES), str(tmp_path))
