"""The tutorial and the README's commands typed as they stand, in a clean copy of the project, on drawn data."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.shapes import draw_shapes
from tests.docs.pages import blocks_of
from tests.paths import ROOT

pytestmark = pytest.mark.docs

# Settings that make a training short; the tutorial's own is run in full by whoever follows it.
STEPS = os.environ.get("MASKFLEET_DOCS_STEPS", "120")
SHORT = ["train.max_steps=2", "train.checkpoint_every_steps=2", "train.data_workers=0", "train.warmup_steps=1"]
# Commands of the README that need what a test does not have: a cluster, a bucket, COCO and its published weights,
# an installation of its own, or hours. Weights of that form are tried in test_programs.py.
REMOTE = ("http://", "s3://", "train --config coco", "=coco ")
ELSEWHERE = (*REMOTE, "maskfleet schedule", "maskfleet sweep", "make ", "venv", "pip ")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files under version control; without git, of all files that are no outputs."""
    folder = tmp_path_factory.mktemp("clone") / "maskfleet"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
    else:
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".*_cache", "demo", "out", "__pycache__"))
    return folder


def run(words: list[str], folder: Path) -> str:
    """Runs a program in the copy and returns what it prints; `maskfleet` is the copy's own."""
    program = [sys.executable, "-m", "maskfleet"] if words[0] == "maskfleet" else [sys.executable]
    environment = os.environ | {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / ".cache")}
    done = subprocess.run(
        [*program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def copy_renumbered(source: Path, target: Path) -> None:
    """Writes a COCO file with category ids 1, 2, 3 for the drawn shapes' 10, 20, 30.

    A model that was trained on VIA annotations numbers its categories so, since VIA's classes have no ids.
    """
    content = json.loads(source.read_text())
    for category in content["categories"]:
        category["id"] //= 10
    for annotation in content["annotations"]:
        annotation["category_id"] //= 10
    target.write_text(json.dumps(content))


def test_a_clean_clone_follows_the_tutorial(clone: Path) -> None:
    output = ""
    for block in blocks_of("docs/tutorial.md"):
        if block.kind == "python":
            output += run(["python", "-c", block.text], clone)
            continue
        for line in block.commands:
            words = shlex.split(line, comments=True)
            if words[0] == "maskfleet":
                short = [f"train.max_steps={STEPS}", "train.warmup_steps=10"] if words[1] == "train" else []
                output += run([*words, *short], clone)
            else:
                assert words in (["make", "setup"], ["source", ".venv/bin/activate"])  # done before this test
    assert "is exact: 200 images" in output
    assert re.search(r"\d+ circles on \d+ photos", output) and "pixels" in output
    for name in ("models/shapes/summary.html", "masks/val.evaluation/metrics.json", "masks/run1.report.html"):
        assert (clone / name).is_file(), name


def test_the_commands_of_the_readme(clone: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """On drawn data under the names that the README uses."""
    folder = tmp_path / "readme"
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns("models", "masks", "shapes"))
    draw_shapes(str(folder / "drawn"), num_train=8, num_val=4, num_unlabelled=6)
    for part in ("train", "val"):
        run(["maskfleet", "convert", f"drawn/{part}.json", f"balloon/{part}", "convert.to=via"], folder)
    shutil.copytree(folder / "drawn/unlabelled", folder / "photos")
    shutil.copy2(next((folder / "photos").iterdir()), folder / "photo.jpg")
    shutil.copytree(tiny_checkpoint, folder / "demo/model")
    (folder / "coco/annotations").mkdir(parents=True)
    copy_renumbered(folder / "drawn/unlabelled_truth.json", folder / "instances.json")
    copy_renumbered(folder / "drawn/val.json", folder / "coco/annotations/instances_val2017.json")
    num_run = 0
    for block in (block for block in blocks_of("README.md") if block.kind == "commands"):
        for line in block.commands:
            if any(part in line for part in ELSEWHERE):
                continue
            words = shlex.split(line, comments=True)
            run([*words, *(SHORT if words[1] == "train" else [])], folder)
            num_run += 1
            if words[1] == "segment":  # the other runs that the page names
                model = "model.checkpoint=models/balloon"
                run(["maskfleet", "segment", model, "input.uri=photos", "output.uri=masks/run2"], folder)
                run(["maskfleet", "segment", model, "input.uri=drawn/val", "output.uri=masks/val_run"], folder)
    assert num_run >= 9
    assert json.loads((folder / "masks/val_run.evaluation/metrics.json").read_text())["overall"]
