"""Sealed plans: their columns as a stream over all parts, and what is no plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bulk import corpus
from pipeline.bulk.corpus import seal_plan
from pipeline.manifest import PLAN_KEY, RunError
from pipeline.plan import PlannedImage, from_table, read_plan, to_table
from pipeline.storage.local import LocalStorage


def test_columns_of_all_parts_stream_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PART_ROWS", 512)
    planned = [PlannedImage(f"{i:04d}.jpg", f"/photos/{i:04d}.jpg", None, i) for i in range(1300)]
    plan = seal_plan(LocalStorage(tmp_path), lambda after: planned, shard_size=None, num_workers=1)
    batches = list(plan.iter_columns(["uri", "size_bytes"]))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == [{"uri": image.uri, "size_bytes": image.size_bytes} for image in planned]
    assert len(plan.parts) == 3 and all(batch.num_rows for batch in batches)
    empty = seal_plan(LocalStorage(tmp_path / "empty"), lambda after: [], shard_size=None, num_workers=1)
    assert list(empty.iter_columns(["image_id"])) == []


def test_images_and_tables_are_turned_into_each_other() -> None:
    images = [PlannedImage("a", "/a"), PlannedImage("b.tar/c", "/b.tar", "e", 7, 512)]
    assert list(from_table(to_table(images))) == images
    assert list(from_table(to_table([]))) == []


def test_an_unreadable_plan_is_named(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert read_plan(storage) is None
    storage.write_bytes(PLAN_KEY, b'{"parts": []}')
    with pytest.raises(RunError, match=r"plan\.json is unreadable"):
        read_plan(storage)
