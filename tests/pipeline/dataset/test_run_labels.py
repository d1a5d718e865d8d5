"""A run becomes annotations that annotation tools read, beside its photos; what is corrected there is read back."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from model.categories import Category
from pipeline.dataset.formats.brush_rle import decode_brush, encode_brush
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.photos import load_photo
from pipeline.dataset.run_labels import Exported, export_labels, load_run_labels
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import FORMATS, AnnotationError, Prediction
from pipeline.manifest import open_run
from pipeline.storage.stores import open_storage
from pipeline.tables import load_instances
from tests.pipeline.made_run import DrawnRun, image_row, instance_row, write_run

OVERLAP_FORMATS = ("voc", "cityscapes", "png")  # one object for a pixel


def place_of(folder: Path, to: str) -> str:
    return str(folder / "coco.json" if to == "coco" else folder)


def wanted(drawn_run: DrawnRun, min_score: float, *, is_disjoint: bool) -> Counter[tuple[bytes, str, bytes]]:
    """The run's objects by photo, class and mask; with `is_disjoint`, without the pixels of better ones."""
    found: Counter[tuple[bytes, str, bytes]] = Counter()
    rows = load_instances(drawn_run.uri, filters=[("score", ">=", min_score)])
    for image_id, group in rows.groupby("image_id"):
        photo = np.array(Image.open(drawn_run.photos / image_id)).tobytes()
        taken: np.ndarray | None = None
        for row in group.sort_values("instance").itertuples():
            mask = drawn_run.masks[image_id, row.instance].astype(np.uint8)
            if is_disjoint:
                taken = np.zeros_like(mask) if taken is None else taken
                mask, taken = np.where(taken, 0, mask).astype(np.uint8), taken | mask
            if mask.any():
                found[photo, row.category, mask.tobytes()] += 1
    return found


@pytest.mark.parametrize("to", FORMATS)
def test_every_form_is_read_back_with_its_photos(drawn_run: DrawnRun, tmp_path: Path, to: str) -> None:
    exported = export_labels(open_run(drawn_run.uri), str(tmp_path), to, min_score=0.3)
    assert exported.num_images == 7 and exported.notes["images that were not segmented left out"] == 1
    annotated = load_annotations(place_of(tmp_path, to))  # the format is detected
    found: Counter[tuple[bytes, str, bytes]] = Counter()
    for image in annotated.images:
        pixels = load_photo(image)[0].tobytes()
        for instance in image.instances:
            name = annotated.categories[instance.label - 1].name
            found[pixels, name, instance.mask(image.height, image.width).tobytes()] += 1
    if to == "png":  # where only masks of one class exclude each other
        return_masks = sum(found.values())
        assert exported.num_instances - return_masks == exported.notes.get("objects without a pixel of their own", 0)
        return
    assert found == wanted(drawn_run, 0.3, is_disjoint=to in OVERLAP_FORMATS)
    assert len(annotated) == 7  # images without an instance too


def test_labels_have_half_a_score_and_more_by_default(drawn_run: DrawnRun) -> None:
    annotated = load_run_labels(open_run(drawn_run.uri))
    scores = load_instances(drawn_run.uri)["score"]
    found = [
        instance.score for image in annotated.images for instance in image.instances if isinstance(instance, Prediction)
    ]
    assert sorted(found) == sorted(scores[scores >= 0.5].tolist()) and 0 < len(found) < len(scores)
    assert (
        annotated.notes == {"images that were not segmented left out": 1} and annotated.categories == SHAPE_CATEGORIES
    )


def test_coco_has_scores_and_is_what_pycocotools_reads(drawn_run: DrawnRun, tmp_path: Path) -> None:
    export_labels(open_run(drawn_run.uri), str(tmp_path), "coco", min_score=0.0, photos="refer")
    coco = COCO(str(tmp_path / "coco.json"))
    rows = load_instances(drawn_run.uri)
    assert len(coco.anns) == len(rows)
    names = {image["id"]: Path(image["file_name"]).name for image in coco.imgs.values()}
    by_score = {(names[a["image_id"]], round(a["score"], 5)): a for a in coco.anns.values()}
    for row in rows.itertuples():
        annotation = by_score[Path(row.image_id).name, round(row.score, 5)]
        np.testing.assert_array_equal(coco.annToMask(annotation), drawn_run.masks[row.image_id, row.instance])
        assert annotation["area"] == row.area_px and annotation["category_id"] == row.category_id
    assert not (tmp_path / "coco").exists()
    (first, *_) = load_annotations(str(tmp_path / "coco.json")).images
    assert Path(first.path.uri).resolve().is_relative_to(drawn_run.photos)


def write_two(folder: Path) -> str:
    """A run of a photo with two objects, in a folder with its photo."""
    first, second = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    first[5:20, 5:25], second[22:36, 30:55] = True, True
    (folder / "photos").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(folder / "photos/a.png")
    rows = [
        instance_row("a.png", number, SHAPE_CATEGORIES[number], score, mask)
        for number, (score, mask) in enumerate([(0.9, first), (0.8, second)])
    ]
    photo = image_row("a.png", str(folder / "photos/a.png"), "ok", (40, 60), 2, 0)
    return str(write_run(folder / "run", [([photo], rows)]))


def test_masks_that_are_corrected_in_label_studio_are_what_is_trained_on(tmp_path: Path) -> None:
    run = write_two(tmp_path)
    export_labels(open_run(run), str(tmp_path / "out"), "labelstudio")
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    (entry,) = tasks
    regions = entry["predictions"][0]["result"]
    assert [region["type"] for region in regions] == ["polygonlabels"] * 2
    # As an annotator submits it: the prediction becomes an annotation, one outline is moved, one is painted anew.
    regions[0]["value"]["points"] = [[10, 10], [50, 10], [50, 60], [10, 60]]
    painted = np.zeros((40, 60), bool)
    painted[22:30, 30:50] = True
    regions[1] |= {
        "type": "brushlabels",
        "value": {"format": "rle", "rle": encode_brush(painted), "brushlabels": ["triangle"]},
    }
    entry["annotations"] = [{"id": 1, "result": regions}]
    (tmp_path / "out/tasks.json").write_text(json.dumps(tasks))
    annotated = load_annotations(str(tmp_path / "out"))
    assert [c.name for c in annotated.categories] == ["circle", "triangle"] and not annotated.notes
    moved, again = (i.mask(40, 60) for i in annotated.images[0].instances)
    assert moved[4:24, 6:30].all() and moved.sum() == 20 * 24 and np.array_equal(again, painted)
    assert np.array_equal(decode_brush(regions[1]["value"]["rle"], 40, 60), painted)


def test_masks_that_are_corrected_in_cvat_are_what_is_trained_on(tmp_path: Path) -> None:
    run = write_two(tmp_path)
    export_labels(open_run(run), str(tmp_path / "out"), "cvat", tolerance_px=1.0)
    path = tmp_path / "out/annotations.xml"
    tree = ET.parse(path)
    first, second = tree.findall("image/polygon")
    first.set("points", "6,4;30,4;30,24;6,24")
    image = tree.find("image")
    assert image is not None
    image.remove(second)
    ET.SubElement(image, "mask", label="triangle", rle="0, 6", left="30", top="22", width="3", height="2", z_order="0")
    tree.write(path)
    annotated = load_annotations(str(tmp_path / "out"))
    polygon, mask = annotated.images[0].instances
    assert polygon.mask(40, 60)[4:24, 6:30].all() and polygon.area == 20 * 24
    assert annotated.categories[mask.label - 1].name == "triangle" and mask.box == (30, 22, 33, 24)


EVIL = ["../../evil.png", "/etc/passwd.png", "a/../../b.png", "c/./d.png", "e//f.png", "..", 'g\\..\\h".png', "i\n.png"]


def test_no_key_climbs_out_of_the_target(tmp_path: Path) -> None:
    mask = np.ones((8, 9), bool)
    images = [image_row(key, "nowhere", "ok", mask.shape, 1, 0) for key in EVIL]
    instances = [instance_row(key, 0, SHAPE_CATEGORIES[0], 0.9, mask) for key in EVIL]
    run = open_run(str(write_run(tmp_path / "run", [(images, instances)])))
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    for to in ("labelme", "via", "cvat", "labelstudio", "coco"):
        notes = export_labels(run, str(tmp_path / "deep/er/out" / to), to).notes
        assert notes["photos that cannot be read"] == len(EVIL)
    after = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert after - before == {tmp_path / "deep", tmp_path / "deep/er"}
    with pytest.raises(AnnotationError, match="a photo is named '_', and the photos of YOLO are told by their ending"):
        export_labels(run, str(tmp_path / "deep/er/out/yolo"), "yolo")


def test_names_that_differ_in_their_extension_only_get_it(tmp_path: Path) -> None:
    keys = ["x/a.jpg", "x/a.png", "b.jpg", "B.png", "c.png"]
    for key in keys:
        (tmp_path / "photos" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(tmp_path / "photos" / key)
    images = [image_row(key, str(tmp_path / "photos" / key), "ok", (8, 9), 0, 0) for key in keys]
    run = open_run(str(write_run(tmp_path / "run", [(images, [])])))
    export_labels(run, str(tmp_path / "out"), "yolo")
    names = sorted(path.name for path in (tmp_path / "out/images").iterdir())
    assert names == ["B_png.png", "b_jpg.jpg", "c.png", "x__a_jpg.jpg", "x__a_png.png"]


NAMES = ["x", "a: b", "'q'\"", "true", "null", "1", "Ünï", "🦊", "line\nbreak", "a\x7fb", "- x"]


def test_yolo_names_are_read_back_from_yaml(tmp_path: Path) -> None:
    mask = np.ones((8, 9), bool)
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    instances = [
        instance_row("a.png", number, Category(number + 1, name), 0.9, mask) for number, name in enumerate(NAMES)
    ]
    photo = image_row("a.png", str(tmp_path / "a.png"), "ok", (8, 9), len(NAMES), 0)
    run = write_run(tmp_path / "run", [([photo], instances)])
    spec = json.loads((run / "run.json").read_text())
    spec["model"]["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    (run / "run.json").write_text(json.dumps(spec))
    notes = export_labels(open_run(str(run)), str(tmp_path / "out"), "yolo").notes
    assert notes == {"category ids numbered anew": len(NAMES)}
    assert [category.name for category in load_annotations(str(tmp_path / "out")).categories] == NAMES


def test_a_run_without_an_image_has_no_labels(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [([image_row("b.png", "b.png", "corrupt", (8, 9), 0, 0)], [])])
    with pytest.raises(AnnotationError, match="the run has no segmented image"):
        export_labels(open_run(str(run)), str(tmp_path / "out"), "yolo")


def test_a_run_in_a_bucket_is_exported_to_a_bucket(bucket: str, drawn_run: DrawnRun) -> None:
    root = Path(drawn_run.uri)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            open_storage(f"{bucket}/run").write_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    exported = export_labels(open_run(f"{bucket}/run"), f"{bucket}/yolo", "yolo")
    assert isinstance(exported, Exported) and exported.num_images == 7
    keys = {info.key for info in open_storage(f"{bucket}/yolo").iter_objects()}
    assert keys >= {"data.yaml", "labels/sub__photo_0.txt", "images/sub__photo_0.png"}
