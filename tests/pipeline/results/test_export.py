"""Exports: masks come back from every format pixel by pixel; no file is written outside of the target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from model.categories import Category
from pipeline.dataset.formats.coco import load_coco
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.photos import load_photo
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.source import AnnotationSource
from pipeline.results import EXPORT_FORMATS
from pipeline.results.export import Exported, ExportError, crops, export_run, file_names, to_polygons
from pipeline.storage.stores import open_storage
from pipeline.tables import decode_masks, load_images, load_instances
from tests.pipeline.made_run import image_row, instance_row, write_run


def fill(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    if not polygons:
        return np.zeros(shape, np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape)))


def test_coco_and_back(drawn_run, tmp_path):
    exported = export_run(drawn_run.uri, str(tmp_path), "coco")
    assert exported == Exported(1, {"images that were not segmented left out": 1})
    instances = load_instances(drawn_run.uri)
    content = json.loads((tmp_path / "coco.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert len(content["annotations"]) == len(instances) and len(names) == 7  # the corrupt one has no size
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    for annotation, row in zip(content["annotations"], instances.itertuples(), strict=True):
        assert names[annotation["image_id"]] == row.image_id and annotation["category_id"] == row.category_id
        assert abs(annotation["score"] - row.score) < 1e-6
        np.testing.assert_array_equal(coco.annToMask(annotation), drawn_run.masks[row.image_id, row.instance])
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == (row.x1, row.y1, row.x2, row.y2)
        assert annotation["area"] == row.area_px
    again = load_coco(str(tmp_path / "coco.json"), str(drawn_run.photos))
    assert again.num_instances == len(instances) and again.categories == SHAPE_CATEGORIES


def test_coco_results_are_what_loadres_takes(drawn_run, tmp_path):
    numbers = {image["file_name"]: image["id"] for image in drawn_run.coco["images"]}
    export_run(drawn_run.uri, str(tmp_path), "coco-results", image_ids=numbers)
    truth = COCO()
    truth.dataset = drawn_run.coco
    truth.createIndex()
    detections = truth.loadRes(str(tmp_path / "results.json"))
    assert len(detections.anns) == len(drawn_run.masks)
    instances = load_instances(drawn_run.uri)
    for entry, row in zip(detections.anns.values(), instances.itertuples(), strict=True):
        assert entry["image_id"] == numbers[row.image_id] and abs(entry["score"] - row.score) < 1e-6
        np.testing.assert_array_equal(detections.annToMask(entry), drawn_run.masks[row.image_id, row.instance])
    with pytest.raises(ExportError, match=r"'sub/photo_0\.png' has no number"):
        export_run(drawn_run.uri, str(tmp_path), "coco-results", image_ids={"x": 1})


def test_yolo_lines_give_the_masks_back(drawn_run, tmp_path):
    assert export_run(drawn_run.uri, str(tmp_path), "yolo", min_score=0.3).num_files == 8
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == {0: "circle", 1: "square", 2: "triangle"}
    images = load_images(drawn_run.uri).set_index("image_id")
    instances = load_instances(drawn_run.uri, filters=[("score", ">=", 0.3)])
    for image_id, rows in instances.groupby("image_id"):
        lines = (tmp_path / "labels" / image_id.replace(".png", ".txt")).read_text().splitlines()
        size = images.loc[image_id, ["height", "width"]].astype(int).tolist()
        for line, row in zip(lines, rows.sort_values("instance").itertuples(), strict=True):
            label, *values = line.split()
            assert SHAPE_CATEGORIES[int(label)].name == row.category
            polygon = (np.reshape([float(v) for v in values], (-1, 2)) * size[::-1]).ravel().tolist()
            want = drawn_run.masks[image_id, row.instance]
            assert (fill([polygon], tuple(size)) != want).sum() <= 0.02 * want.sum() + 2  # six decimals


def test_labelme_holds_every_part(drawn_run, tmp_path):
    export_run(drawn_run.uri, str(tmp_path), "labelme")
    content = json.loads((tmp_path / "labelme/sub/photo_1.json").read_text())
    rows = load_instances(drawn_run.uri, filters=[("image_id", "==", "sub/photo_1.png")])
    union = np.max(decode_masks(rows), axis=0)
    polygons = [np.ravel(shape["points"]).tolist() for shape in content["shapes"]]
    np.testing.assert_array_equal(fill(polygons, union.shape), union)
    photo = tmp_path / "labelme/sub" / content["imagePath"]
    assert photo.resolve() == (drawn_run.photos / "sub/photo_1.png").resolve() and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == union.shape


def test_labelme_is_read_back_in_its_place(drawn_run, tmp_path):
    export_run(drawn_run.uri, str(tmp_path), "labelme")
    rows = load_instances(drawn_run.uri)
    for image_root in (None, str(drawn_run.photos)):
        again = load_annotations(AnnotationSource(uri=str(tmp_path / "labelme"), image_root=image_root))
        assert not again.notes and len(again) == 7
        masks = {}
        for image in again.images:
            load_photo(image)
            for instance in image.instances:
                name = again.categories[instance.label - 1].name
                masks[image.path.uri, name, instance.mask(image.height, image.width).tobytes()] = instance
        assert set(masks) == {
            (str(drawn_run.photos / row.image_id), row.category, drawn_run.masks[row.image_id, row.instance].tobytes())
            for row in rows.itertuples()
        }


def test_what_an_export_leaves_out_is_counted(tmp_path: Path):
    full, empty = np.ones((8, 9), bool), np.zeros((8, 9), bool)
    photos = [image_row("a.png", "a.png", "ok", (8, 9), 3, 0), image_row("b.png", "b.png", "corrupt", (8, 9), 0, 0)]
    instances = [
        instance_row("a.png", number, SHAPE_CATEGORIES[0], score, mask)
        for number, (score, mask) in enumerate([(0.9, full), (0.8, full), (0.7, empty)])
    ]
    run = str(write_run(tmp_path / "run", [(photos, instances)]))
    notes = {to: dict(export_run(run, str(tmp_path / to), to).notes) for to in EXPORT_FORMATS}
    failed = {"images that were not segmented left out": 1}
    assert notes["coco"] == notes["coco-results"] == failed
    assert notes["labelme"] == failed | {"instances without a polygon left out": 1}
    assert notes["yolo"] == notes["labelme"] | {"category ids numbered anew, from 0": 3}
    assert notes["png"] == failed | {"instances without a pixel of their own left out": 2}


NAMES = ["x", "a: b", "'q'\"", "true", "null", "1", "Ünï", "🦊", "line\nbreak", "a\x7fb", "- x", ""]


def test_yolo_names_are_read_back_from_yaml(tmp_path: Path):
    mask = np.ones((8, 9), bool)
    instances = [
        instance_row("a.png", number, Category(number + 1, name), 0.9, mask) for number, name in enumerate(NAMES)
    ]
    run = write_run(tmp_path / "run", [([image_row("a.png", "a.png", "ok", (8, 9), len(NAMES), 0)], instances)])
    spec = json.loads((run / "run.json").read_text())
    spec["model"]["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    (run / "run.json").write_text(json.dumps(spec))
    export_run(str(run), str(tmp_path), "yolo")
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == dict(enumerate(NAMES))


def test_png_numbers_the_instances(drawn_run, tmp_path):
    export_run(drawn_run.uri, str(tmp_path), "png")
    pixels = np.array(Image.open(tmp_path / "png/sub/photo_1.png"))
    rows = load_instances(drawn_run.uri, filters=[("image_id", "==", "sub/photo_1.png")]).sort_values("score")
    want = np.zeros(pixels.shape, int)
    for row in rows.itertuples():
        want[drawn_run.masks[row.image_id, row.instance] > 0] = row.instance + 1
    np.testing.assert_array_equal(pixels, want)
    assert len(list((tmp_path / "png").rglob("*.png"))) == 7  # images without instances too


def test_crops_show_the_instance(drawn_run):
    instances = load_instances(drawn_run.uri)
    images = load_images(drawn_run.uri).set_index("image_id")
    made = list(crops(instances, images["uri"].to_dict(), cut_out=True))
    assert len(made) == len(instances)
    for row, piece in made:
        assert piece.size == (row.x2 - row.x1, row.y2 - row.y1)
        assert (np.array(piece)[..., 3] > 0).sum() == row.area_px
    row, wide = next(crops(instances, images["uri"].to_dict(), margin=10))
    assert wide.size == (row.image_width, row.image_height)


def test_polygons_of_a_frame(drawn_run):
    instances = load_instances(drawn_run.uri)
    for row, polygons in zip(instances.itertuples(), to_polygons(instances), strict=True):
        want = drawn_run.masks[row.image_id, row.instance]
        np.testing.assert_array_equal(fill(polygons, want.shape), want)
    assert to_polygons(instances.iloc[:0]) == []


EVIL = ["../../evil.png", "/etc/passwd.png", "a/../../b.png", "c/./d.png", "e//f.png", "..", 'g\\..\\h".png', "i\n.png"]


def test_no_key_climbs_out_of_the_target(tmp_path: Path):
    mask = np.ones((8, 9), bool)
    images = [image_row(key, "nowhere", "ok", mask.shape, 1, 0) for key in EVIL]
    instances = [instance_row(key, 0, SHAPE_CATEGORIES[0], 0.9, mask) for key in EVIL]
    run = write_run(tmp_path / "run", [(images, instances)])
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    for to in ("yolo", "labelme", "png"):
        export_run(str(run), str(tmp_path / "deep" / "er" / "out"), to)
    written = [p for p in (tmp_path / "deep/er/out").rglob("*") if p.is_file()]
    assert len(written) == 3 * len(EVIL) + 1
    after = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert after - before == {tmp_path / "deep", tmp_path / "deep/er"}


def test_names_that_would_clash_keep_their_extension():
    assert file_names(["a/x.jpg", "a/x.png", "y.jpg"], ".txt") == {
        "a/x.jpg": "a/x.jpg.txt",
        "a/x.png": "a/x.png.txt",
        "y.jpg": "y.txt",
    }
    with pytest.raises(ExportError, match=r"'a:b\.jpg' and 'a\?b\.jpg' would both"):
        file_names(["a:b.jpg", "a?b.jpg"], ".txt")
    with pytest.raises(ExportError, match=r"no format 'tiff'; allowed are coco"):
        export_run("nowhere", "out", "tiff")


def test_a_run_in_a_bucket_is_exported_to_a_bucket(bucket, drawn_run):
    root = Path(drawn_run.uri)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            open_storage(f"{bucket}/run").write_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    assert export_run(f"{bucket}/run", f"{bucket}/yolo", "yolo").num_files == 8
    assert {info.key for info in open_storage(f"{bucket}/yolo").iter_objects()} >= {"data.yaml"}
