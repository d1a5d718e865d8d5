"""Runs in buckets of a store that fails: every kind of fault, and a gateway that is killed in the middle of a run."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.storage.stores import open_storage
from tests.chaos.fault_proxy import FAULTS, REFUSALS, FaultProxy, random_faults
from tests.chaos.rgw import Rgw
from tests.chaos.runs import check_exact, finish, kill_everything, segment_here, start, wait_until
from tests.chaos.s3 import environment_for, make_bucket, settings_for, storage_words
from tests.chaos.trials import OF_THE_BUCKET, bucket_trials, copy_photos


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


class Expiring:
    """A plan for a proxy, whose credentials hold until `strike` and again from the next start of a program on."""

    def __init__(self) -> None:
        self.fault: str | None = None
        self.photos_read = 0

    def __call__(self, method: str, path: str) -> str | None:
        self.photos_read += method == "GET" and ".png" in path and self.fault is None
        return self.fault

    def strike(self, process: subprocess.Popen[str], chance: random.Random) -> str:
        """Lets the credentials expire; the program must end with 1 and name the cause last, or with 2 at its start."""
        self.fault = fault = chance.choice(sorted(REFUSALS))
        output, _ = process.communicate(timeout=120)
        began, self.fault, self.photos_read = self.photos_read > 0, None, 0
        if process.returncode == 0:
            return ""
        last = output.strip().splitlines()[-1]
        assert last.startswith("maskfleet: ") and "is not allowed" in last and "Traceback" not in output, output
        assert process.returncode == 1 or (process.returncode == 2 and not began), output
        return fault if process.returncode == 1 else "at the start"


@pytest.mark.long
def test_credentials_that_expire_in_the_middle_of_a_run_end_it_and_it_goes_on(
    moto: str, tiny_checkpoint: Path, photos: Path, undisturbed: Path
) -> None:
    expiring = Expiring()
    with FaultProxy(moto, expiring) as proxy:
        bucket_trials(6, expiring.strike, tiny_checkpoint, photos, undisturbed, moto, proxy).run(3)


@pytest.mark.slow
@pytest.mark.s3
def test_credentials_of_a_real_store_that_expire_at_thirty_moments(
    rgw: str, tiny_checkpoint: Path, photos: Path, undisturbed: Path
) -> None:
    expiring = Expiring()
    with FaultProxy(rgw, expiring) as proxy:
        trials = bucket_trials(7, expiring.strike, tiny_checkpoint, photos, undisturbed, rgw, proxy)
        trials.run(30)
    assert set(REFUSALS) <= trials.struck.keys()
