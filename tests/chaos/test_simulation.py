"""The commit protocol in thousands of random schedules, and broken protocols that the simulation has to detect."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.bulk import commit as protocol
from pipeline.manifest import RunError
from tests.chaos.simulation import Broken, World, Writer, read_by_glob, read_by_manifest, simulate


@pytest.mark.parametrize("part", [0, 1, 2, *(pytest.param(part, marks=pytest.mark.long) for part in (3, 4))])
def test_random_schedules_break_no_invariant(part: int) -> None:
    for seed in range(80 * part, 80 * (part + 1)):
        simulate(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_ten_thousand_random_schedules_break_no_invariant(part: int) -> None:
    for seed in range(10_000 + 500 * part, 10_000 + 500 * (part + 1)):
        simulate(seed)


class WithoutPutIfAbsent(Writer):
    """The store overwrites instead of refusing."""

    atomic = False


class CommitBeforeData(Writer):
    """The commit is written first, the tables after it."""

    def segment_shard(self, plan, run_id, shard, attempt):
        files = {table: self.data_file(plan, table, shard, attempt) for table in ("images", "instances")}
        self.commit(run_id, plan, shard, attempt, files)
        for file, data in files.values():
            self.storage.write_bytes(file.key, data)


class ReusedAttemptName(Writer):
    """Every attempt at a shard writes files of the same names."""

    def attempt_name(self, shard):
        return "same"


class VacuumBeforeSeal(Writer):
    """Files without a commit are removed while writers may still be about to commit them."""

    def finish(self, plan, run_id):
        named = {
            getattr(commit, table).key
            for shard in range(plan.num_shards)
            if (commit := protocol.read_commit(self.storage, shard)) is not None
            for table in ("images", "instances")
        }
        for folder in ("images/", "instances/"):
            for info in self.storage.iter_objects(folder):
                if info.key not in named:
                    self.storage.delete(info.key)
        super().finish(plan, run_id)

    def segment_shard(self, plan, run_id, shard, attempt):
        super().segment_shard(plan, run_id, shard, attempt)
        try:
            self.finish(plan, run_id)
        except RunError:
            pass


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (WithoutPutIfAbsent, read_by_manifest),
        (CommitBeforeData, read_by_manifest),
        (ReusedAttemptName, read_by_manifest),
        (VacuumBeforeSeal, read_by_manifest),
        (Writer, read_by_glob),
    ],
    ids=lambda value: value.__name__,
)
def test_a_broken_protocol_is_detected(writer: type[Writer], reader: Callable[[World], list[str]]) -> None:
    with pytest.raises(Broken):
        for seed in range(300):
            simulate(seed, writer, reader)
