"""Runs in buckets of a store that fails: every kind of fault, and a gateway that is killed in the middle of a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.storage.stores import open_storage
from tests.chaos.fault_proxy import FAULTS, FaultProxy, random_faults
from tests.chaos.rgw import Rgw
from tests.chaos.runs import check_exact, finish, kill_everything, segment_here, start, wait_until
from tests.chaos.s3 import environment_for, make_bucket, settings_for, storage_words

OF_THE_BUCKET = ("uri", "etag", "run_id")  # columns that differ from a run over the same photos on disk


def copy_photos(photos: Path, endpoint: str) -> str:
    """Copies the photos into a new bucket; returns its URI."""
    uri = f"s3://{make_bucket(endpoint)}"
    bucket = open_storage(uri, settings_for(endpoint))
    for path in photos.rglob("*"):
        if path.is_file():
            bucket.write_bytes(path.relative_to(photos).as_posix(), path.read_bytes())
    return uri


@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("server", ["moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_a_run_over_a_store_that_fails_in_every_way(
    server: str, request: pytest.FixtureRequest, tiny_checkpoint: Path, photos: Path, undisturbed: Path
) -> None:
    endpoint = request.getfixturevalue(server)
    inside, out = copy_photos(photos, endpoint), f"s3://{make_bucket(endpoint)}/run"
    with FaultProxy(endpoint, random_faults(0.2, seed=5)) as proxy:
        segment_here(tiny_checkpoint, inside, out, *storage_words(proxy.url), "storage.num_retries=30")
        assert {fault for fault in FAULTS if not proxy.counts[fault]} <= {"twice", "slow"}
    check_exact(out, undisturbed, settings_for(endpoint), ignore=OF_THE_BUCKET)


@pytest.mark.s3
def test_a_gateway_killed_in_the_middle_of_a_run(
    gateway: Rgw, tiny_checkpoint: Path, photos: Path, undisturbed: Path
) -> None:
    out = f"s3://{make_bucket(gateway.endpoint)}/run"
    run = open_storage(out, settings_for(gateway.endpoint))
    environment = environment_for(gateway.endpoint)
    program = start(
        tiny_checkpoint, copy_photos(photos, gateway.endpoint), out, "storage.num_retries=60", **environment
    )
    try:
        for num_commits in (1, 5):

            def enough_commits(least: int = num_commits) -> bool:
                return sum(1 for _ in run.iter_objects("commits/")) >= least

            assert wait_until(enough_commits, program)
            gateway.kill_gateway()
            time.sleep(2)
            gateway.start_gateway()
        finish(program)
    finally:
        kill_everything(program)
    check_exact(out, undisturbed, settings_for(gateway.endpoint), ignore=OF_THE_BUCKET)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["expired", "denied"])
def test_credentials_that_expire_in_the_middle_of_a_run_end_it_and_it_goes_on(
    fault: str, moto: str, tiny_checkpoint: Path, photos: Path, undisturbed: Path
) -> None:
    inside, out = copy_photos(photos, moto), f"s3://{make_bucket(moto)}/run"
    commits: list[str] = []

    def plan(method: str, path: str) -> str | None:
        if len(commits) == 3:
            return fault
        if method == "PUT" and "/commits/" in path:
            commits.append(path)
        return None

    with FaultProxy(moto, plan) as proxy:
        environment = environment_for(proxy.url)
        output = finish(start(tiny_checkpoint, inside, out, **environment), code=1)
    last = output.strip().splitlines()[-1]
    assert last.startswith("maskfleet: ") and "is not allowed" in last and "the same command goes on" in last, output
    assert 3 <= sum(1 for _ in open_storage(out, settings_for(moto)).iter_objects("commits/")) < 15
    finish(start(tiny_checkpoint, inside, out, **environment_for(moto)))
    check_exact(out, undisturbed, settings_for(moto), ignore=OF_THE_BUCKET)
