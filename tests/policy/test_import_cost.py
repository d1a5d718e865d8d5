"""A command loads what it uses: torch or OpenVINO for a network, Ray for a cluster, MLflow for tracking."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes
from tests.jobs.drawn_runs import write_run
from tests.paths import ROOT

HEAVY = ("torch", "torchvision", "ray", "mlflow", "openvino", "nncf")
# Runs or imports one thing after another in one process, and writes what of HEAVY each has loaded that was not there
# before. One process for all of them, as starting Python and importing pandas takes most of the time.
PROGRAM = f"""
import importlib, json, sys

def run(line):
    from maskfleet.__main__ import main
    sys.argv = ["maskfleet", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, f"{{line}}: exit code {{end.code}}"

call = {{"import": importlib.import_module, "run": run}}[sys.argv[1]]
file, words, loaded, seen = sys.argv[2], sys.argv[3:], {{}}, set()
for word in words:
    call(word)
    new = {{name for name in {HEAVY} if name in sys.modules}} - seen
    seen |= new
    loaded[word] = sorted(new)
with open(file, "w") as out:
    json.dump(loaded, out)
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


LIGHT_LINES = (
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
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set, and a finished run over its validation images."""
    folder = tmp_path_factory.mktemp("data")
    draw_shapes(str(folder), num_train=2, num_val=3, num_unlabelled=1, seed=0)
    write_run(folder, folder / "run", drop_every=0)
    write_run(folder, folder / "run_b", drop_every=2)
    return folder


def loaded_by(how: str, words: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Which of HEAVY each word loaded first, in a process that imports or runs them (`how`) in turn."""
    file = folder / "loaded.json"
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}"
    call = [sys.executable, "-c", program, how, str(file), *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    loaded: dict[str, list[str]] = json.loads(file.read_text())
    return loaded


@pytest.fixture(scope="module")
def loaded_by_imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return loaded_by("import", LIGHT_MODULES, tmp_path_factory.mktemp("imports"))


@pytest.fixture(scope="module")
def loaded_by_commands(data: Path) -> dict[str, list[str]]:
    (data / "out").mkdir()
    return loaded_by("run", LIGHT_LINES, data)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_it_loads_nothing_heavy(module: str, loaded_by_imports: dict[str, list[str]]) -> None:
    assert loaded_by_imports[module] == []


@pytest.mark.parametrize("line", LIGHT_LINES)
def test_a_command_loads_nothing_heavy(line: str, loaded_by_commands: dict[str, list[str]]) -> None:
    assert loaded_by_commands[line] == []


def test_modules_that_quantise_or_predict_load_neither_openvino_nor_nncf_by_themselves(tmp_path: Path) -> None:
    """OpenVINO is loaded by the first prediction that it computes, NNCF by the quantisation itself."""
    modules = ("jobs.training.quantize", "jobs.predict", "jobs.segment", "pipeline.bulk.predict")
    loaded = loaded_by("import", modules, tmp_path)
    assert not {"openvino", "nncf"} & {name for names in loaded.values() for name in names}
    sources = [path for folder in ("jobs", "pipeline", "model", "maskfleet") for path in (ROOT / folder).rglob("*.py")]
    naming = {path.relative_to(ROOT).as_posix() for path in sources if '"nncf"' in path.read_text()}
    assert naming == {"model/inference/quantize.py", "jobs/cluster/job_package.py"}, "where it is loaded, or pinned"


def test_the_rule_itself_sees_torch(tmp_path: Path) -> None:
    """And names the module that loaded it, not one that comes later."""
    loaded = loaded_by("import", ["json", "model.network", "torch", "jobs.predict"], tmp_path)
    # OpenVINO is not loaded before it computes.
    assert loaded == {"json": [], "model.network": ["torch", "torchvision"], "torch": [], "jobs.predict": []}
