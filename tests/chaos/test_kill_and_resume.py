"""`kill -9` of the whole program, everything it started included, at random moments; then the same command again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run

ROOT = Path(__file__).resolve().parents[2]


def start(checkpoint: Path, photos: Path, out: Path) -> subprocess.Popen:
    """`maskfleet segment` as a program of its own, in a session of its own."""
    words = [
        "segment",
        f"model.checkpoint={checkpoint}",
        f"input.uri={photos}",
        f"output.uri={out}",
        "corpus.shard_size=3",
        "segment.cpus_per_worker=1",
        "cluster.num_cpus=2",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def descendants(pid: int) -> list[int]:
    """Every process below one, by the kernel's own tables."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except FileNotFoundError:
        return []
    return found + [deeper for child in found for deeper in descendants(child)]


def kill_everything(process: subprocess.Popen) -> None:
    """`kill -9` of the driver and of Ray's own processes and workers at the same moment, as a power cut would."""
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def rows(out: Path) -> list[pd.DataFrame]:
    tables = [pd.read_parquet(out / name) for name in ("images", "instances")]
    keys = [["image_id"], ["image_id", "instance"]]
    return [table.sort_values(key, ignore_index=True) for table, key in zip(tables, keys)]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_rows(tiny_checkpoint: Path, photos: Path, tmp_path: Path, seed: int) -> None:
    undisturbed = start(tiny_checkpoint, photos, tmp_path / "undisturbed")
    output, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, output

    chance = random.Random(seed)
    out = tmp_path / "killed"
    victim = start(tiny_checkpoint, photos, out)
    commits = chance.randint(1, 8)  # of 15: killed in the middle of the work, at no particular line
    give_up = time.monotonic() + 300
    while len(list(out.glob("commits/*/*.json"))) < commits and victim.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    time.sleep(chance.random() * 0.2)
    kill_everything(victim)
    survived = {path: path.read_bytes() for path in out.glob("commits/*/*.json")}
    assert survived and not (out / "final.json").exists(), "the kill came when there was nothing left to disturb"

    again = start(tiny_checkpoint, photos, out)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert {path: path.read_bytes() for path in survived} == survived, "what was committed stays as it was"
    for ours, expected in zip(rows(out), rows(tmp_path / "undisturbed")):
        pd.testing.assert_frame_equal(ours, expected)
    assert list(verify_run(open_run(str(out)))) == []
