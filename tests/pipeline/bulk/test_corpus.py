"""The plan: how it is cut into shards, sealed once, taken over from a killed planner, and chained to earlier runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import boto3
import pytest

from pipeline.bulk import corpus
from pipeline.bulk.commit import claim_run, commit_shard, seal_run
from pipeline.bulk.corpus import choose_shard_size, list_corpus, read_plan, seal_plan
from pipeline.bulk.encode import ImageResult
from pipeline.bulk.listing import PlannedImage
from pipeline.manifest import PLAN_KEY, RUN_KEY, RunError, to_json
from pipeline.notes import NoteList
from pipeline.run_spec import InputSpec, RunSpec
from pipeline.storage.local import LocalStorage
from tests.pipeline.bulk.shards import write_shard


def images(count: int) -> list[PlannedImage]:
    return [PlannedImage(f"{i:07d}.jpg", f"/photos/{i:07d}.jpg", "e", i) for i in range(count)]


def listing(planned: list[PlannedImage], dies_at: int | None = None) -> Callable[[str], Iterator[PlannedImage]]:
    """What `seal_plan` takes as `list_images`; the planner dies when it takes the image at index `dies_at`."""

    def images_after(after: str) -> Iterator[PlannedImage]:
        for index, image in enumerate(planned):
            if image.image_id > after:
                if index == dies_at:
                    raise KeyboardInterrupt
                yield image

    return images_after


@pytest.mark.parametrize("shard_size", [1, 7, 256, 300, 512])
def test_shards_are_the_plan_cut_in_order(tmp_path: Path, shard_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PART_ROWS", 512)
    planned = images(1300)
    plan = seal_plan(LocalStorage(tmp_path), listing(planned), shard_size=shard_size, num_workers=2)
    assert len(plan.parts) == 3
    assert plan.num_shards == -(-1300 // shard_size)
    shards = [plan.read_shard(i) for i in range(plan.num_shards)]
    assert [image for shard in shards for image in shard] == planned
    assert [len(shard) for shard in shards] == [plan.num_images_of(i) for i in range(plan.num_shards)]
    with pytest.raises(IndexError):
        plan.read_shard(plan.num_shards)


def test_an_empty_corpus_is_a_plan_without_shards(tmp_path: Path) -> None:
    plan = seal_plan(LocalStorage(tmp_path), listing([]), shard_size=None, num_workers=4)
    assert (plan.num_images, plan.num_shards) == (0, 0)


def test_the_first_seal_holds_and_the_loser_cleans_up(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = seal_plan(storage, listing(images(10)), shard_size=4, num_workers=1)
    second = seal_plan(storage, listing(images(99)), shard_size=5, num_workers=1)
    assert second == first
    assert [info.key for info in storage.iter_objects("plan/")] == [part.key for part in first.parts]


def test_a_killed_planner_is_taken_over_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PART_ROWS", 100)
    storage, planned = LocalStorage(tmp_path), images(350)
    with pytest.raises(KeyboardInterrupt):
        seal_plan(storage, listing(planned, dies_at=250), shard_size=40, num_workers=1)
    written = [info.key for info in storage.iter_objects("plan/")]
    assert len(written) == 2 and read_plan(storage) is None
    resumed_after = []

    def images_after(after: str) -> Iterator[PlannedImage]:
        resumed_after.append(after)
        return listing(planned)(after)

    plan = seal_plan(storage, images_after, shard_size=40, num_workers=1)
    assert resumed_after == ["0000199.jpg"] and [part.key for part in plan.parts][:2] == written
    assert list(plan.iter_images()) == planned


def test_parts_of_different_listings_never_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PART_ROWS", 100)
    storage, planned = LocalStorage(tmp_path), images(350)
    for missing in (0, 50):  # two planners, an image vanished between their listings
        remaining = planned[:missing] + planned[missing + 1 :]
        with pytest.raises(KeyboardInterrupt):
            seal_plan(storage, listing(remaining, dies_at=330), shard_size=40, num_workers=1)
        for key in [info.key for info in storage.iter_objects("plan/") if "part-000000" in info.key][: missing == 0]:
            storage.delete(key)  # of the first planner only the parts after its first one are left
    plan = seal_plan(storage, listing(planned), shard_size=40, num_workers=1)
    ids = [image.image_id for image in plan.iter_images()]
    assert ids == sorted(set(ids)) and len(ids) == 349


def test_an_unreadable_plan_is_named(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert read_plan(storage) is None
    storage.write_bytes(PLAN_KEY, b'{"parts": []}')
    with pytest.raises(RunError, match=r"plan\.json is unreadable"):
        read_plan(storage)


def test_shard_size_serves_every_worker_and_bounds_the_commits() -> None:
    assert choose_shard_size(0, 4) == 1
    assert choose_shard_size(200, 1) == 50
    for num_images, num_workers in ((64, 8), (5_000, 4), (1_000_000, 8), (100_000_000, 64)):
        size = choose_shard_size(num_images, num_workers)
        assert size <= 256 or size % 256 == 0
        assert num_images / size > 3 * num_workers
    assert choose_shard_size(100_000_000, 64) == 4096


def test_new_images_are_those_that_no_run_of_the_chain_has_planned(tmp_path: Path) -> None:
    photos, storage = images(5), LocalStorage(tmp_path / "photos")
    source = InputSpec(uri=storage.uri)
    for number, photo in enumerate(photos):
        storage.write_bytes(photo.image_id, b"x")
        run = LocalStorage(tmp_path / f"run{number}")
        run.write_bytes(RUN_KEY, to_json(RunSpec(schema_version=1, input=source).to_json()))
        plan = seal_plan(run, partial(list_corpus, source), shard_size=4, num_workers=1)
        assert [image.image_id for image in plan.iter_images()] == [photo.image_id]
        source = replace(source, since_run=run.uri)
    assert list(list_corpus(source, "")) == []
    storage.write_bytes(photos[1].image_id, b"changed")
    assert [image.image_id for image in list_corpus(source, "")] == [photos[1].image_id]


def test_what_lies_in_an_archive_is_taken_up_when_it_is_restored(bucket: str, moto: str, tmp_path: Path) -> None:
    boto = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    name = bucket.removeprefix("s3://")
    for key, kind in (("a", "DEEP_ARCHIVE"), ("b", "GLACIER"), ("c", "GLACIER"), ("d", "STANDARD")):
        boto.put_object(Bucket=name, Key=f"photos/{key}", Body=b"x", StorageClass=kind)
    source = InputSpec(uri=f"{bucket}/photos")
    run = LocalStorage(tmp_path / "run")
    run_id = claim_run(run, RunSpec(schema_version=1, input=source).to_json())
    plan = seal_plan(run, partial(list_corpus, source), shard_size=4, num_workers=1)
    results = [ImageResult(image, "ok" if image.image_id == "d" else "archived") for image in plan.read_shard(0)]
    commit_shard(run, write_shard(run, plan, run_id, 0, "a", results))
    seal_run(run, plan, run_id)
    boto.restore_object(Bucket=name, Key="photos/b", RestoreRequest={"Days": 1})
    boto.put_object(Bucket=name, Key="photos/c", Body=b"new", StorageClass="GLACIER")
    notes = NoteList()
    listed = list_corpus(replace(source, since_run=run.uri), "", notes=notes)
    assert [image.image_id for image in listed] == ["b", "c"], "restored, and replaced"
    ((note, count),) = notes.to_dict().items()
    assert "still in the store's archive" in note and "(a)" in note and count == 1


def test_what_failed_with_a_status_that_may_pass_is_taken_up_again(tmp_path: Path) -> None:
    source, runs = InputSpec(uri=str(tmp_path / "photos")), []
    statuses = [("ok", "unreadable", "corrupt", "archived"), ("timeout", "ok")]
    for name in "abcd":
        LocalStorage(tmp_path / "photos").write_bytes(name, b"x")
    for number, of_run in enumerate(statuses):
        run = LocalStorage(tmp_path / f"run{number}")
        run_id = claim_run(run, RunSpec(schema_version=1, input=source).to_json())
        plan = seal_plan(run, partial(list_corpus, source), shard_size=4, num_workers=1)
        planned = plan.read_shard(0)
        results = [ImageResult(image, status, "why") for image, status in zip(planned, of_run, strict=True)]
        commit_shard(run, write_shard(run, plan, run_id, 0, "a", results))
        seal_run(run, plan, run_id)
        runs.append([image.image_id for image in planned])
        source = replace(source, since_run=run.uri)
    assert runs == [["a", "b", "c", "d"], ["b", "d"]]
    assert [image.image_id for image in list_corpus(source, "")] == ["b"], "of each image the newest run tells"
