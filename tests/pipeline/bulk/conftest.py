"""A claimed and planned run on a local disk, for the tests of the commit protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bulk.commit import claim_run
from pipeline.bulk.corpus import seal_plan
from pipeline.plan import Plan, PlannedImage
from pipeline.storage.local import LocalStorage
from tests.pipeline.bulk.shards import SPEC


@pytest.fixture
def planned_run(tmp_path: Path) -> tuple[LocalStorage, str, Plan]:
    """The storage, run id and plan of a run of ten images in three shards, none of them committed."""
    storage = LocalStorage(tmp_path / "run")
    run_id = claim_run(storage, SPEC)
    planned = [PlannedImage(f"{i}.jpg", f"/p/{i}.jpg", "e", 1) for i in range(10)]
    return storage, run_id, seal_plan(storage, lambda after: planned, shard_size=4, num_workers=1)
