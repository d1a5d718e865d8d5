"""A command loads what it uses: torch only where a network computes, Ray only where a cluster is started or asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes
from tests.jobs.drawn_runs import write_run
from tests.paths import ROOT

HEAVY = ("torch", "torchvision", "ray")
PROGRAM = f"""
import sys
from maskfleet.__main__ import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
print("loaded:", *(name for name in {HEAVY} if name in sys.modules))
sys.exit(code)
"""
# Modules behind these commands and names; `import` alone must not load what is heavy.
LIGHT_MODULES = (
    "maskfleet",
    "jobs.cli",
    "jobs.annotations",
    "jobs.cluster.manifests",
    "jobs.cluster.submit",
    "jobs.compare",
    "jobs.evaluate",
    "jobs.report",
    "pipeline.bulk.verify",
    "pipeline.dataset.check",
    "pipeline.dataset.convert",
    "pipeline.evaluation.compare",
    "pipeline.evaluation.metrics",
    "pipeline.evaluation.sharding",
    "pipeline.results",
    "pipeline.results.drift",
    "pipeline.results.export",
    "pipeline.results.history",
    "pipeline.results.render",
    "pipeline.results.report",
    "pipeline.tables",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set, and a finished run over its validation images."""
    folder = tmp_path_factory.mktemp("data")
    draw_shapes(str(folder), num_train=2, num_val=3, num_unlabelled=1, seed=0)
    write_run(folder, folder / "run", drop_every=0)
    write_run(folder, folder / "run_b", drop_every=2)
    return folder


def loaded_by(program: str, *words: str, cwd: Path = ROOT) -> list[str]:
    """Which of HEAVY a program has loaded at its end; it must end with 0."""
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    assert loaded_by(code) == []


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "train --help",
        "submit --help",
        "jobs --help",
        "verify run",
        "evaluate run ground_truth.uri=val.json output.uri=out/evaluation history.uri=out/history",
        "compare run run_b ground_truth.uri=val.json",
        "compare run run_b",
        "export run export.to=coco output.uri=out/coco.json",
        "report run output.uri=out/report.html",
        "history out/history",
        "check-data val.json",
        "convert val.json out/labelme convert.to=labelme",
        "evaluate run ground_truth.uri=val.json --dry-run",
        "segment --print-config model.checkpoint=m input.uri=i output.uri=o",
        "train --print-config data.train=d output.uri=o train.max_steps=1",
        "manifests --config manifests/lab output.uri=out/manifests",
    ],
)
def test_a_command_loads_nothing_heavy(line: str, data: Path) -> None:
    (data / "out").mkdir(exist_ok=True)
    assert loaded_by(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}", *line.split(), cwd=data) == []


def test_the_rule_itself_sees_torch() -> None:
    assert loaded_by("import sys, torch; print('loaded:', *(name for name in ('torch',) if name in sys.modules))") == [
        "torch"
    ]
