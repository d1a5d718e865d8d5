"""Rows of a run in other forms: masks come back from each pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.manifest import open_run
from pipeline.results.export import ExportError, crops, export_results, to_coco, to_polygons, to_yolo
from pipeline.storage.local import LocalStorage
from pipeline.tables import categories_of, load_images, load_instances


def fill(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    if not polygons:
        return np.zeros(shape, np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape)))


def test_coco_holds_masks_boxes_and_scores(drawn_run):
    run = open_run(drawn_run.uri)
    instances = load_instances(run)
    content = to_coco(instances, load_images(run), categories_of(run))
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


def test_coco_results_are_what_loadres_takes(drawn_run, tmp_path):
    numbers = {image["file_name"]: image["id"] for image in drawn_run.coco["images"]}
    run = open_run(drawn_run.uri)
    assert export_results(run, LocalStorage(tmp_path), image_ids=numbers) == (7, len(drawn_run.masks))
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
        export_results(run, LocalStorage(tmp_path), image_ids={"x": 1})
    export_results(run, LocalStorage(tmp_path), min_score=0.5)  # numbered in the order of the images
    assert {entry["image_id"] for entry in json.loads((tmp_path / "results.json").read_text())} <= set(range(1, 8))


def test_yolo_lines_give_the_masks_back(drawn_run):
    images = load_images(drawn_run.uri).set_index("image_id")
    instances = load_instances(drawn_run.uri, filters=[("score", ">=", 0.3)])
    label_of = {category.id: label for label, category in enumerate(SHAPE_CATEGORIES)}
    for image_id, rows in instances.groupby("image_id"):
        size = images.loc[image_id, ["height", "width"]].astype(int).tolist()
        for line, row in zip(to_yolo(rows, label_of).splitlines(), rows.itertuples(), strict=True):
            label, *values = line.split()
            assert SHAPE_CATEGORIES[int(label)].name == row.category
            polygon = (np.reshape([float(v) for v in values], (-1, 2)) * size[::-1]).ravel().tolist()
            want = drawn_run.masks[image_id, row.instance]
            assert (fill([polygon], tuple(size)) != want).sum() <= 0.02 * want.sum() + 2  # six decimals


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
