"""Runs made for tests: rows of the two tables by hand, and their files as a bulk run writes them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.shapes import SHAPE_CATEGORIES, draw_image
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, mask_to_box, mask_to_rle
from pipeline.manifest import Commit, DataFile, commit_key, sha256_of, table_key, to_json
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.files import Location
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


def image_row(
    image_id: str, uri: str, status: str, size: tuple[int, int], num_instances: int, shard: int
) -> dict[str, Any]:
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
        "num_instances": num_instances,
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
        rows = pa.Table.from_pylist(instances, schema=INSTANCES_SCHEMA)
        rows = rows.sort_by([("category", "ascending"), ("score", "descending")])
        tables = {"images": pa.Table.from_pylist(images, schema=IMAGES_SCHEMA), "instances": rows}
        files = {}
        for name, table in tables.items():
            data = parquet_bytes(table, row_group_size)
            key = table_key(name, shard, "a1")
            storage.write_bytes(key, data)
            files[name] = DataFile(key, table.num_rows, len(data), sha256_of(data))
        commit = Commit("test", shard, "a1", files["images"], files["instances"], {}, {})
        storage.put_if_absent(commit_key(shard), commit.to_json())
    return folder


@dataclass(frozen=True)
class DrawnRun:
    """A run over drawn photos.

    Attributes:
        uri: of the run.
        truth: the objects that were drawn.
        photos: the photos' folder.
        masks: uint8 [H, W] of each detection, by (image_id, instance).
    """

    uri: str
    truth: AnnotatedSet
    photos: Path
    masks: dict[tuple[str, int], np.ndarray]

    @property
    def coco(self) -> dict[str, Any]:
        """The truth as a new COCO JSON object."""
        return to_coco(self.truth)


def write_drawn_run(root: Path) -> DrawnRun:
    """Draws eight photos of shapes below `root` and writes a run over them, in three shards; the last photo is corrupt.

    The detections are the drawn objects without one in five, one in six as another class, each mask shifted by up to
    two pixels, and some rectangles where nothing was drawn.
    """
    rng = np.random.default_rng(7)
    annotated: list[AnnotatedImage] = []
    shards: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []
    masks: dict[tuple[str, int], np.ndarray] = {}
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for number in range(8):
        drawn = draw_image(rng, (96 + 8 * number, 120))
        height, width = size = drawn.pixels.shape[0], drawn.pixels.shape[1]
        name = f"sub/photo_{number}.png"
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.pixels).save(path)
        annotated.append(AnnotatedImage(number + 1, name, Location(str(path)), height, width, drawn.instances))
        rows = []
        if number < 7:
            for label, mask in zip(drawn.labels, drawn.masks, strict=True):
                if rng.random() < 0.2:
                    continue
                label = label % 3 + 1 if rng.random() < 1 / 6 else label
                moved = np.roll(mask, tuple(rng.integers(-2, 3, 2)), (0, 1))
                rows.append((SHAPE_CATEGORIES[label - 1], float(np.float32(rng.uniform(0.3, 1))), moved))
            for _ in range(rng.integers(0, 3)):
                ghost = np.zeros(size, bool)
                top, left = rng.integers(0, 60, 2)
                ghost[top : top + 20, left : left + 25] = True
                rows.append((SHAPE_CATEGORIES[rng.integers(3)], float(np.float32(rng.uniform(0.05, 0.6))), ghost))
        rows.sort(key=lambda row: -row[1])
        for rank, (category, score, mask) in enumerate(rows):
            instances.append(instance_row(name, rank, category, score, mask))
            masks[name, rank] = mask.astype(np.uint8)
        images.append(image_row(name, str(path), "ok" if number < 7 else "corrupt", size, len(rows), len(shards)))
        if number % 3 == 2 or number == 7:
            shards.append((images, instances))
            images, instances = [], []
    run = write_run(root / "run", shards, row_group_size=4)
    return DrawnRun(str(run), AnnotatedSet(tuple(annotated), SHAPE_CATEGORIES), root / "photos", masks)
