"""Conversion to every format and back keeps masks, classes and crowds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.categories import Category
from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.check import check_data
from pipeline.dataset.check_report import draw_offenders
from pipeline.dataset.convert import convert_annotations
from pipeline.dataset.formats.cityscapes import write_cityscapes
from pipeline.dataset.formats.coco import to_coco, write_coco
from pipeline.dataset.formats.labelme import write_labelme
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.formats.via import write_via
from pipeline.dataset.formats.voc import write_voc
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.photos import load_photo
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, mask_to_instance
from pipeline.storage.files import Location
from tests.chaos.s3 import make_bucket, settings_for


def content(annotated: AnnotatedSet) -> dict[bytes, Counter[tuple[str, bool, bytes]]]:
    """What a conversion must keep: by the pixels of each photo, its objects as (category, crowd, exact mask)."""
    result = {}
    for image in annotated.images:
        pixels, _ = load_photo(image)
        objects = Counter(
            (
                annotated.categories[i.label - 1].name if i.label else "__ignore__",
                i.iscrowd,
                i.mask(image.height, image.width).tobytes(),
            )
            for i in image.instances
        )
        result[pixels.tobytes()] = objects
    return result


TARGETS = {"coco": "out/data.json", "via": "out", "voc": "out", "cityscapes": "out", "labelme": "out"}


@pytest.mark.parametrize("target_format", TARGETS)
def test_round_trip_keeps_every_mask(awkward_set: AnnotatedSet, tmp_path: Path, target_format: str) -> None:
    source = str(tmp_path / "source.json")
    write_coco(awkward_set, source)
    there = str(tmp_path / TARGETS[target_format])
    conversion = convert_annotations(source, there, target_format=target_format)
    assert (conversion.source_format, conversion.num_images, conversion.num_instances) == (
        "coco",
        5,
        awkward_set.num_instances,
    )
    assert not {name for name in conversion.losses if "numbered anew" not in name}
    converted = load_annotations(there)  # the format is detected
    assert content(converted) == content(awkward_set)
    assert {c.name for c in converted.categories} == {"circle", "square", "triangle"}
    back = str(tmp_path / "back.json")
    convert_annotations(there, back, target_format="coco")
    assert content(load_annotations(back)) == content(awkward_set)


@pytest.mark.parametrize("target_format", ["coco", "cityscapes"])
def test_category_ids_with_gaps_survive(awkward_set: AnnotatedSet, tmp_path: Path, target_format: str) -> None:
    source = str(tmp_path / "source.json")
    write_coco(awkward_set, source)
    target = str(tmp_path / TARGETS[target_format])
    convert_annotations(source, target, target_format=target_format)
    assert load_annotations(target).categories == awkward_set.categories


def test_boxes_and_areas_are_those_of_the_masks(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    source = str(tmp_path / "source.json")
    write_coco(awkward_set, source)
    convert_annotations(source, str(tmp_path / "voc"), target_format="voc")
    images = load_annotations(str(tmp_path / "voc")).images
    assert sum(len(image.instances) for image in images) >= 5
    for image in images:
        for instance in image.instances:
            rows, columns = np.nonzero(instance.mask(image.height, image.width))
            assert instance.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert instance.area == len(rows)


@pytest.mark.parametrize("target_format", ["via", "labelme", "voc", "cityscapes"])
def test_ignore_regions_survive(awkward_set: AnnotatedSet, tmp_path: Path, target_format: str) -> None:
    image = awkward_set.images[0]
    ignored = replace(image.instances[0], label=0, iscrowd=True)
    changed = replace(image, instances=(ignored, *image.instances[1:]))
    annotated = replace(awkward_set, images=(changed, *awkward_set.images[1:]))
    writers: dict[str, Callable[[AnnotatedSet, str], Counter[str]]] = {
        "via": write_via,
        "labelme": write_labelme,
        "voc": write_voc,
        "cityscapes": write_cityscapes,
    }
    writers[target_format](annotated, str(tmp_path / "out"))
    assert content(load_annotations(str(tmp_path / "out"))) == content(annotated)


@pytest.mark.parametrize("target_format", ["voc", "cityscapes"])
def test_shared_pixels_are_refused_or_go_to_the_smaller(
    awkward_set: AnnotatedSet, tmp_path: Path, target_format: str
) -> None:
    image = awkward_set.images[4]
    large = np.zeros((image.height, image.width), dtype=bool)
    large[10:40, 10:40] = True
    small = np.zeros_like(large)
    small[20:25, 20:25] = True
    image = replace(image, instances=(mask_to_instance(1, small), mask_to_instance(2, large)))
    source = str(tmp_path / "source.json")
    write_coco(replace(awkward_set, images=(replace(awkward_set.images[0], instances=()), image)), source)
    with pytest.raises(AnnotationError, match="share 25 pixels"):
        convert_annotations(source, str(tmp_path / "refused"), target_format=target_format)
    assert not (tmp_path / "refused").exists()  # not even the first image, which could be held
    convert_annotations(source, str(tmp_path / "out"), target_format=target_format, overlap="smaller_on_top")
    areas = sorted(i.area for i in load_annotations(str(tmp_path / "out")).images[1].instances)
    assert areas == [25, 30 * 30 - 25]


def test_photos_can_stay_where_they_are(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    source = str(tmp_path / "source.json")
    write_coco(awkward_set, source)
    for target_format in ("coco", "via", "labelme"):
        target = tmp_path / target_format / TARGETS[target_format]
        convert_annotations(source, str(target), target_format=target_format, copy_photos=False)
        assert not list((tmp_path / target_format).rglob("*.png"))
        assert content(load_annotations(str(target))) == content(awkward_set)


def test_refusals_name_format_or_target(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    source = str(tmp_path / "source.json")
    write_coco(awkward_set, source)
    with pytest.raises(AnnotationError, match="'yolo'; allowed are coco, via"):
        convert_annotations(source, str(tmp_path / "x"), target_format="yolo")
    with pytest.raises(AnnotationError, match=r"ends in \.json"):
        convert_annotations(source, str(tmp_path / "x"), target_format="coco")
    with pytest.raises(AnnotationError, match="is there already"):
        convert_annotations(source, source, target_format="coco")
    with pytest.raises(AnnotationError, match="overlap: 'any' is no choice; allowed are refuse"):
        convert_annotations(source, str(tmp_path / "x"), target_format="voc", overlap="any")
    with pytest.raises(AnnotationError, match="must be copied"):
        convert_annotations(source, str(tmp_path / "x"), target_format="voc", copy_photos=False)


def write_photos(folder: Path, *names: str) -> str:
    """A COCO file of photos of different colours and sizes, with one square on each; its path."""
    images = []
    for number, name in enumerate(names):
        path = (folder / "in" / name).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 20), (9 * number, 0, 50)).save(path, "PNG")
        mask = np.zeros((20, 30 + number), dtype=bool)
        mask[number : number + 6, 4:9] = True
        images.append(AnnotatedImage(number + 1, name, Location(str(path)), *mask.shape, (mask_to_instance(1, mask),)))
    (folder / "in").mkdir(exist_ok=True)
    Location(str(folder / "in/ann.json")).write_json(to_coco(AnnotatedSet(tuple(images), SHAPE_CATEGORIES)))
    return str(folder / "in/ann.json")


# The photos' names -> the formats with one folder for all photos refuse them with this, or read them back where None.
NAMES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "one base name in two folders": (("s/a.png", "t/a.png"), None),
    "names that differ in case": (("A.png", "a.png"), None),
    "dots and endings": (("a.b.c.png", "a.b.png", "noext", ".hidden.png"), None),
    "blanks and marks": (("a b.png", "a#1.png", "a?x.png", "100%.png", "a%20b.png", "é ß 日.png"), None),
    "names that lead upwards": (("../../a.png", "b.png"), "image 1 has file_name '../../a.png', which leads out"),
    "a name that leads upwards behind a folder": (("b.png", "s/../../a.png"), "image 2 has file_name 's/../../a.png'"),
    "flat names that clash": (("s/a.png", "s__a.png"), "two photos are named s__a"),
    "one stem": (("a.jpg", "a.png"), "two photos are named a,"),
    "a flat name that is too long": (("deep/" * 45 + "a.png",), "cannot be written; allowed are 1 to 200 bytes"),
}


@pytest.mark.parametrize("target_format", TARGETS)
@pytest.mark.parametrize("kind", NAMES)
def test_photos_of_every_name_are_read_back_in_place_or_refused(tmp_path: Path, kind: str, target_format: str) -> None:
    names, refusal = NAMES[kind]
    source = write_photos(tmp_path / "a/b/c", *names)
    before = set(tmp_path.rglob("*"))
    target = tmp_path / "x/y" / TARGETS[target_format]
    if refusal is not None and (target_format != "coco" or "upwards" in kind):
        with pytest.raises(AnnotationError, match=re.escape(refusal)):
            convert_annotations(source, str(target), target_format=target_format)
        assert set(tmp_path.rglob("*")) == before
        return
    losses = convert_annotations(source, str(target), target_format=target_format).losses
    assert content(load_annotations(str(target))) == content(load_annotations(source))
    assert all(path.is_relative_to(tmp_path / "x") for path in set(tmp_path.rglob("*")) - before)
    is_renamed = any("/" in name for name in names) and target_format != "coco"
    assert losses.get("photos renamed", 0) == (len(names) if is_renamed else 0)


def test_labelme_photos_above_their_folder_are_copied(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    write_labelme(replace(awkward_set, images=awkward_set.images[:2]), str(tmp_path / "in/images"))
    (tmp_path / "in/labels").mkdir()
    paths = sorted((tmp_path / "in/images").glob("*.json"))
    for path in paths:
        values = json.loads(path.read_text())
        values["imagePath"] = f"../images/{values['imagePath']}"
        (tmp_path / "in/labels" / path.name).write_text(json.dumps(values))
        path.unlink()
    found = convert_annotations(str(tmp_path / "in/labels"), str(tmp_path / "a/set.json"), target_format="coco")
    assert found.losses["photos renamed"] == 2 and len(list((tmp_path / "a/set").iterdir())) == 2
    (tmp_path / "in/images" / Path(values["imagePath"]).name).unlink()
    with pytest.raises(AnnotationError, match=r"image 2 has file_name '\.\./images/.*leads out"):
        convert_annotations(str(tmp_path / "in/labels"), str(tmp_path / "b/set.json"), target_format="coco")
    assert not (tmp_path / "b").exists()


CLASSES = ["a,b", "a: b", "'q'\"", "Ünï", "true", "null", "1", "two words", "🦊"]
ODD_CLASSES = ["x ", " x", "line\nbreak", "a\x01b", "__ignore__", "_background_", "a\u2028b"]


@pytest.mark.parametrize("target_format", TARGETS)
def test_class_names_are_kept_or_refused(awkward_set: AnnotatedSet, tmp_path: Path, target_format: str) -> None:
    for number, name in enumerate(CLASSES + ODD_CLASSES):
        categories = (Category(103, name), *awkward_set.categories[1:])
        source, target = str(tmp_path / f"{number}.json"), str(tmp_path / f"to{number}" / TARGETS[target_format])
        write_coco(replace(awkward_set, categories=categories), source)
        if name in ODD_CLASSES and target_format in ("via", "voc", "labelme"):
            with pytest.raises(AnnotationError, match=r"category 103 is named .*cannot hold; allowed is one line"):
                convert_annotations(source, target, target_format=target_format)
        else:
            convert_annotations(source, target, target_format=target_format)
            assert content(load_annotations(target)) == content(load_annotations(source))


@pytest.mark.parametrize("target_format", TARGETS)
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("is_turned", [True, False])
def test_photos_with_an_exif_turn_keep_size_and_masks(
    tmp_path: Path, write_photo: Callable[..., np.ndarray], target_format: str, orientation: int, is_turned: bool
) -> None:
    write_photo(tmp_path / "in/a.png", 20, 30, orientation=orientation)
    size = (30, 20) if is_turned and orientation >= 5 else (20, 30)
    mask = np.zeros(size, dtype=bool)
    mask[3:9, 2:14] = True  # fits both ways
    image = AnnotatedImage(1, "a.png", Location(str(tmp_path / "in/a.png")), *size, (mask_to_instance(1, mask),))
    Location(str(tmp_path / "in/ann.json")).write_json(to_coco(AnnotatedSet((image,), SHAPE_CATEGORIES)))
    target, back = str(tmp_path / "there" / TARGETS[target_format]), str(tmp_path / "back/ann.json")
    convert_annotations(str(tmp_path / "in/ann.json"), target, target_format=target_format)
    convert_annotations(target, back, target_format="coco")
    for uri in (target, back):
        (again,) = load_annotations(uri).images
        assert (again.height, again.width) == size and np.array_equal(again.instances[0].mask(*size), mask)
        assert np.array_equal(load_photo(again)[0], load_photo(image)[0])


def test_what_other_formats_cannot_hold_is_counted(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    categories = tuple(Category(category.id + 100, category.name) for category in awkward_set.categories)
    images = [replace(image, image_id=f"id {image.image_id}") for image in awkward_set.images]
    source = str(tmp_path / "source.json")
    write_coco(replace(awkward_set, images=tuple(images), categories=categories), source)
    for target_format in ("via", "voc", "cityscapes", "labelme"):
        losses = convert_annotations(source, str(tmp_path / target_format), target_format=target_format).losses
        assert losses == {"category ids numbered anew": 3, "image ids numbered anew or replaced by names": 5}


@pytest.mark.parametrize("target_format", TARGETS)
def test_a_photo_that_cannot_be_read_is_counted(tmp_path: Path, target_format: str) -> None:
    source = write_photos(tmp_path, "a.png", "b.png")
    (tmp_path / "in/b.png").unlink()
    target = str(tmp_path / "out" / TARGETS[target_format])
    losses = convert_annotations(source, target, target_format=target_format).losses
    assert losses["photos that cannot be read"] == 1
    again = load_annotations(target)  # the sizes are there, though the photo is not
    assert [(i.height, i.width) for i in again.images] == [(20, 30), (20, 31)] and again.num_instances == 2


def test_a_set_without_categories_or_with_huge_images_is_refused(tmp_path: Path) -> None:
    labelme = {"shapes": [], "imagePath": "a.png", "imageHeight": 20, "imageWidth": 30}
    (tmp_path / "a.json").write_text(json.dumps(labelme))
    with pytest.raises(AnnotationError, match=r"a\.json has no category; allowed is at least one"):
        convert_annotations(str(tmp_path / "a.json"), str(tmp_path / "out"), target_format="voc")
    (tmp_path / "c.json").write_text(json.dumps(to_coco(AnnotatedSet((), SHAPE_CATEGORIES))))
    with pytest.raises(AnnotationError, match=r"c\.json has no image; allowed is at least one"):
        convert_annotations(str(tmp_path / "c.json"), str(tmp_path / "out"), target_format="voc")
    huge = AnnotatedImage(1, "a.png", Location("a.png"), 10**6, 10**6)
    (tmp_path / "b.json").write_text(json.dumps(to_coco(AnnotatedSet((huge,), SHAPE_CATEGORIES))))
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"image 1 is of 1000000 x 1000000 pixels; allowed are 1,073,741,824"):
        convert_annotations(str(tmp_path / "b.json"), str(tmp_path / "out"), target_format="voc")


@pytest.mark.parametrize("name", ["gone.png", "http://127.0.0.1:1/gone.png", "s3:///gone.png"])
@pytest.mark.parametrize("target_format", TARGETS)
def test_a_set_without_one_photo_is_refused(tmp_path: Path, name: str, target_format: str) -> None:
    shape = {"label": "dog", "points": [[1, 1], [5, 1], [5, 5]]}
    labelme = {"shapes": [shape], "imagePath": name, "imageHeight": 20, "imageWidth": 30}
    (tmp_path / "a.json").write_text(json.dumps(labelme))
    target = str(tmp_path / "out" / TARGETS[target_format])
    with pytest.raises(
        AnnotationError, match=rf"none of the 1 photos of .*a\.json is there: looked for .*{name[-8:]}; say"
    ):
        convert_annotations(str(tmp_path / "a.json"), target, target_format=target_format)


def test_via_without_sizes_or_photos_is_refused(tmp_path: Path) -> None:
    shape = {"name": "polygon", "all_points_x": [1, 5, 5], "all_points_y": [1, 1, 5]}
    entry = {"filename": "gone.png", "regions": [{"shape_attributes": shape}]}
    (tmp_path / "x.json").write_text(json.dumps({"k": entry}))
    with pytest.raises(AnnotationError, match=r"1 photos cannot be read, so their size is not known: gone\.png"):
        convert_annotations(str(tmp_path / "x.json"), str(tmp_path / "out.json"), target_format="coco")


def test_file_uris_with_blanks(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    write_coco(awkward_set, str(folder / "a b.json"))
    annotated = load_annotations("file://" + str(folder / "a b.json").replace(" ", "%20"))
    assert len(annotated) == 5 and SampleSet(annotated).load_sample(0, 0).skipped == {}


def test_a_bucket_serves_as_a_disk_does(awkward_set: AnnotatedSet, bucket: str, tmp_path: Path) -> None:
    write_coco(awkward_set, f"{bucket}/data/val.json")
    annotated = load_annotations(f"{bucket}/data/val.json")
    assert annotated.images[0].path.uri == f"{bucket}/data/val/photo_0.png"
    on_disk, in_bucket = SampleSet(awkward_set)[(0, 0)], SampleSet(annotated)[(0, 0)]
    assert on_disk.image.equal(in_bucket.image) and on_disk.target["masks"].equal(in_bucket.target["masks"])
    deep = with_extra_channels(annotated, "{folder}/../val/{stem}.png")
    assert SampleSet(deep, in_channels=6)[(0, 0)].image.shape[0] == 6
    for target_format in ("via", "voc", "cityscapes", "labelme"):
        convert_annotations(f"{bucket}/data/val.json", f"{bucket}/{target_format}", target_format=target_format)
        again = load_annotations(f"{bucket}/{target_format}")
        assert again.num_instances == awkward_set.num_instances
        assert SampleSet(again).load_sample(0, 0).skipped == {}


@pytest.fixture
def two_stores(moto: str, second_moto: str) -> tuple[Location, Location]:
    """One bucket name in two stores, of which the environment knows none."""
    name = make_bucket(moto)
    make_bucket(second_moto, name)
    return Location(f"s3://{name}/data", settings_for(moto)), Location(f"s3://{name}/data", settings_for(second_moto))


def test_annotations_and_what_is_written_may_lie_in_two_stores(
    awkward_set: AnnotatedSet, two_stores: tuple[Location, Location]
) -> None:
    """The same URI names another photo in each store; each is read from the store of its annotations, also later."""
    first, second = two_stores
    photo, *others = awkward_set.images
    images = (replace(photo, instances=photo.instances[:1] * 2), *others)  # an object twice: a fault to draw
    names = [image.file_name for image in (*others, photo)]
    moved = tuple(replace(image, file_name=name) for image, name in zip(images, names, strict=True))
    sets = []
    for place, written in ((first, images), (second, moved)):
        write_coco(replace(awkward_set, images=written), place / "val.json")
        sets.append(load_annotations(str(place / "val.json"), place.settings))
    in_turn = [image for pair in zip(*(each.images for each in sets), strict=True) for image in pair]
    assert sorted(image.path.uri for image in in_turn[::2]) == sorted(image.path.uri for image in in_turn[1::2])
    drawn = {image.image_id: load_photo(image)[0] for image in images}
    with ThreadPoolExecutor(4) as threads:
        for image, (pixels, _) in zip(in_turn * 3, threads.map(load_photo, in_turn * 3), strict=True):
            assert np.array_equal(pixels, drawn[image.image_id])

    convert_annotations(str(first / "val.json"), second / "via", storage=first.settings, target_format="via")
    again = load_annotations(str(second / "via"), second.settings)
    assert again.num_instances == sets[0].num_instances and SampleSet(again).load_sample(0, 0).skipped == {}
    report = check_data(str(first / "val.json"), first.settings)
    assert [finding.kind for finding in report.findings] == ["duplicate_object"]
    assert len(draw_offenders(report, second / "faults")) == 1
    assert (second / "faults").is_folder() and not (first / "faults").is_folder() and not (first / "via").is_folder()
