"""Rows of the two tables by hand, and a run made of them, written as a bulk run writes it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import mask_to_box, mask_to_rle
from pipeline.manifest import Commit, DataFile, commit_key, sha256_of, table_key, to_json
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.local import LocalStorage

SPEC = {
    "schema_version": 1,
    "input": {"uri": "photos"},
    "model": {"categories": [{"id": c.id, "name": c.name} for c in SHAPE_CATEGORIES], "spec": {"score_threshold": 0.3}},
    "segment": {"score_threshold": 0.05},
}


def instance_row(image_id: str, rank: int, category: Any, score: float, mask: np.ndarray) -> dict[str, Any]:
    """A row of the instances table with the mask's own box."""
    x1, y1, x2, y2 = mask_to_box(mask)
    return {
        "image_id": image_id,
        "instance": rank,
        "category_id": category.id,
        "category": category.name,
        "score": score,
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "area_px": int(mask.sum()),
        "rle_counts": mask_to_rle(mask)["counts"],
        "image_height": mask.shape[0],
        "image_width": mask.shape[1],
        "keypoints": None,
        "run_id": "test",
    }


def image_row(image_id: str, uri: str, status: str, size: tuple[int, int], found: int, shard: int) -> dict[str, Any]:
    """A row of the images table."""
    ok = status == "ok"
    return {
        "image_id": image_id,
        "uri": uri,
        "etag": None,
        "size_bytes": 1000,
        "status": status,
        "error": None if ok else f"made to be {status}",
        "height": size[0] if ok else None,
        "width": size[1] if ok else None,
        "exif_orientation": None,
        "num_instances": found,
        "shard": shard,
    }


def parquet_bytes(table: pa.Table, row_group_size: int = 8192) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def write_run(
    folder: Path, shards: Sequence[tuple[list[dict[str, Any]], list[dict[str, Any]]]], *, row_group_size: int = 8192
) -> Path:
    """Writes a run of shards of (images, instances), committed one by one, as a bulk run does."""
    storage = LocalStorage(folder)
    storage.write_bytes("run.json", to_json(SPEC))
    for shard, (images, instances) in enumerate(shards):
        found = pa.Table.from_pylist(instances, schema=INSTANCES_SCHEMA)
        found = found.sort_by([("category", "ascending"), ("score", "descending")])
        tables = {"images": pa.Table.from_pylist(images, schema=IMAGES_SCHEMA), "instances": found}
        named = {}
        for name, table in tables.items():
            data = parquet_bytes(table, row_group_size)
            key = table_key(name, shard, "a1")
            storage.write_bytes(key, data)
            named[name] = DataFile(key, table.num_rows, len(data), sha256_of(data))
        commit = Commit("test", shard, "a1", named["images"], named["instances"], {}, {})
        storage.put_if_absent(commit_key(shard), commit.to_json())
    return folder
