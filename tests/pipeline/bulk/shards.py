"""Hand-made shards of a run: known rows, written and committed as a worker does, without a network."""

from __future__ import annotations

from typing import Any

from pipeline.bulk.commit import write_table
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.manifest import Commit
from pipeline.plan import Plan, PlannedImage
from pipeline.storage.local import LocalStorage

SPEC = {"schema_version": 1, "segment": {"score_threshold": 0.05}}


def image_result(image: PlannedImage, scores: tuple[float, ...] = (0.9, 0.4), category: str = "cat") -> ImageResult:
    """An image of 2 x 3 pixels with one instance for each score; every mask has 4 pixels."""
    count = len(scores)
    columns: dict[str, list[Any]] = {
        "instance": list(range(count)),
        "category_id": [7] * count,
        "category": [category] * count,
        "score": list(scores),
        **{name: [float(i)] * count for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        "area_px": [4] * count,
        "rle_counts": ["042"] * count,
        "image_height": [2] * count,
        "image_width": [3] * count,
        "keypoints": [None] * count,
    }
    return ImageResult(image, "ok", None, 2, 3, None, columns)


def write_shard(
    storage: LocalStorage,
    plan: Plan,
    run_id: str,
    shard: int,
    attempt: str,
    results: list[ImageResult] | None = None,
) -> Commit:
    """Writes both tables of a shard and returns the commit that names them, not written yet.

    Args:
        results: its images' results; None makes each image one with two instances.
    """
    if results is None:
        results = [image_result(image) for image in plan.read_shard(shard)]
    tables = dict(zip(("images", "instances"), to_tables(results, shard=shard, run_id=run_id)))
    files = {
        name: write_table(storage, name, shard, attempt, to_parquet(table, {}), table.num_rows)
        for name, table in tables.items()
    }
    statuses = [result.status for result in results]
    counts = {status: statuses.count(status) for status in set(statuses)}
    return Commit(run_id, shard, attempt, **files, statuses=counts, timings_s={"predict": 1.5})
