"""A run in a bucket answers as on disk, and only what is asked for is fetched; against moto's server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.results.export import export_run
from pipeline.schema import INSTANCES_SCHEMA
from pipeline.storage.s3 import S3Storage
from pipeline.storage.stores import open_storage
from pipeline.tables import load_images, load_instances
from tests.pipeline.made_run import instance_row, parquet_bytes


def test_a_run_in_a_bucket(bucket, drawn_run):
    run, yolo = f"{bucket}/run", f"{bucket}/yolo"
    storage = open_storage(run)
    root = Path(drawn_run.uri)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            storage.write_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    pd.testing.assert_frame_equal(load_instances(run), load_instances(drawn_run.uri))
    pd.testing.assert_frame_equal(load_images(run), load_images(drawn_run.uri))
    filters = [("category", "==", "circle"), ("score", ">", 0.5)]
    some = load_instances(run, ["score", "rle_counts"], filters)
    pd.testing.assert_frame_equal(some, load_instances(drawn_run.uri, ["score", "rle_counts"], filters))
    assert len(some)
    assert export_run(run, yolo, "yolo") == 8
    assert {info.key for info in open_storage(yolo).iter_objects()} >= {"data.yaml"}


def test_only_row_groups_that_can_match_are_fetched(bucket, monkeypatch):
    rng = np.random.default_rng(0)
    mask = np.ones((4, 4), bool)
    kinds = [SimpleNamespace(id=n, name=f"class_{n}") for n in range(10)]
    row = instance_row("a.jpg", 0, kinds[0], 0.5, mask)
    rows = [
        {**row, "category_id": n % 10, "category": f"class_{n % 10}", "rle_counts": rng.bytes(150).hex()}
        for n in range(20_000)
    ]
    table = pa.Table.from_pylist(rows, schema=INSTANCES_SCHEMA).sort_by("category")
    data = parquet_bytes(table, 500)
    open_storage(f"{bucket}/rows").write_bytes("all.parquet", data)
    fetched = []
    read = S3Storage.read_object

    def counting(self, key, start=0, size=None):
        answer = read(self, key, start, size)
        fetched.append(len(answer[0]))
        return answer

    monkeypatch.setattr(S3Storage, "read_object", counting)
    found = load_instances(f"{bucket}/rows", filters=[("category", "==", "class_7")])
    assert len(found) == 2_000 and set(found["category_id"]) == {7}
    assert 0.1 * len(data) < sum(fetched) < 0.5 * len(data)
    fetched.clear()
    assert len(load_instances(f"{bucket}/rows")) == 20_000
    assert sum(fetched) >= 0.9 * len(data)
