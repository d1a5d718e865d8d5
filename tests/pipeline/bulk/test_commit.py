"""The commit protocol on a real disk: one winner, own files removed, refusals that say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bulk.commit import (
    OtherRunError,
    claim_run,
    commit_shard,
    committed_shards,
    seal_run,
    vacuum,
)
from pipeline.bulk.corpus import Plan
from pipeline.bulk.verify import verify_run
from pipeline.manifest import RunError, open_run
from pipeline.storage.local import LocalStorage
from tests.pipeline.bulk.shards import SPEC, write_shard


def test_claiming_twice_is_resuming_and_another_spec_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert claim_run(storage, SPEC) == claim_run(storage, SPEC)
    with pytest.raises(OtherRunError, match=r"segment\.score_threshold +0\.05 +0\.5"):
        claim_run(storage, {"schema_version": 1, "segment": {"score_threshold": 0.5}})


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OtherRunError, match=r"holds holiday\.jpg"):
        claim_run(LocalStorage(tmp_path), SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_the_loser_removes_its_own_files_only(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = planned_run
    first, second = (write_shard(storage, plan, run_id, 0, attempt) for attempt in ("aaa", "bbb"))
    assert commit_shard(storage, first) == first
    assert commit_shard(storage, second) == first
    assert commit_shard(storage, first) == first, "a lost acknowledgement finds its own commit"
    assert [info.key for info in storage.iter_objects("instances/")] == [first.instances.key]


def test_a_run_is_sealed_only_when_every_shard_is_committed(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = planned_run
    for shard in (0, 2):
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "a"))
    with pytest.raises(RunError, match="shard 1 is not committed"):
        seal_run(storage, plan, run_id)
    with pytest.raises(RunError, match="not sealed"):
        vacuum(storage, plan)
    commit_shard(storage, write_shard(storage, plan, run_id, 1, "a"))
    assert committed_shards(storage) == {0, 1, 2}
    totals = seal_run(storage, plan, run_id, 1.0)
    assert (totals.num_images, totals.num_instances, totals.statuses) == (10, 20, {"ok": 10})
    assert seal_run(storage, plan, run_id, 2.0) == totals, "the first seal holds"


def test_vacuum_takes_what_no_commit_names(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = planned_run
    for shard in range(3):
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "a"))
    dead = write_shard(storage, plan, run_id, 1, "died")
    seal_run(storage, plan, run_id)
    assert [fault.key for fault in verify_run(open_run(storage.uri))] == [dead.images.key, dead.instances.key]
    assert sorted(vacuum(storage, plan)) == [dead.images.key, dead.instances.key]
    assert list(verify_run(open_run(storage.uri))) == []
