"""AP of a whole run at the speed of its Parquet: rows become COCO results text by Arrow's own kernels, batch by batch,
and hotcoco reads that text. No Python object is made for a detection, so memory is the evaluator's own.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest import Run
from pipeline.results.coco_eval import CocoResult, has_hotcoco, read_hotcoco
from pipeline.results.query import instances_dataset, load_images
from pipeline.results.truth import EvaluationError, check_categories, match_images
from pipeline.storage import is_local, local_path

_COLUMNS = {
    "bbox": ["x1", "y1", "x2", "y2"],
    "segm": ["rle_counts", "image_height", "image_width"],
}
_BATCH_ROWS = 65_536


def coco_figures(run: str | Run, ground_truth: str, iou_type: str = "segm") -> CocoResult:
    """COCO's evaluation of a run: the figures of `evaluate_run`, many times faster, and nothing but them.

    The truth is taken as a well-formed COCO file of this machine and goes to hotcoco as it is; images, categories and
    sizes are matched and checked as `evaluate` does, but what `evaluate` counts and leaves out is an error here.

    Args:
        run: a run, or Parquet with the same columns.
        ground_truth: path of a COCO JSON file.
        iou_type: bbox or segm.

    Raises:
        ImportError: hotcoco is not installed.
        EvaluationError: a truth that does not fit, or masks of another size than their image; use `evaluate`, which
            reports these.
        ValueError: another iou_type, or a truth that is no local file.
    """
    if iou_type not in _COLUMNS:
        raise ValueError(f"iou_type is {iou_type!r}; allowed are {', '.join(_COLUMNS)}")
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
    matched = match_images(load_images(run, ["image_id"])["image_id"], images)
    names = {number: category["name"] for number, category in truth.cats.items()}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        num = _write_results(file, run, iou_type, matched.truth_id, images, names)
        if num:
            found = truth.load_res(file.name)
        else:
            found = hotcoco.COCO({"images": images, "annotations": [], "categories": list(truth.cats.values())})
    return read_hotcoco(hotcoco.COCOeval(truth, found, iou_type), iou_type)


def _write_results(
    file: IO[bytes],
    run: str | Run,
    iou_type: str,
    truth_id: dict[str, Any],
    images: list[dict[str, Any]],
    names: dict[int, str],
) -> int:
    """Writes COCO results of the run's rows on images of the truth; returns their number."""
    keys = pa.array(list(truth_id), pa.string())
    ids = pa.array(list(truth_id.values()), pa.int64())
    size_of = {image["id"]: image["height"] << 32 | image["width"] for image in images}
    sizes = np.array([size_of[number] for number in truth_id.values()], np.int64)
    columns = ["image_id", "category_id", "category", "score", *_COLUMNS[iou_type]]
    seen: dict[int, str] = {}
    num = 0
    separator = b"["
    for batch in instances_dataset(run).to_batches(columns=columns, batch_size=_BATCH_ROWS):
        place = pc.index_in(batch["image_id"], keys)
        if place.null_count:  # images that the truth does not have
            batch, place = batch.filter(place.is_valid()), place.drop_null()
        _check_names(batch, seen, names)
        known = pc.is_in(batch["category_id"], pa.array(list(names), pa.int32()))
        if not pc.all(known, min_count=0).as_py():
            batch, place = batch.filter(known), place.filter(known)
        if not batch.num_rows:
            continue
        if iou_type == "segm":
            shape = batch["image_height"].to_numpy().astype(np.int64) << 32 | batch["image_width"].to_numpy()
            wrong = np.flatnonzero(shape != sizes[place.to_numpy()])
            if len(wrong):
                name = batch["image_id"][int(wrong[0])].as_py()
                raise EvaluationError(f"the masks of {name!r} have another size than the ground truth; use `evaluate`")
        text = _to_text(batch, iou_type, pc.take(ids, place))
        offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
        file.write(separator)
        # Each entry ends in a comma; the last one's is written over or left to the next batch.
        file.write(memoryview(text.buffers()[2])[int(offsets[0]) : int(offsets[-1]) - 1])
        separator = b","
        num += batch.num_rows
    file.write(b"]")
    file.flush()
    return num


def _to_text(batch: pa.RecordBatch, iou_type: str, image_ids: pa.Array) -> pa.StringArray:
    """One COCO result a row, followed by a comma. Numbers are written so that they read back as the same float64."""
    score = _number(batch["score"])
    head = ['{"image_id":', image_ids.cast(pa.string()), ',"category_id":', batch["category_id"].cast(pa.string())]
    if iou_type == "segm":
        # A backslash is the one character of a run-length string that JSON must escape.
        counts = pc.replace_substring(batch["rle_counts"], "\\", "\\\\")
        height, width = (batch[name].cast(pa.string()) for name in ("image_height", "image_width"))
        tail = [',"segmentation":{"size":[', height, ",", width, '],"counts":"', counts, '"}},']
    else:
        x1, y1, x2, y2 = (batch[name].cast(pa.float64()) for name in _COLUMNS["bbox"])
        sides = [_number(value) for value in (x1, y1, pc.subtract(x2, x1), pc.subtract(y2, y1))]
        tail = [',"bbox":[', sides[0], ",", sides[1], ",", sides[2], ",", sides[3], "]},"]
    return pc.binary_join_element_wise(*head, ',"score":', score, *tail, "")


def _number(values: pa.Array) -> pa.StringArray:
    return values.cast(pa.float64()).cast(pa.string())


def _check_names(batch: pa.RecordBatch, seen: dict[int, str], names: dict[int, str]) -> None:
    pairs = pa.table({"id": batch["category_id"], "name": batch["category"]}).group_by(["id", "name"]).aggregate([])
    new = {number: name for number, name in zip(pairs["id"].to_pylist(), pairs["name"].to_pylist(), strict=True)}
    clash = [n for n, name in new.items() if seen.setdefault(n, name) != name]
    if clash or len(new) < pairs.num_rows:
        raise EvaluationError("a category id stands for several categories in the run")
    check_categories(new, names)
