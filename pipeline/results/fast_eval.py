"""AP of a whole run at the speed of its Parquet: columns go from Arrow to hotcoco with nothing in between but the
dictionary that it wants for each mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest import Run
from pipeline.results.coco_eval import CocoResult, has_hotcoco, no_collection, read_hotcoco
from pipeline.results.query import instances_dataset, load_images
from pipeline.results.truth import EvaluationError, check_categories, match_images
from pipeline.storage import is_local, local_path

_COLUMNS = ["image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2"]
_MASK_COLUMNS = ["rle_counts", "area_px", "image_height", "image_width"]
_BATCH_ROWS = 65_536
_NUM_CHECKED = 64  # areas of a batch that are compared with their masks


def coco_figures(run: str | Run, ground_truth: str, iou_type: str = "segm") -> CocoResult:
    """COCO's evaluation of a run: the figures of `evaluate_run`, many times faster, and nothing but them.

    The truth is taken as a well-formed COCO file of this machine and goes to hotcoco as it is; images, categories and
    sizes are matched and checked as `evaluate` does, but what `evaluate` counts and leaves out is an error here. A
    mask's area is the table's `area_px`, which is compared with the mask for a part of the rows.

    Args:
        run: a run, or Parquet with the same columns.
        ground_truth: path of a COCO JSON file.
        iou_type: bbox or segm.

    Raises:
        ImportError: hotcoco is not installed.
        EvaluationError: a truth that does not fit, masks of another size than their image, or a wrong `area_px`; use
            `evaluate`, which reports or computes these.
        ValueError: another iou_type, or a truth that is no local file.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type is {iou_type!r}; allowed are bbox, segm")
    if not is_local(ground_truth):
        raise ValueError(f"{ground_truth} is no file on this machine; `evaluate` reads truth from anywhere")
    if not has_hotcoco():
        raise ImportError("coco_figures needs hotcoco; `evaluate` falls back to pycocotools")
    import hotcoco

    truth = hotcoco.COCO(str(local_path(ground_truth)))
    if truth.load_warnings:
        raise EvaluationError(f"{ground_truth}: {truth.load_warnings[0]}; `evaluate` can tell what it means")
    images = sorted(truth.imgs.values(), key=lambda image: image["id"])
    if any(image.get("labelled_category_ids") is not None for image in images):
        raise EvaluationError(f"{ground_truth} says which classes were labelled on which image; use `evaluate`")
    names = {number: category["name"] for number, category in truth.cats.items()}
    matched = match_images(load_images(run, ["image_id"])["image_id"], images)
    with no_collection():
        rows, masks, areas = _read(run, iou_type, matched.truth_id, images, names)
        if not len(rows):
            found = hotcoco.COCO({"images": images, "annotations": [], "categories": list(truth.cats.values())})
        elif iou_type == "bbox":
            found = truth.load_res(rows)
        else:
            found = truth.load_res(rows, segmentation=masks)
            found.update_anns(ids=np.arange(1, len(rows) + 1), area=areas)
    del rows, masks, areas  # the evaluator has its own copy by now
    return read_hotcoco(hotcoco.COCOeval(truth, found, iou_type), iou_type)


def _read(
    run: str | Run, iou_type: str, truth_id: dict[str, Any], images: list[dict[str, Any]], names: dict[int, str]
) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """The rows on images of the truth as hotcoco takes them: float64 [N, 7] of image, x, y, w, h, score, category;
    N masks as RLE (none for bbox); their areas, float64 [N]."""
    keys = pa.array(list(truth_id), pa.string())
    ids = np.array(list(truth_id.values()), np.int64)
    size_of = {image["id"]: [image["height"], image["width"]] for image in images}
    sizes = [size_of[number] for number in truth_id.values()]  # one list for each image, shared by its masks
    codes = np.array([height << 32 | width for height, width in sizes], np.int64)
    columns = _COLUMNS + (_MASK_COLUMNS if iou_type == "segm" else [])
    seen: dict[int, str] = {}
    rows: list[np.ndarray] = [np.empty((0, 7))]
    areas: list[np.ndarray] = [np.empty(0)]
    masks: list[Any] = []
    for batch in instances_dataset(run).to_batches(columns=columns, batch_size=_BATCH_ROWS):
        _check_names(batch, seen, names)
        known = pc.is_in(batch["category_id"], pa.array(list(names), pa.int32()))
        place = pc.index_in(batch["image_id"], keys)  # null for images that the truth does not have
        keep = pc.and_(known, place.is_valid())
        if not pc.all(keep, min_count=0).as_py():
            batch, place = batch.filter(keep), place.filter(keep)
        if not batch.num_rows:
            continue
        at = place.to_numpy()
        x1, y1, x2, y2 = (batch[name].to_numpy().astype(np.float64) for name in ("x1", "y1", "x2", "y2"))
        score, category = batch["score"].to_numpy(), batch["category_id"].to_numpy()
        rows.append(np.stack([ids[at], x1, y1, x2 - x1, y2 - y1, score, category], axis=1))
        if iou_type == "segm":
            shape = batch["image_height"].to_numpy().astype(np.int64) << 32 | batch["image_width"].to_numpy()
            if (shape != codes[at]).any():
                name = batch["image_id"][int(np.argmax(shape != codes[at]))].as_py()
                raise EvaluationError(f"the masks of {name!r} have another size than the ground truth; use `evaluate`")
            counts = batch["rle_counts"].to_pylist()
            masks += [{"size": sizes[i], "counts": text} for i, text in zip(at.tolist(), counts, strict=True)]
            areas.append(batch["area_px"].to_numpy().astype(np.float64))
            _check_areas(masks[-len(counts) :], areas[-1])
    return np.concatenate(rows), masks, np.concatenate(areas)


def _check_areas(masks: list[dict[str, Any]], areas: np.ndarray) -> None:
    import hotcoco

    chosen = np.unique(np.linspace(0, len(masks) - 1, _NUM_CHECKED).astype(int))
    if (np.asarray(hotcoco.mask.area([masks[i] for i in chosen])) != areas[chosen]).any():
        raise EvaluationError("the run's area_px is not its masks' area; use `evaluate`, which computes it")


def _check_names(batch: pa.RecordBatch, seen: dict[int, str], names: dict[int, str]) -> None:
    texts = batch["category"].dictionary_encode()
    codes = np.unique(batch["category_id"].to_numpy().astype(np.int64) << 32 | texts.indices.to_numpy())
    spelled = texts.dictionary.to_pylist()
    new = {int(code >> 32): spelled[code & 0xFFFFFFFF] for code in codes}
    if len(new) < len(codes) or any(seen.setdefault(number, name) != name for number, name in new.items()):
        raise EvaluationError("a category id stands for several categories in the run")
    check_categories(new, names)
