"""COCO JSON is read and written as pycocotools, the oracle, reads it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.dataset.formats.coco import find_image_root, load_coco, to_coco, write_coco
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.photos import load_photo
from pipeline.dataset.types import AnnotatedSet, AnnotationError
from pipeline.storage.files import Location

POLYGON = [[2.0, 1.0, 9.5, 1.0, 9.5, 7.0, 2.0, 7.0]]


def coco_file(folder: Path, **changes: object) -> Path:
    """A small file with an RLE crowd, a gap in its category ids, and a polygon with too few points."""
    runs = {"size": [20, 30], "counts": [40, 10, 30, 10, 510]}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 1, 7.5, 6], "area": 45.0, "iscrowd": 0,
             "segmentation": POLYGON},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [2, 0, 2, 20], "area": 20, "iscrowd": 1,
             "segmentation": runs},
            {"id": 3, "image_id": 7, "category_id": 3, "bbox": [20, 10, 50, 50], "area": 9, "iscrowd": 0,
             "segmentation": [[20, 10, 30, 10, 30, 20], [1, 2, 3, 4]]},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        **changes,
    }  # fmt: skip
    path = folder / "data.json"
    path.write_text(json.dumps(content))
    (folder / "a.png").write_bytes(b"")
    return path


def test_labels_follow_the_ids_and_boxes_are_xyxy_inside_the_image(tmp_path: Path) -> None:
    annotated = load_coco(str(coco_file(tmp_path)))
    assert [(c.id, c.name) for c in annotated.categories] == [(3, "car"), (90, "toothbrush")]
    toothbrush, crowd, car = annotated.images[0].instances
    assert (toothbrush.label, crowd.label, car.label) == (2, 1, 1)
    assert toothbrush.box == (2.0, 1.0, 9.5, 7.0) and toothbrush.bbox == (2.0, 1.0, 7.5, 6.0)
    assert car.box == (20.0, 10.0, 30.0, 20.0)  # cut at the border
    assert (toothbrush.iscrowd, crowd.iscrowd) == (False, True)
    (note,) = annotated.notes
    assert "fewer than three points" in note and note.endswith("(annotation 3)")
    assert crowd.mask(20, 30).sum() == 20 and crowd.mask(20, 30)[:10, 2].all()
    assert annotated.images[0].path.uri == str(tmp_path / "a.png")


def test_masks_are_those_of_pycocotools(shared_data: Path) -> None:
    path = shared_data / "coco_mini/annotations/instances_val2017.json"
    reference = COCO(str(path))
    annotated = load_coco(str(path))
    for image in annotated.images[:20]:
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=image.image_id))
        assert len(annotations) == len(image.instances)
        for annotation, instance in zip(annotations, image.instances):
            assert np.array_equal(reference.annToMask(annotation), instance.mask(image.height, image.width))
            assert annotated.categories[instance.label - 1].id == annotation["category_id"]
            assert instance.bbox == pytest.approx(annotation["bbox"], abs=0.02)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("instances_train2017", (80, 739, 8, 80)), ("instances_val2017", (79, 624, 5, 80))],
)
def test_coco_mini_has_its_stated_counts(shared_data: Path, name: str, counts: tuple[int, ...]) -> None:
    annotated = load_annotations(str(shared_data / f"coco_mini/annotations/{name}.json"))
    crowds = sum(i.iscrowd for image in annotated.images for i in image.instances)
    assert (len(annotated), annotated.num_instances, crowds, len(annotated.categories)) == counts
    assert max(category.id for category in annotated.categories) == 90
    assert all(image.path.is_file() for image in annotated.images)


def test_keypoints_are_read_with_their_names(shared_data: Path) -> None:
    annotated = load_annotations(str(shared_data / "coco_mini/annotations/person_keypoints_val2017.json"))
    assert len(annotated.keypoint_names) == 17 and annotated.keypoint_names[5] == "left_shoulder"
    keypoints = [i.keypoints for image in annotated.images for i in image.instances if i.keypoints is not None]
    assert len(keypoints) == annotated.num_instances and all(len(triples) == 51 for triples in keypoints)
    again = to_coco(annotated)
    assert again["categories"][0]["keypoints"] == list(annotated.keypoint_names)
    assert [a["num_keypoints"] for a in again["annotations"][:3]] == [
        sum(visibility > 0 for visibility in triples[2::3]) for triples in keypoints[:3]
    ]


def test_writing_gives_a_file_that_pycocotools_reads(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    write_coco(awkward_set, str(tmp_path / "x.json"))
    reference = COCO(str(tmp_path / "x.json"))
    for image in awkward_set.images:
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=image.image_id))
        for annotation, instance in zip(annotations, image.instances, strict=True):
            assert np.array_equal(reference.annToMask(annotation), instance.mask(image.height, image.width))
            assert annotation["area"] == coco_mask.area(annotation["segmentation"])
    assert load_coco(str(tmp_path / "x.json")).images[0].instances == awkward_set.images[0].instances


def test_extra_files_of_the_photos_name_are_copied_beside_it_not_over_it(tmp_path: Path) -> None:
    for folder, value in (("rgb", (200, 100, 50)), ("depth", 7), ("infrared", 9)):
        (tmp_path / folder).mkdir()
        Image.new("RGB" if folder == "rgb" else "L", (9, 7), value).save(tmp_path / folder / "a.png")
    (tmp_path / "infrared/a.png").rename(tmp_path / "infrared/a.tif")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 7, "width": 9,
                    "extra_file_names": ["../depth/a.png", "../infrared/a.tif"]}],
        "annotations": [],
        "categories": [],
    }  # fmt: skip
    (tmp_path / "rgb/set.json").write_text(json.dumps(content))
    write_coco(load_coco(str(tmp_path / "rgb/set.json")), str(tmp_path / "out/set.json"))
    (image,) = load_coco(str(tmp_path / "out/set.json")).images
    assert [Path(p.uri).relative_to(tmp_path / "out/set").as_posix() for p in (image.path, *image.extra_paths)] == [
        "a.png",
        "extra_1/a.png",
        "extra_2/a.png.tif",
    ]
    pixels, _ = load_photo(image, in_channels=5)
    assert np.allclose(pixels[0, 0] * 255, [200, 100, 50, 7, 9])


def test_copies_stay_in_the_folder_of_the_copies(tmp_path: Path) -> None:
    for name in ("rgb/a.png", "labels/inner/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    names = ["../rgb/a.png", "inner/b.png", str(tmp_path / "rgb/a.png")]
    images = [{"id": number, "file_name": name, "height": 7, "width": 9} for number, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "labels/set.json").write_text(json.dumps(content))
    write_coco(load_coco(str(tmp_path / "labels/set.json")), str(tmp_path / "new/out/set.json"))
    written = load_coco(str(tmp_path / "new/out/set.json"))
    paths = [Path(image.path.uri).resolve() for image in written.images]
    assert len(set(paths)) == 3 and all(path.is_file() for path in paths)
    assert all(path.is_relative_to(tmp_path / "new/out/set") for path in paths)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]


def test_unknown_categories_are_refused_ignored_or_dropped(tmp_path: Path) -> None:
    path = str(coco_file(tmp_path, categories=[{"id": 90, "name": "toothbrush"}]))
    with pytest.raises(AnnotationError, match=r"annotation 2 has category_id 3, which is not declared.*\[90\]"):
        load_coco(path)
    ignored = load_coco(path, unknown="ignore").images[0].instances
    assert [(i.label, i.iscrowd) for i in ignored] == [(1, False), (0, True), (0, True)]
    dropped = load_coco(path, unknown="drop")
    assert [i.label for i in dropped.images[0].instances] == [1]
    assert dropped.notes["annotations of unknown categories dropped (annotation 2, annotation 3)"] == 2
    with pytest.raises(AnnotationError, match="'keep' is no choice"):
        load_coco(path, unknown="keep")


def test_windows_backslashes_are_found_as_slashes(tmp_path: Path) -> None:
    path = coco_file(tmp_path, images=[{"id": 7, "file_name": "train\\a.png", "height": 20, "width": 30}])
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(b"")
    (image,) = load_coco(str(path)).images
    assert (image.file_name, image.path.uri) == ("train/a.png", str(tmp_path / "train/a.png"))
    (tmp_path / "train\\a.png").write_bytes(b"")  # a file of the very name comes first
    assert load_coco(str(path)).images[0].file_name == "train\\a.png"


def test_an_ignore_region_of_every_class_becomes_a_crowd_of_each(tmp_path: Path) -> None:
    path = coco_file(tmp_path, categories=[{"id": 90, "name": "toothbrush"}, {"id": 91, "name": "comb"}])
    annotated = load_coco(str(path), unknown="ignore")
    written = Counter((a["category_id"], a["iscrowd"]) for a in to_coco(annotated)["annotations"])
    assert written == {(90, 0): 1, (90, 1): 2, (91, 1): 2}


def test_labelled_classes_come_from_our_key_or_lvis_lists(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "a.png", "height": 20, "width": 30}
    assert load_coco(str(coco_file(tmp_path))).images[0].labelled_classes is None
    with_our_key = load_coco(str(coco_file(tmp_path, images=[{**image, "labelled_category_ids": [90]}])))
    assert with_our_key.images[0].labelled_classes == (2,)
    assert to_coco(with_our_key)["images"][0]["labelled_category_ids"] == [90]
    lvis = {**image, "neg_category_ids": [5], "not_exhaustive_category_ids": [3]}
    three = [{"id": 3, "name": "car"}, {"id": 5, "name": "cup"}, {"id": 90, "name": "toothbrush"}]
    with_lvis_lists = load_coco(str(coco_file(tmp_path, images=[lvis], categories=three)))
    # The cup was looked for and is absent, the toothbrush is annotated, and not all cars are.
    assert with_lvis_lists.images[0].labelled_classes == (2, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": [{"id": 7, "file_name": "a.png", "height": 2, "width": 3}] * 2}, "image id 7 stands there twice"),
        ({"categories": [{"id": 3, "name": "car"}, {"id": 3, "name": "bus"}]}, "category id 3"),
        ({"categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "car"}]}, "category name 'car'"),
        ({"categories": {}}, "has no list 'categories'"),
        ({"images": [{"id": 7, "file_name": "gone.png", "height": 2, "width": 3}]}, "gone.png"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(AnnotationError, match=words):
        load_coco(str(coco_file(tmp_path, **changes)))


def test_invalid_json_and_absent_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="not valid JSON"):
        load_coco(str(tmp_path / "x.json"))
    with pytest.raises(AnnotationError, match="there is no annotation file"):
        load_coco(str(tmp_path / "y.json"))


@pytest.mark.parametrize("photo_folder", [".", "a_split", "images", "../split", "../images", ".."])
def test_photos_are_found_in_the_usual_folders(tmp_path: Path, photo_folder: str) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / photo_folder).mkdir(exist_ok=True)
    (folder / photo_folder / "p.jpg").write_bytes(b"")
    root = find_image_root(Location(str(folder / "a_split.json")), ["absent.jpg", "p.jpg"])
    assert Path(root.uri).resolve() == (folder / photo_folder).resolve()


def test_a_folder_with_one_coco_file_and_photos_works(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    write_coco(awkward_set, str(tmp_path / "shapes.json"))
    (tmp_path / "shapes").rename(tmp_path / "images")
    assert len(load_annotations(str(tmp_path))) == 5
    write_coco(awkward_set, str(tmp_path / "second.json"))
    with pytest.raises(AnnotationError, match=r"should hold one COCO JSON file.*second.json, shapes.json"):
        load_annotations(str(tmp_path))
