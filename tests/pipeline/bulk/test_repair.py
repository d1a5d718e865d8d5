"""Repairs of a sealed run: which images are tried again, how their rows are merged, and what readers then see."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from jobs.segment import prepare_retry, run_retry
from pipeline.bulk.commit import commit_shard, seal_run
from pipeline.bulk.encode import ImageResult, to_tables
from pipeline.bulk.repair import begin_repair, merge_tables, seal_repair
from pipeline.bulk.verify import verify_run
from pipeline.manifest import RunError, open_run
from pipeline.plan import Plan, PlannedImage
from pipeline.storage.local import LocalStorage
from pipeline.tables import load_images, load_instances
from tests.pipeline.bulk.segmenting import segment, sorted_rows
from tests.pipeline.bulk.shards import image_result, write_shard


def seal_with_failures(storage: LocalStorage, run_id: str, plan: Plan, failed: dict[str, str]) -> None:
    """Commits every shard, the images in `failed` with that status instead of instances, and seals the run."""
    for shard in range(plan.num_shards):
        results = [
            ImageResult(image, failed[image.image_id], "why") if image.image_id in failed else image_result(image)
            for image in plan.read_shard(shard)
        ]
        commit_shard(storage, write_shard(storage, plan, run_id, shard, "first", results))
    seal_run(storage, plan, run_id)


def test_rows_of_redone_images_take_the_place_of_their_old_ones() -> None:
    a, b, c = (PlannedImage(name, f"/{name}") for name in "abc")
    old = to_tables([image_result(a), ImageResult(b, "timeout", "slow"), image_result(c)], shard=0, run_id="r")
    redone = to_tables([image_result(b, (0.95, 0.1))], shard=0, run_id="r")
    expected = to_tables([image_result(a), image_result(b, (0.95, 0.1)), image_result(c)], shard=0, run_id="r")
    merged = merge_tables(old, redone)
    assert [table.to_pylist() for table in merged] == [table.to_pylist() for table in expected]
    nothing: tuple[pa.Table, pa.Table] = to_tables([], shard=0, run_id="r")
    assert [table.to_pylist() for table in merge_tables(old, nothing)] == [table.to_pylist() for table in old]


def test_a_repair_takes_the_shards_with_images_of_its_statuses(
    planned_run: tuple[LocalStorage, str, Plan],
) -> None:
    storage, run_id, plan = planned_run
    seal_with_failures(storage, run_id, plan, {"1.jpg": "timeout", "8.jpg": "timeout", "9.jpg": "not_found"})
    run = open_run(storage.uri)
    assert begin_repair(run, ("corrupt",)) is None, "no image ended so"
    repair = begin_repair(run, ("timeout",))
    assert repair is not None
    assert (repair.number, repair.shards, repair.num_images) == (1, (0, 2), 2)
    resumed = begin_repair(open_run(storage.uri), ("timeout",))
    assert resumed is not None and (resumed.number, resumed.shards, resumed.num_images) == (1, (0, 2), 2)


def test_an_unfinished_repair_of_other_statuses_comes_first(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    storage, run_id, plan = planned_run
    with pytest.raises(RunError, match="is not finished"):
        begin_repair(open_run(storage.uri), ("timeout",))
    seal_with_failures(storage, run_id, plan, {"1.jpg": "timeout", "9.jpg": "not_found"})
    with pytest.raises(RunError, match="'lost' is no status"):
        begin_repair(open_run(storage.uri), ("lost",))
    repair = begin_repair(open_run(storage.uri), ("timeout",))
    assert repair is not None
    with pytest.raises(RunError, match="was begun for timeout"):
        begin_repair(open_run(storage.uri), ("not_found",))
    with pytest.raises(RunError, match="shard 0 is not committed"):
        seal_repair(repair)
    assert isinstance(repair.storage, LocalStorage)
    commit_shard(repair.storage, write_shard(repair.storage, plan, run_id, 0, "second"))
    assert seal_repair(repair) == {"ok": 4}
    following = begin_repair(open_run(storage.uri), ("not_found",))
    assert following is not None and (following.number, following.shards) == (2, (2,))


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_retry_repairs_beside_the_run(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for i, source in enumerate(sorted(photos.rglob("roll-*/*.png"))[:6]):
        shutil.copy(source, folder / f"{i}.png")
    (folder / "later.png").symlink_to(tmp_path / "arrives-later.png")
    segment(tiny_checkpoint, folder, out, "corpus.shard_size=4")
    sealed = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    before = load_images(str(out)).set_index("image_id")
    assert before.loc["later.png", "status"] == "not_found"

    shutil.copy(folder / "0.png", tmp_path / "arrives-later.png")
    assert run_retry(prepare_retry(str(out), [])) == {"ok": 3}, "the shard of three that held it"
    after = load_images(str(out)).set_index("image_id")
    assert (after["status"] == "ok").all() and after.index.tolist() == before.index.tolist()
    instances = load_instances(str(out)).sort_values(["image_id", "instance"])
    copies = [instances[instances["image_id"] == name].drop(columns="image_id") for name in ("0.png", "later.png")]
    assert len(copies[0]) > 0
    pd.testing.assert_frame_equal(*(copy.reset_index(drop=True) for copy in copies), atol=1e-3)

    assert {path: path.read_bytes() for path in sealed} == sealed, "nothing sealed was touched"
    pd.testing.assert_frame_equal(sorted_rows(out)[0].set_index("image_id"), before.sort_index(), check_like=True)
    assert list(verify_run(open_run(str(out)))) == []
    assert run_retry(prepare_retry(str(out), [])) == {}, "nothing is left to try"
    damaged = next(out.glob("repairs/0001/instances/*/*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"?" + damaged.read_bytes()[-8:])
    assert [fault.key for fault in verify_run(open_run(str(out)))] == [damaged.relative_to(out).as_posix()]
