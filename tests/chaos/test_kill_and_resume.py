"""`kill -9` of the driver, a worker or everything at random moments, then the same command again."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.manifest import open_run
from pipeline.tables import load_instances
from tests.chaos.fault_proxy import FaultProxy, random_faults
from tests.chaos.runs import (
    check_exact,
    commits_of,
    finish,
    kill_everything,
    send,
    start_predictor,
    wait_until,
    workers_of,
)
from tests.chaos.trials import bucket_trials, local_trials
from tests.pipeline.predictors.written import write_code, write_example

SLOW = """
    import time

    from colours import Colours


    class Slow(Colours):
        def predict(self, images):
            time.sleep(0.2)
            return super().predict(images)
"""


@pytest.mark.long
def test_a_killed_run_of_the_pages_predictor_that_sam_refines_resumes_to_the_same_rows(
    small_sam: Path, photos: Path, tmp_path: Path
) -> None:
    """The example of docs/predictors.md, and beside it a class that takes its time, so that the kill comes in time."""
    code = write_code(write_example(tmp_path / "code"), slow=SLOW)
    refine = (f"segment.refine.model={small_sam}", "segment.refine.batch_size=4")
    finish(start_predictor(code, "slow:Slow", photos, tmp_path / "undisturbed", *refine))
    out = tmp_path / "killed"
    victim = start_predictor(code, "slow:Slow", photos, out, *refine)
    assert wait_until(lambda: len(commits_of(out)) >= 3, victim)
    kill_everything(victim)
    survived = {path: path.read_bytes() for path in commits_of(out)}
    assert survived and not (out / "final.json").exists(), "the kill came when no shard was left to segment"
    assert "segment.refine" in finish(start_predictor(code, "slow:Slow", photos, out), code=2)
    (code / "colours.py").write_text((code / "colours.py").read_text() + "# changed\n")
    assert "model.predictor.code_sha256" in finish(start_predictor(code, "slow:Slow", photos, out, *refine), code=2)
    write_example(code)
    finish(start_predictor(code, "slow:Slow", photos, out, *refine))
    assert {path: path.read_bytes() for path in survived} == survived, "what was committed stays as it was"
    check_exact(out, tmp_path / "undisturbed")
    run = open_run(str(out))
    assert run.spec.model.predictor is not None and run.spec.model.predictor.name == "slow:Slow"
    assert set(load_instances(run)["category"]) == {"red", "green", "blue"}


def kill(process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kills a program, its driver alone or one of its workers; returns which."""
    kind = chance.choice(["everything", "everything", "driver", "worker"])
    if kind == "worker" and (workers := workers_of(process)):
        send(workers[:1], signal.SIGKILL)
        finish(process)
        return kind
    if kind == "driver":
        process.kill()
        process.communicate()
        return kind
    kill_everything(process)
    return "everything"


@pytest.mark.slow
def test_a_hundred_kills(tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    local_trials(1, kill, tiny_checkpoint, photos, undisturbed, tmp_path).run(100)


@pytest.mark.slow
@pytest.mark.s3
def test_thirty_kills_on_a_real_store_that_fails(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, rgw: str
) -> None:
    """Input and output lie in buckets of the gateway, and every fifth request meets a fault."""
    with FaultProxy(rgw, random_faults(0.2, seed=2)) as proxy:
        places = (tiny_checkpoint, photos, undisturbed, rgw, proxy)
        bucket_trials(3, kill, *places, "storage.num_retries=30").run(30)
        print(dict(proxy.counts))
        assert min(proxy.counts[fault] for fault in ("503", "cut_after", "lost_answer", "truncate")) > 0
