"""Several runs as one: chains equal a run from nothing, the newest plan decides, and what is no chain is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.bulk.commit import commit_shard
from pipeline.bulk.corpus import count_deleted
from pipeline.bulk.repair import begin_repair, seal_repair
from pipeline.manifest import RunError, open_run
from pipeline.plan import read_plan
from pipeline.run_spec import RunCategory
from pipeline.runs import Runs, open_chain, open_runs
from pipeline.storage.local import LocalStorage
from pipeline.storage.stores import open_storage
from pipeline.tables import instances_dataset, iter_instances, iter_shards, load_images, load_instances
from tests.paths import ROOT
from tests.pipeline.bulk.shards import image_result, write_shard
from tests.pipeline.nightly_runs import change_photos, segment, write_chain


def same_rows(ours: pd.DataFrame, theirs: pd.DataFrame, *, without: tuple[str, ...] = ("run_id", "shard")) -> None:
    """Compares two tables row for row, in the order of image and rank."""
    key = [name for name in ("image_id", "instance") if name in ours]
    frames = [
        each.drop(columns=[name for name in without if name in each]).sort_values(key, ignore_index=True)
        for each in (ours, theirs)
    ]
    pd.testing.assert_frame_equal(*frames)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], LocalStorage, set[str]]:
    return write_chain(tmp_path_factory.mktemp("nights"), 30, new=3, changed=4, deleted=1, shard_size=7)


def test_a_chain_of_thirty_nights_equals_a_run_from_nothing(
    chain: tuple[list[str], LocalStorage, set[str]], tmp_path: Path
) -> None:
    runs, photos, deleted = chain
    fresh = segment(photos, tmp_path / "fresh")
    images, instances = load_images(runs[-1], chain=True), load_instances(runs[-1], chain=True)
    gone = set(images["image_id"]) - set(load_images(fresh)["image_id"])
    assert gone == deleted and len(gone) > 10
    same_rows(images[~images["image_id"].isin(gone)], load_images(fresh))
    same_rows(instances[~instances["image_id"].isin(gone)], load_instances(fresh))
    assert images["image_id"].is_unique and {*images["status"]} == {"ok", "corrupt", "timeout"}
    ids = {open_run(uri).run_id for uri in runs}
    assert len(ids) == 30 and {*images["run_id"]} == ids and {*instances["run_id"]} <= ids
    of_rows, of_images = (frame.groupby("image_id")["run_id"].first() for frame in (instances, images))
    pd.testing.assert_series_equal(of_rows, of_images[of_rows.index])
    assert count_deleted(open_chain(runs[-1])) == len(deleted)


def test_all_ways_to_read_a_chain_give_the_same_rows(chain: tuple[list[str], LocalStorage, set[str]]) -> None:
    newest = chain[0][-1]
    instances, images = load_instances(newest, chain=True), load_images(newest, chain=True)
    same_rows(pd.concat(list(iter_instances(newest, batch_rows=7, chain=True))), instances, without=())
    shards = list(iter_shards(open_runs(newest, chain=True)))
    same_rows(pd.concat([each for each, _ in shards]), images, without=("run_id",))
    same_rows(pd.concat([each for _, each in shards]), instances, without=())
    same_rows(load_instances(open_runs(newest, chain=True)), instances, without=())
    same_rows(load_instances(chain[0]), instances, without=())
    dataset = instances_dataset(newest, chain=True)
    assert dataset.schema.names == [*instances.columns, "run_uri"]
    same_rows(dataset.to_table(use_threads=False).to_pandas(), instances, without=("run_uri",))
    assert dataset.count_rows() == len(instances)


def test_filters_and_columns_of_a_chain_agree_with_pandas(chain: tuple[list[str], LocalStorage, set[str]]) -> None:
    runs = chain[0]
    everything = load_instances(runs[-1], chain=True)
    filters = [("category", "==", "dog"), ("score", ">", 0.5)]
    loaded = load_instances(runs[-1], ["score", "run_id", "image_id"], filters, chain=True)
    expected = everything[(everything["category"] == "dog") & (everything["score"] > 0.5)]
    assert 0 < len(expected) < len(everything)
    pd.testing.assert_frame_equal(loaded, expected[["score", "run_id", "image_id"]].reset_index(drop=True))
    of_first = load_images(runs[-1], ["image_id", "run_uri"], [("run_uri", "==", runs[0])], chain=True)
    assert {*of_first["run_uri"]} == {runs[0]} and 0 < len(of_first) < 40
    with pytest.raises(ValueError, match="no column 'run_uri'"):
        load_images(runs[0], ["run_uri"])


def test_duckdb_and_polars_see_the_rows_that_count(chain: tuple[list[str], LocalStorage, set[str]]) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    newest = chain[0][-1]
    want = load_instances(newest, filters=[("category", "==", "cat")], chain=True)
    dataset = instances_dataset(newest, chain=True)
    count = duckdb.sql("SELECT run_id, count(*) AS n FROM dataset WHERE category = 'cat' GROUP BY run_id").df()
    assert dict(zip(count["run_id"], count["n"], strict=True)) == want["run_id"].value_counts().to_dict()
    found = polars.scan_pyarrow_dataset(dataset).filter(polars.col("category") == "cat").collect()
    assert sorted(found["image_id"].to_list()) == sorted(want["image_id"])


PEAK = """
import sys
from pathlib import Path
from maskfleet import iter_instances
rows = sum(len(frame) for frame in iter_instances(sys.argv[1], chain=True, batch_rows=5000))
print(rows, Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_runs(tmp_path: Path) -> None:
    runs, _, _ = write_chain(tmp_path, 30, new=300, changed=60, deleted=6, first=300, num_scores=90, shard_size=120)

    def rows_and_peak(uri: str) -> tuple[int, int]:
        done = subprocess.run([sys.executable, "-c", PEAK, uri], cwd=ROOT, capture_output=True, text=True, check=True)
        rows, peak = map(int, done.stdout.split())
        return rows, peak

    (few, low), (many, high) = rows_and_peak(runs[2]), rows_and_peak(runs[-1])
    assert many > 7 * few
    print(f"{low / 1024:.0f} MiB for 3 runs of {few:,} rows, {high / 1024:.0f} MiB for 30 of {many:,}")
    assert high < 1.1 * low, f"{low / 1024:.0f} MiB for 3 runs, {high / 1024:.0f} MiB for 30"


def test_the_last_of_a_list_decides_also_where_runs_are_of_one_specification(tmp_path: Path) -> None:
    photos, rng = LocalStorage(tmp_path / "photos"), np.random.default_rng(0)
    change_photos(photos, rng, new=20, changed=0, deleted=0)
    monday = segment(photos, tmp_path / "monday")
    gone = change_photos(photos, rng, new=5, changed=6, deleted=2)
    tuesday = segment(photos, tmp_path / "tuesday")
    assert open_run(monday).run_id == open_run(tuesday).run_id
    images, fresh = load_images([monday, tuesday], ["image_id", "etag", "run_uri"]), load_images(tuesday)
    assert images["image_id"].is_unique and {*images["image_id"]} == {*fresh["image_id"]} | gone
    assert {*images.loc[images["run_uri"] == monday, "image_id"]} == gone
    instances = load_instances([monday, tuesday])
    same_rows(instances[~instances["image_id"].isin(gone)], load_instances(tuesday), without=())
    same_rows(load_instances([tuesday, monday]).query("image_id in @gone"), instances.query("image_id in @gone"))
    assert len(load_images([tuesday, monday])) == len(images)
    assert (load_images([tuesday, monday], ["etag"]) != images[["etag"]]).any(axis=None)


def test_an_unfinished_newest_run_decides_on_all_images_that_it_planned(tmp_path: Path) -> None:
    photos, rng = LocalStorage(tmp_path / "photos"), np.random.default_rng(0)
    change_photos(photos, rng, new=20, changed=0, deleted=0)
    first = segment(photos, tmp_path / "first")
    change_photos(photos, rng, new=0, changed=12, deleted=0)
    second = segment(photos, tmp_path / "second", first, shards=[1])
    plan = read_plan(LocalStorage(tmp_path / "second"))
    assert plan is not None
    planned = {image.image_id for image in plan.iter_images()}
    done = {image.image_id for image in plan.read_shard(1)}
    images = load_images(second, chain=True)
    assert done < planned and {*images["image_id"]} == {*load_images(first)["image_id"]} - (planned - done)
    assert {*images.loc[images["run_id"] == open_run(second).run_id, "image_id"]} == done


def test_repairs_of_any_run_are_seen(tmp_path: Path) -> None:
    runs, _, _ = write_chain(tmp_path, 3, new=5, changed=6, deleted=0)
    before, first = load_images(runs[-1], chain=True), open_run(runs[0])
    failed = before[(before["status"] == "corrupt") & (before["run_id"] == first.run_id)]["image_id"]
    repair, plan = begin_repair(first, ("corrupt",)), read_plan(first.storage)
    assert len(failed) and repair is not None and plan is not None and isinstance(repair.storage, LocalStorage)
    for shard in repair.shards:
        results = [image_result(image) for image in plan.read_shard(shard)]
        commit_shard(repair.storage, write_shard(repair.storage, plan, first.run_id, shard, "r", results))
    seal_repair(repair)
    after = load_images(runs[-1], chain=True).set_index("image_id")
    assert (after.loc[failed, "status"] == "ok").all() and {*after.index} == {*before["image_id"]}
    later = before[before["run_id"] != first.run_id].set_index("image_id")
    pd.testing.assert_frame_equal(after.loc[later.index], later)
    assert (load_instances(runs[-1], chain=True).query("image_id in @failed").groupby("image_id").size() == 2).all()


def test_what_is_no_chain_is_named(tmp_path: Path) -> None:
    runs, photos, _ = write_chain(tmp_path, 3, new=2, changed=1, deleted=0)
    pattern = f"{tmp_path}/nights/night-*"
    assert isinstance(open_runs(pattern, chain=True), Runs)
    same_rows(load_images(pattern, chain=True), load_images(runs[-1], chain=True), without=())
    for source in (pattern, [runs[0], pattern]):
        with pytest.raises(RunError, match=r"is a pattern, .* name the runs in order, oldest first"):
            load_images(source)
    with pytest.raises(RunError, match="a pattern before its last part"):
        open_runs(f"{tmp_path}/r*/night-00", chain=True)
    with pytest.raises(RunError, match="names no run"):
        open_runs(f"{tmp_path}/nights/day-*", chain=True)
    segment(photos, tmp_path / "nights" / "night-alone")
    with pytest.raises(RunError, match=r"names 2 runs that are no other's since_run: .*night-02, .*night-alone"):
        open_runs(pattern, chain=True)
    with pytest.raises(RunError, match="a chain is followed from one run"):
        load_instances(runs, chain=True)
    with pytest.raises(RunError, match="the list of runs is empty"):
        load_instances([])
    with pytest.raises(RunError, match="named twice"):
        load_instances([runs[0], f"{runs[0]}/"])
    with pytest.raises(RunError, match="holds no run"):
        load_instances([runs[0], str(tmp_path)])
    with pytest.raises(RunError, match="holds no run"):
        load_instances(str(tmp_path), chain=True)
    shutil.rmtree(runs[0])
    with pytest.raises(RunError, match=r"of .*night-02 is broken: .*night-00 holds no run.* since_run of .*night-01"):
        load_instances(runs[-1], chain=True)


def test_a_chain_that_runs_in_a_circle_is_named(tmp_path: Path) -> None:
    runs, _, _ = write_chain(tmp_path, 2, new=2, changed=1, deleted=0)
    path = Path(runs[0]) / "run.json"
    document = json.loads(path.read_text())
    document["input"]["since_run"] = runs[1]
    path.write_text(json.dumps(document))
    with pytest.raises(RunError, match="comes after it; it is no chain"):
        load_images(runs[1], chain=True)


def test_different_images_of_one_id_and_different_classes_of_one_id_are_named(tmp_path: Path) -> None:
    photos, others = LocalStorage(tmp_path / "cam1"), LocalStorage(tmp_path / "cam2")
    for storage, names in ((photos, "abc"), (others, "cde")):
        for name in names:
            storage.write_bytes(f"{name}.jpg", name.encode())
    first, second = segment(photos, tmp_path / "first"), segment(others, tmp_path / "second")
    with pytest.raises(RunError, match=r"image_id 'c\.jpg' is .*cam1/c\.jpg in .*first and .*cam2/c\.jpg in .*second"):
        load_images([first, second])
    others.delete("c.jpg")
    third = segment(others, tmp_path / "third", categories=(RunCategory(8, "cat"),))
    assert sorted(load_images([first, third])["image_id"]) == [f"{name}.jpg" for name in "abcde"]
    runs = open_runs([first, third])
    assert isinstance(runs, Runs) and count_deleted(runs) == 0
    with pytest.raises(RunError, match=r"classes do not agree: category id 7 is 'cat' in .*first"):
        _ = runs.spec


def test_a_specification_of_several_runs_has_all_classes_and_the_highest_score(tmp_path: Path) -> None:
    photos = LocalStorage(tmp_path / "photos")
    photos.write_bytes("a.jpg", b"a")
    first = segment(photos, tmp_path / "first", categories=(RunCategory(9, "bird"),))
    runs = open_runs([first, segment(photos, tmp_path / "second")])
    assert isinstance(runs, Runs)
    assert [category.name for category in runs.spec.model.categories] == ["cat", "dog", "bird"]
    assert runs.spec.segment.score_threshold == 0.05 and runs.sealed and runs.run_id != runs.newest.run_id
    assert runs.model_hashes == ("0" * 64,) and runs.title.startswith("2 runs, ")


def test_a_chain_in_a_bucket_answers_as_on_disk(bucket: str, tmp_path: Path) -> None:
    runs, _, _ = write_chain(tmp_path, 3, new=4, changed=3, deleted=1)
    uris = []
    for number, uri in enumerate(runs):
        storage = open_storage(f"{bucket}/runs/{number}")
        uris.append(storage.uri)
        for path in sorted(Path(uri).rglob("*")):
            if path.is_file():
                storage.write_bytes(path.relative_to(uri).as_posix(), path.read_bytes())
    same_rows(load_instances(uris), load_instances(runs), without=("run_id",))
    same_rows(load_images([runs[0], *uris[1:]]), load_images(runs), without=())
    with pytest.raises(RunError, match="is a pattern"):
        load_images(f"{bucket}/runs/*")
    with pytest.raises(RunError, match="names 2 runs"):  # their since_run are folders on the disk
        open_runs(f"{bucket}/runs/[01]", chain=True)
