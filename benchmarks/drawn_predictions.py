"""Synthetic predictions and ground truth for benchmarks: COCO JSON, a run's Parquet and COCO results JSON.

Objects are star-shaped blobs whose boxes are distributed like COCO's. A detection is an object's blob with random
changes of shape, scale and position, or a false positive. Masks come from the same encoder as those of a real run.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import (
    MANIFEST_KEY,
    MANIFEST_SCHEMA,
    Commit,
    DataFile,
    commit_key,
    sha256_of,
    table_key,
    to_json,
)
from pipeline.masks.rle import encode_roi_masks, rle_areas
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.local import LocalStorage

SIZE = (480, 640)
NUM_CATEGORIES = 80
_MASK_SIDE = 28
_NUM_CORNERS = 24
IMAGES_A_SHARD = 256


def draw(folder: Path, *, num_images: int, num_objects: int, detections: int, seed: int = 0) -> None:
    """Writes `truth.json`, `run/` and `results.json` below a folder, unless they exist.

    Args:
        num_images, num_objects: of the ground truth.
        detections: number of detections in each image.
    """
    if (folder / "results.json").exists():
        return
    rng = np.random.default_rng(seed)
    objects_per_image = rng.multinomial(num_objects, np.full(num_images, 1 / num_images))
    truth: dict[str, Any] = {
        "images": [
            {"id": i + 1, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(num_images)
        ],
        "categories": [{"id": c + 1, "name": f"class_{c:02d}"} for c in range(NUM_CATEGORIES)],
        "annotations": [],
    }
    tables = (
        _draw_image(rng, truth, image_index, int(objects_per_image[image_index]), detections)
        for image_index in range(num_images)
    )
    write_run(folder / "run", _shards(tables), row_group_size=8192)
    (folder / "truth.json").write_text(json.dumps(truth))
    _write_results(folder, truth)


def write_run(folder: Path, shards: Iterable[tuple[pa.Table, pa.Table]], **parquet_options: Any) -> None:
    """Writes a sealed run.

    Args:
        folder: Of the run.
        shards: The tables `images` and `instances` of each shard.
        parquet_options: Of `pyarrow.parquet.write_table`, beside zstd and checksums of pages.
    """
    storage = LocalStorage(folder)
    storage.write_bytes("run.json", to_json({"segment": {"score_threshold": 0.0}}))
    rows = []
    for shard, tables in enumerate(shards):
        files = []
        for kind, table in zip(("images", "instances"), tables):
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **parquet_options)
            key = table_key(kind, shard, "a1")
            storage.write_bytes(key, buffer.getvalue())
            files.append(DataFile(key, table.num_rows, buffer.tell(), sha256_of(buffer.getvalue())))
        commit = Commit("drawn", shard, "a1", files[0], files[1], {"ok": tables[0].num_rows}, {})
        storage.put_if_absent(commit_key(shard), commit.to_json())
        rows.append(commit.files.to_row())
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), folder / MANIFEST_KEY)


def write_list(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON list entry by entry, so that it is never in memory as a whole."""
    with open(path, "w") as file:
        separator = "["
        for entry in entries:
            file.write(separator + json.dumps(entry))
            separator = ","
        file.write("]")


def _draw_image(
    rng: np.random.Generator, truth: dict[str, Any], image_index: int, num_objects: int, detections: int
) -> pa.Table:
    height, width = SIZE
    sides = np.clip(np.exp(rng.normal(4.0, 0.9, (num_objects, 2))), 6, [width * 0.9, height * 0.9])
    centres = rng.random((num_objects, 2)) * [width, height]
    angles = np.linspace(0, 2 * np.pi, _NUM_CORNERS, endpoint=False)
    radii = 0.75 + 0.25 * np.cos(rng.integers(1, 4, (num_objects, 1)) * angles + rng.uniform(0, 6, (num_objects, 1)))
    classes = rng.integers(0, NUM_CATEGORIES, num_objects)
    for i in range(num_objects):
        x = np.clip(centres[i, 0] + sides[i, 0] / 2 * radii[i] * np.cos(angles), 0, width)
        y = np.clip(centres[i, 1] + sides[i, 1] / 2 * radii[i] * np.sin(angles), 0, height)
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        truth["annotations"].append(
            {
                "id": len(truth["annotations"]) + 1,
                "image_id": image_index + 1,
                "category_id": int(classes[i]) + 1,
                "segmentation": [np.stack([x, y], 1).round(2).ravel().tolist()],
                "bbox": [round(float(v), 2) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))],
                "area": round(float(area), 2),
                "iscrowd": 0,
            }
        )
    source = rng.integers(0, num_objects, detections) if num_objects else np.zeros(detections, int)
    is_object = (rng.random(detections) < 0.6) & (num_objects > 0)
    if num_objects == 0:
        sides, centres, radii, classes = (
            np.full((1, 2), 50.0),
            np.full((1, 2), 99.0),
            np.ones((1, _NUM_CORNERS)),
            classes,
        )
        classes = np.zeros(1, int)
    jitter = np.where(is_object, rng.exponential(0.12, detections), 1.0)[:, None]
    centre = np.where(is_object[:, None], centres[source], rng.random((detections, 2)) * [width, height])
    size = sides[source] * np.exp(rng.normal(0, 0.5, (detections, 2)) * jitter)
    centre = centre + rng.normal(0, 0.5, (detections, 2)) * size * jitter
    radius = radii[source] * (1 + 0.3 * jitter * rng.normal(0, 1, (detections, 1)))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    counts = encode_roi_masks(_blobs(angles, radius), boxes, SIZE)
    label = np.where(
        is_object & (rng.random(detections) < 0.9), classes[source], rng.integers(0, NUM_CATEGORIES, detections)
    )
    score = np.clip(rng.beta(2, 4, detections) + is_object * 0.4 * np.exp(-3 * jitter[:, 0]), 0, 1).astype(np.float32)
    order = np.argsort(-score, kind="stable")
    return pa.table(
        {
            "image_id": [f"{image_index:012d}.jpg"] * detections,
            "instance": pa.array(range(detections), pa.int32()),
            "category_id": pa.array(label[order] + 1, pa.int32()),
            "category": [f"class_{c:02d}" for c in label[order]],
            "score": score[order],
            **{name: boxes[order, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))},
            "area_px": rle_areas(counts)[order],
            "rle_counts": [counts[i] for i in order],
            "image_height": pa.array([height] * detections, pa.int32()),
            "image_width": pa.array([width] * detections, pa.int32()),
            "keypoints": pa.nulls(detections, pa.list_(pa.float32())),
            "run_id": ["drawn"] * detections,
        },
        schema=INSTANCES_SCHEMA,
    )


def _blobs(angles: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Mask probabilities, float32 [N, 28, 28], of star-shaped blobs that fill their boxes; 0.5 on the outline."""
    y, x = np.mgrid[-1 : 1 : _MASK_SIDE * 1j, -1 : 1 : _MASK_SIDE * 1j]
    angle_index = np.round((np.arctan2(y, x) % (2 * np.pi)) / (angles[1] - angles[0])).astype(int) % len(angles)
    return (1 / (1 + np.exp(-12 * (radius[:, angle_index] - np.hypot(x, y))))).astype(np.float32)


def _shards(tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The tables `images` and `instances` of each shard, from the instances of each image."""
    numbered = enumerate(tables)
    for shard in itertools.count():
        rows = list(itertools.islice(numbered, IMAGES_A_SHARD))
        if not rows:
            return
        images = [
            {
                "image_id": f"{number:012d}.jpg",
                "uri": f"photos/{number:012d}.jpg",
                "status": "ok",
                "height": SIZE[0],
                "width": SIZE[1],
                "num_instances": table.num_rows,
                "shard": shard,
            }
            for number, table in rows
        ]
        instances = pa.concat_tables(table for _, table in rows)
        yield (
            pa.Table.from_pylist(images, schema=IMAGES_SCHEMA),
            instances.sort_by([("category", "ascending"), ("score", "descending")]),
        )


def _write_results(folder: Path, truth: dict[str, Any]) -> None:
    """Writes the same predictions as COCO results JSON, with the values and the order of the Parquet."""
    from pipeline.tables import iter_instances

    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    write_list(
        folder / "results.json",
        (
            {
                "image_id": ids[row.image_id],
                "category_id": row.category_id,
                "score": float(row.score),
                "segmentation": {"size": [row.image_height, row.image_width], "counts": row.rle_counts},
            }
            for frame in iter_instances(str(folder / "run"))
            for row in frame.itertuples()
        ),
    )
