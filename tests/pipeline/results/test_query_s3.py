"""A run in a bucket answers as on disk, and only what is asked for is fetched; against moto's server."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.results import load_images, load_instances
from pipeline.results.export import export_run
from pipeline.storage import open_storage


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
