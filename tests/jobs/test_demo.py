"""`maskfleet demo` with few images: every output is there, and a second call repeats no step."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from model.checkpoint import load_checkpoint
from pipeline.bulk.verify import verify_run
from pipeline.manifest import open_run
from tests.paths import ROOT

SIZES = ["demo.num_train=24", "demo.num_val=6", "demo.num_unlabelled=10", "demo.max_steps=6"]


def demo(out: Path) -> list[str]:
    """Runs the demo as a process of its own; the lines that it printed."""
    command = [sys.executable, "-m", "maskfleet", "demo", f"output.uri={out}", *SIZES, "cluster.num_cpus=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out)


@pytest.mark.long
def test_every_output_is_where_the_readme_says(finished: tuple[Path, list[str]]) -> None:
    out, lines = finished
    assert load_checkpoint(out / "model").progress["step"] == 6
    images = pd.read_parquet(out / "run" / "images")
    instances = pd.read_parquet(out / "run" / "instances")
    assert len(images) == 10 and (images["status"] == "ok").all()
    assert len(instances) == images["num_instances"].sum()
    for name in ("run", "val_run"):
        assert list(verify_run(open_run(str(out / name)))) == []
    assert list((out / "pictures").glob("*.png"))
    ap = re.fullmatch(r"segm AP (\d\.\d{3})", lines[-1])
    assert ap, lines[-5:]
    figures = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert format(figures["overall"]["segm"]["AP"], ".3f") == ap[1]
    assert len(pd.read_parquet(out / "evaluation" / "metrics.parquet")) > 10


@pytest.mark.long
def test_a_second_call_repeats_no_step(finished: tuple[Path, list[str]]) -> None:
    out, lines = finished
    kept = [*out.glob("model/*"), *out.glob("*run/**/*.parquet"), *out.glob("training/checkpoints/*/*")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) > 10
    assert demo(out)[-1] == lines[-1]
    assert {path: path.stat().st_mtime_ns for path in kept} == before
