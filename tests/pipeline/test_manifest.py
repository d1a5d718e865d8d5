"""Layout of a run: keys, sealed JSON, commits, and the files that readers see before and after seal and repairs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.manifest import (
    FINAL_KEY,
    MANIFEST_KEY,
    MANIFEST_SCHEMA,
    Commit,
    DataFile,
    RunError,
    RunTotals,
    ShardFiles,
    attempt_key,
    commit_key,
    from_sealed_json,
    open_run,
    plan_part_key,
    repair_prefix,
    run_id_of,
    table_key,
    to_json,
    to_sealed_json,
)
from pipeline.storage.local import LocalStorage
from tests.pipeline.made_run import DrawnRun, parquet_bytes

COMMIT = Commit(
    run_id="r",
    shard=1234,
    attempt="a1",
    images=DataFile("i", 2, 10, "aa"),
    instances=DataFile("n", 0, 20, "bb"),
    statuses={"ok": 1, "corrupt": 1},
    timings_s={"read": 0.5},
)


TOTALS = RunTotals(
    run_id="r",
    num_images=8,
    num_shards=3,
    num_instances=5,
    statuses={"ok": 6, "corrupt": 2},
    worker_seconds={"predict": 1.5},
    manifest_sha256="aa",
    plan=(DataFile("p", 8, 10, "cc"),),
    elapsed_s=2.5,
)


@pytest.fixture
def run(drawn_run: DrawnRun, tmp_path: Path) -> LocalStorage:
    """A copy of the drawn run of three shards, committed and not sealed."""
    shutil.copytree(drawn_run.uri, tmp_path / "run")
    return LocalStorage(tmp_path / "run")


def write_manifest(storage: LocalStorage, key: str, files: list[ShardFiles]) -> None:
    rows = [each.to_row() for each in files]
    storage.write_bytes(key, parquet_bytes(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)))


def test_keys_are_those_of_the_layout() -> None:
    assert table_key("images", 1234, "a1") == "images/000001/000001234-a1.parquet"
    assert commit_key(1234) == "commits/000001/000001234.json"
    assert commit_key(999) == "commits/000000/000000999.json"
    assert attempt_key(1234, "a1") == "attempts/000001234/a1.json"
    assert plan_part_key(7, "p1") == "plan/part-000007-p1.parquet"
    assert repair_prefix(2) == "repairs/0002/"


def test_the_run_id_does_not_depend_on_the_order_of_keys() -> None:
    assert run_id_of({"a": 1, "b": {"c": 2, "d": 3}}) == run_id_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert run_id_of({"a": 1}) != run_id_of({"a": 2})
    assert len(run_id_of({})) == 16


def test_a_commit_goes_to_json_and_back() -> None:
    assert Commit.from_json(COMMIT.to_json()) == COMMIT
    assert COMMIT.files.to_row() == {
        **{"shard": 1234, "attempt": "a1"},
        **{"images_key": "i", "images_rows": 2, "images_bytes": 10, "images_sha256": "aa"},
        **{"instances_key": "n", "instances_rows": 0, "instances_bytes": 20, "instances_sha256": "bb"},
    }


def test_totals_go_to_json_and_back_and_tell_the_fraction_that_failed() -> None:
    assert RunTotals.from_json(TOTALS.to_json()) == TOTALS and TOTALS.failed_fraction == 0.25
    assert replace(TOTALS, num_images=0, statuses={}).failed_fraction == 0.0
    with pytest.raises(RunError, match="no totals"):
        RunTotals.from_json(to_sealed_json({"num_images": 8}))


def test_one_flipped_bit_of_a_commit_shows() -> None:
    data = COMMIT.to_json()
    for position in range(len(data)):
        flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        try:
            assert Commit.from_json(flipped) == COMMIT  # white space between the values may change
        except RunError:
            continue
    with pytest.raises(RunError, match="not what was written"):
        from_sealed_json(data.replace(b'"shard": 1234', b'"shard": 1235'))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff", to_sealed_json({"shard": 1})])
def test_what_is_no_commit_is_refused(data: bytes) -> None:
    with pytest.raises(RunError, match=r"no sealed JSON|no commit"):
        Commit.from_json(data)


def test_before_the_seal_readers_see_what_is_committed(run: LocalStorage) -> None:
    opened = open_run(run)
    assert (opened.sealed, opened.final, opened.num_repairs) == (False, None, 0)
    assert [files.shard for files in opened.files] == [0, 1, 2]
    assert [file.key for file in opened.images_files()] == [table_key("images", n, "a1") for n in range(3)]
    run.delete(commit_key(1))
    assert [files.shard for files in open_run(run).files] == [0, 2]
    run.write_bytes(commit_key(1), b"{}")
    with pytest.raises(RunError, match=r"000000001\.json: no sealed JSON"):
        _ = open_run(run).files


def test_after_the_seal_readers_see_the_manifest(run: LocalStorage) -> None:
    rows = open_run(run).files
    write_manifest(run, MANIFEST_KEY, rows)
    run.write_bytes(FINAL_KEY, TOTALS.to_json())
    for shard in range(3):
        run.delete(commit_key(shard))  # no longer asked for
    opened = open_run(run)
    assert opened.sealed and opened.files == rows
    assert opened.final == TOTALS
    assert opened.only(rows[1:2]).instances_files() == opened.instances_files()[1:2]


def test_files_of_a_repair_take_the_place_of_earlier_ones(run: LocalStorage) -> None:
    rows = open_run(run).files
    write_manifest(run, MANIFEST_KEY, rows)
    for number, shards in ((1, (0, 2)), (2, (2,))):
        again = [replace(files, attempt=f"r{number}") for files in rows if files.shard in shards]
        write_manifest(run, repair_prefix(number) + MANIFEST_KEY, again)
    opened = open_run(run)
    assert opened.num_repairs == 2
    assert {files.shard: files.attempt for files in opened.files} == {0: "r1", 1: "a1", 2: "r2"}
    folders = [file.key.partition("images/")[0] for file in opened.images_files()]
    assert folders == ["repairs/0001/", "", "repairs/0002/"]


def test_a_uri_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: it has no run\.json"):
        open_run(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="holds no run"):
        open_run(str(tmp_path / "file"))
    (tmp_path / "run.json").write_bytes(b"{")
    with pytest.raises(RunError, match=r"run\.json is unreadable"):
        open_run(str(tmp_path))


def test_what_json_lacks_is_null() -> None:
    value = {"ap": float("nan"), "interval": (0.5, -math.inf), "rows": [{"b": 1, "a": "NaN"}], "none": None}
    text = to_json(value).decode()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "ap": None,
        "interval": [0.5, None],
        "rows": [{"a": "NaN", "b": 1}],
        "none": None,
    }
