"""Conversion to every format and back keeps masks, classes and crowds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.convert import convert_annotations
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.formats.labelme import write_labelme
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.formats.via import write_via
from pipeline.dataset.formats.voc import write_voc
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedSet, AnnotationError, mask_to_instance


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
    assert not {name for name in conversion.losses if "numbered" not in name}
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
    for image in load_annotations(str(tmp_path / "voc")).images:
        for instance in image.instances:
            rows, columns = np.nonzero(instance.mask(image.height, image.width))
            assert instance.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert instance.area == len(rows)


@pytest.mark.parametrize("target_format", ["via", "labelme", "voc"])
def test_ignore_regions_survive_by_name(awkward_set: AnnotatedSet, tmp_path: Path, target_format: str) -> None:
    image = awkward_set.images[0]
    ignored = replace(image.instances[0], label=0, iscrowd=True)
    changed = replace(image, instances=(ignored, *image.instances[1:]))
    annotated = replace(awkward_set, images=(changed, *awkward_set.images[1:]))
    writers: dict[str, Callable[[AnnotatedSet, str], Counter[str]]] = {
        "via": write_via,
        "labelme": write_labelme,
        "voc": write_voc,
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
    write_coco(replace(awkward_set, images=(image,)), source)
    with pytest.raises(AnnotationError, match="share 25 pixels"):
        convert_annotations(source, str(tmp_path / "refused"), target_format=target_format)
    convert_annotations(source, str(tmp_path / "out"), target_format=target_format, overlap="smaller_on_top")
    areas = sorted(i.area for i in load_annotations(str(tmp_path / "out")).images[0].instances)
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
    with pytest.raises(AnnotationError, match="must be copied"):
        convert_annotations(source, str(tmp_path / "x"), target_format="voc", copy_photos=False)


def test_file_uris_with_blanks(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    write_coco(awkward_set, str(folder / "a b.json"))
    annotated = load_annotations("file://" + str(folder / "a b.json").replace(" ", "%20"))
    assert len(annotated) == 5 and SampleSet(annotated).load_sample(0, 0).skipped == {}


def test_a_bucket_serves_as_a_disk_does(awkward_set: AnnotatedSet, bucket: str, tmp_path: Path) -> None:
    write_coco(awkward_set, f"{bucket}/data/val.json")
    annotated = load_annotations(f"{bucket}/data/val.json")
    assert annotated.images[0].path == f"{bucket}/data/val/photo_0.png"
    on_disk, in_bucket = SampleSet(awkward_set)[0], SampleSet(annotated)[0]
    assert on_disk[0].equal(in_bucket[0]) and on_disk[1]["masks"].equal(in_bucket[1]["masks"])
    deep = with_extra_channels(annotated, "{folder}/../val/{stem}.png")
    assert SampleSet(deep, in_channels=6)[0][0].shape[0] == 6
    for target_format in ("via", "voc", "cityscapes", "labelme"):
        convert_annotations(f"{bucket}/data/val.json", f"{bucket}/{target_format}", target_format=target_format)
        again = load_annotations(f"{bucket}/{target_format}")
        assert again.num_instances == awkward_set.num_instances
        assert SampleSet(again).load_sample(0, 0).skipped == {}
