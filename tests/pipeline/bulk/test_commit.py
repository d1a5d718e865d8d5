"""The commit protocol on a real disk: one winner, own files removed, refusals that say why."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.bulk.commit import (
    OtherRunError,
    claim_run,
    commit_shard,
    committed_shards,
    seal_run,
    vacuum,
    write_table,
)
from pipeline.bulk.corpus import Plan, seal_plan
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.bulk.listing import PlannedImage
from pipeline.bulk.verify import verify_run
from pipeline.manifest import Commit, RunError, commit_key, open_run
from pipeline.schema import STATUSES
from pipeline.storage.local import LocalStorage

SPEC = {"schema_version": 1, "segment": {"score_threshold": 0.05}}


def result(image: PlannedImage, rank_scores: tuple[float, ...] = (0.9, 0.4)) -> ImageResult:
    count = len(rank_scores)
    columns = {
        "instance": list(range(count)),
        "category_id": [7] * count,
        "category": ["cat"] * count,
        "score": list(rank_scores),
        **{name: [float(i)] * count for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        "area_px": [4] * count,
        "rle_counts": ["042"] * count,
        "image_height": [2] * count,
        "image_width": [3] * count,
        "keypoints": [None] * count,
    }
    return ImageResult(image, "ok", None, 2, 3, None, columns)


def write_shard(storage: LocalStorage, plan: Plan, run_id: str, shard: int, attempt: str) -> Commit:
    results = [result(image) for image in plan.read_shard(shard)]
    tables = dict(zip(("images", "instances"), to_tables(results, shard=shard, run_id=run_id)))
    files = {
        name: write_table(storage, name, shard, attempt, to_parquet(table, {}), table.num_rows)
        for name, table in tables.items()
    }
    return Commit(run_id, shard, attempt, **files, statuses={"ok": len(results)}, timings_s={"predict": 1.5})


@pytest.fixture
def run(tmp_path: Path) -> tuple[LocalStorage, str, Plan]:
    storage = LocalStorage(tmp_path / "run")
    run_id = claim_run(storage, SPEC)
    planned = [PlannedImage(f"{i}.jpg", f"/p/{i}.jpg", "e", 1) for i in range(10)]
    return storage, run_id, seal_plan(storage, lambda after: planned, shard_size=4, num_workers=1)


def test_claiming_twice_is_resuming_and_another_spec_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert claim_run(storage, SPEC) == claim_run(storage, SPEC)
    with pytest.raises(OtherRunError, match=r"segment\.score_threshold: 0\.05 there, 0\.5 here"):
        claim_run(storage, {"schema_version": 1, "segment": {"score_threshold": 0.5}})


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OtherRunError, match=r"holds holiday\.jpg"):
        claim_run(LocalStorage(tmp_path), SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_the_loser_removes_its_own_files_only(run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = run
    first, second = (write_shard(storage, plan, run_id, 0, attempt) for attempt in ("aaa", "bbb"))
    assert commit_shard(storage, first) == first
    assert commit_shard(storage, second) == first
    assert commit_shard(storage, first) == first, "a lost acknowledgement finds its own commit"
    assert [info.key for info in storage.iter_objects("instances/")] == [first.instances.key]


def test_a_run_is_sealed_only_when_every_shard_is_committed(run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = run
    for shard in (0, 2):
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "a"))
    with pytest.raises(RunError, match="shard 1 is not committed"):
        seal_run(storage, plan, run_id, {})
    with pytest.raises(RunError, match="not sealed"):
        vacuum(storage, plan)
    commit_shard(storage, write_shard(storage, plan, run_id, 1, "a"))
    assert committed_shards(storage) == {0, 1, 2}
    totals = seal_run(storage, plan, run_id, {"elapsed_s": 1})
    assert (totals["num_images"], totals["num_instances"], totals["statuses"]) == (10, 20, {"ok": 10})
    assert seal_run(storage, plan, run_id, {"elapsed_s": 2}) == totals, "the first seal holds"


def test_vacuum_takes_what_no_commit_names(run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = run
    for shard in range(3):
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "a"))
    dead = write_shard(storage, plan, run_id, 1, "died")
    seal_run(storage, plan, run_id, {})
    assert [fault.key for fault in verify_run(open_run(storage.uri))] == [dead.images.key, dead.instances.key]
    assert sorted(vacuum(storage, plan)) == [dead.images.key, dead.instances.key]
    assert list(verify_run(open_run(storage.uri))) == []


@pytest.mark.parametrize("what", ["images", "instances", "plan", "commit", "missing commit", "manifest", "final"])
def test_verify_names_the_file_that_is_wrong(run: tuple[LocalStorage, str, Plan], what: str) -> None:
    storage, run_id, plan = run
    commits = [commit_shard(storage, write_shard(storage, plan, run_id, shard, "a")) for shard in range(3)]
    seal_run(storage, plan, run_id, {})
    key = {
        "images": commits[1].images.key,
        "instances": commits[1].instances.key,
        "plan": plan.parts[0].key,
        "commit": commit_key(1),
        "missing commit": commit_key(1),
        "manifest": "manifest.parquet",
        "final": "final.json",
    }[what]
    if what == "missing commit":
        storage.delete(key)
    else:
        data = bytearray(storage.read_bytes(key))
        data[len(data) // 2] ^= 0x10
        storage.write_bytes(key, bytes(data))
    assert key in {fault.key for fault in verify_run(open_run(storage.uri))}


def test_tables_are_sorted_and_typed(run: tuple[LocalStorage, str, Plan]) -> None:
    _, run_id, plan = run
    images, instances = to_tables([result(image) for image in plan.read_shard(0)], shard=0, run_id=run_id)
    assert images["image_id"].to_pylist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    scores = instances["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    empty_images, empty = to_tables([], shard=0, run_id=run_id)
    assert (empty.num_rows, empty.schema) == (0, instances.schema)
    assert isinstance(empty_images, pa.Table) and "ok" in STATUSES
