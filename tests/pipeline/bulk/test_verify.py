"""What `verify_run` finds: flipped bytes, missing files, and tables that are whole but say something wrong."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from pipeline.bulk.commit import commit_shard, seal_run
from pipeline.bulk.corpus import Plan
from pipeline.bulk.encode import ImageResult
from pipeline.bulk.verify import verify_run
from pipeline.manifest import MANIFEST_KEY, RUN_KEY, commit_key, open_run, to_json
from pipeline.storage.local import LocalStorage
from tests.pipeline.bulk.shards import SPEC, image_result, write_shard


@pytest.mark.parametrize("kind", ["images", "instances", "plan", "commit", "missing commit", "manifest", "final"])
def test_verify_names_the_file_that_is_wrong(planned_run: tuple[LocalStorage, str, Plan], kind: str) -> None:
    storage, run_id, plan = planned_run
    commits = [commit_shard(storage, write_shard(storage, plan, run_id, shard, "a")) for shard in range(3)]
    seal_run(storage, plan, run_id)
    key = {
        "images": commits[1].images.key,
        "instances": commits[1].instances.key,
        "plan": plan.parts[0].key,
        "commit": commit_key(1),
        "missing commit": commit_key(1),
        "manifest": "manifest.parquet",
        "final": "final.json",
    }[kind]
    if kind == "missing commit":
        storage.delete(key)
    else:
        data = bytearray(storage.read_bytes(key))
        data[len(data) // 2] ^= 0x10
        storage.write_bytes(key, bytes(data))
    assert key in {fault.key for fault in verify_run(open_run(storage.uri))}


def wrong_results(kind: str, results: list[ImageResult]) -> list[ImageResult]:
    """The results of a shard with one of them made wrong."""
    first = results[0]
    if kind == "another image":
        first.image = dataclasses.replace(first.image, image_id="stranger.jpg")
    elif kind == "another area":
        first.instances["area_px"][0] += 1
    elif kind == "a rank twice":
        first.instances["instance"][1] = 0
    elif kind == "unknown status":
        results[0] = ImageResult(first.image, "lost")
    return results


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("another image", "its images are not those of the plan"),
        ("another area", "area_px is not the area of the masks"),
        ("a rank twice", "0.jpg: 2 instances, the images table says 2"),
        ("unknown status", "unknown status 'lost'"),
        ("counts", r"it counts {'ok': 3}, the table holds {'ok': 4}"),
        ("another run", "rows of another run"),
    ],
)
def test_whole_tables_that_say_something_wrong_are_faults(
    planned_run: tuple[LocalStorage, str, Plan], kind: str, reason: str
) -> None:
    storage, run_id, plan = planned_run
    results = wrong_results(kind, [image_result(image) for image in plan.read_shard(0)])
    commit = write_shard(storage, plan, "other" if kind == "another run" else run_id, 0, "a", results)
    commit = dataclasses.replace(commit, run_id=run_id, statuses={"ok": 3} if kind == "counts" else commit.statuses)
    commit_shard(storage, commit)
    faults = [fault for fault in verify_run(open_run(storage.uri)) if "000000000" in fault.key]
    assert reason in {fault.reason for fault in faults}


def test_a_run_that_was_never_planned_or_never_sealed_is_not_whole(
    planned_run: tuple[LocalStorage, str, Plan],
) -> None:
    storage, _, _ = planned_run
    reasons = {fault.key: fault.reason for fault in verify_run(open_run(storage.uri))}
    assert reasons[commit_key(0)] == "the shard is not committed" and "not sealed" in reasons["manifest.parquet"]
    unplanned = LocalStorage(storage.uri + "-unplanned")
    unplanned.write_bytes(RUN_KEY, to_json(SPEC))
    assert [fault.reason for fault in verify_run(open_run(unplanned.uri))] == ["the run was never planned"]


def test_a_file_that_no_commit_names_is_a_fault(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = planned_run
    for shard in range(3):
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "a"))
    seal_run(storage, plan, run_id)
    assert list(verify_run(open_run(storage.uri))) == []
    storage.write_bytes("images/000000/notes.txt", b"x")
    storage.write_bytes("attempts/000000000/a.json", b"{}")
    faults = list(verify_run(open_run(storage.uri)))
    assert [(fault.key, fault.reason) for fault in faults] == [("images/000000/notes.txt", "no commit names it")]


def test_each_file_is_downloaded_once(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = planned_run
    for shard in range(3):
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "a"))
    seal_run(storage, plan, run_id)
    gets: Counter[str] = Counter()

    class CountingStorage(LocalStorage):
        def read_bytes(self, key: str) -> bytes:
            gets[key] += 1
            return super().read_bytes(key)

    assert list(verify_run(open_run(CountingStorage(storage.uri)))) == []
    assert {MANIFEST_KEY, commit_key(0), "final.json"} < gets.keys()
    assert {key: count for key, count in gets.items() if count > 1} == {}
