"""What a cluster gets, what the wheel holds and what the Docker image holds are the same files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jobs.cluster.job_package import FOLDERS, code_files
from pipeline.dataset.shapes import draw_shapes
from tests.jobs.drawn_runs import write_run
from tests.paths import ROOT

READING = "requirements-reading.txt"
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info")


def as_installed(name: str) -> str:
    """A file's name in the wheel: there the configurations lie inside the public package."""
    return f"maskfleet/{name}" if name.startswith("configs/") else name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=NOT_COPIED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(target)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    (file,) = target.glob("*.whl")
    return file


def test_the_wheel_holds_what_a_cluster_gets(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == set(map(as_installed, code_files()))


def test_the_image_holds_what_a_cluster_gets() -> None:
    copied = re.findall(r"^COPY --chown=\S+ (\S+) (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert all(source == target for source, target in copied)
    assert {source for source, _ in copied} == set(FOLDERS)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert set(FOLDERS) <= allowed


def test_what_is_shipped_is_what_git_tracks_there() -> None:
    listed = subprocess.run(["git", "ls-files", "--", *FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    assert set(listed.stdout.split()) == set(code_files())


def test_only_our_packages_are_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} == {"maskfleet", "model", "pipeline", "jobs"}


def pins_of(name: str) -> dict[str, str]:
    """The versions in a list of pins, by package."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if line and not line.startswith("#"))


def test_the_list_for_reading_is_whole_and_has_the_pins_of_the_constraints() -> None:
    pins, constraints = pins_of(READING), pins_of("constraints.txt")
    assert pins.items() <= constraints.items()
    assert not pins.keys() & {"torch", "torchvision", "ray", "triton"}
    for name in pins:  # pip is told to look for no dependencies, so each must be in the list itself
        needed = map(Requirement, requires(name) or ())
        present = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
        assert {each.name.lower().replace("_", "-") for each in present} <= pins.keys(), name


@pytest.mark.docs
def test_the_smaller_installation_reads_and_evaluates_runs(wheel: Path, tmp_path: Path) -> None:
    """The packages come from the index, as for whoever follows README."""
    program, data = tmp_path / "reading" / "bin", tmp_path / "data"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "reading"], check=True, timeout=120)
    install = [program / "pip", "install", "--disable-pip-version-check", "--no-deps", "-r", ROOT / READING, wheel]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if "No matching distribution" in installed.stderr:
        pytest.skip("needs a package index")
    assert installed.returncode == 0, installed.stderr
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "reading").rglob("*") if path.is_file())
    print(f"installed: {num_bytes / 1e6:.0f} MB")
    assert num_bytes < 900e6
    draw_shapes(str(data), num_train=2, num_val=3, num_unlabelled=1)
    write_run(data, data / "run", drop_every=0)
    write_run(data, data / "run_b", drop_every=2)

    def call(*words: str, code: int = 0) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [program / words[0], *words[1:]], cwd=data, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    names = "load_instances, load_images, decode_mask, evaluate_run, overlay, to_coco, counts"
    read = f"from maskfleet import {names}; print(decode_mask(load_instances('run').iloc[0]).sum(), 'pixels')"
    assert "pixels" in call("python", "-c", read)
    for line in (
        "verify run",
        "evaluate run ground_truth.uri=val.json history.uri=history",
        "compare run run_b ground_truth.uri=val.json",
        "compare run run_b",
        "report run",
        "export run export.to=yolo",
        "history history output.uri=plot",
        "check-data val.json",
        "convert val.json labelme convert.to=labelme",
        "train --help",
        "settings train",
    ):
        call("maskfleet", *line.split())
    for line in (
        "predict run model.checkpoint=coco",
        "segment model.checkpoint=coco input.uri=val output.uri=out",
        "train --config tiny_cpu data.train=val.json output.uri=out",
        "sweep --config study_cpu output.uri=out",
        "demo",
        "evaluate run ground_truth.uri=val.json evaluate.num_shares=2",
    ):
        said = call("maskfleet", *line.split(), code=2)
        assert re.search(rf"maskfleet: {line.split()[0]} needs (torch|ray), which is not installed here", said), said


@pytest.mark.long
def test_the_wheel_runs_the_demo_in_an_environment_of_its_own(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started in an empty folder but for modules with the names of ours; dependencies come from this environment."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # which a session may have; it would hide what is installed
    environment, folder = tmp_path / "environment", tmp_path / "folder"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (site_packages,) = (environment / "lib").glob("python3*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{next(p for p in sys.path if p.endswith('site-packages'))}\n")
    folder.mkdir()
    for name in ("model", "pipeline", "jobs", "random"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}.py was imported')\n")
    where = subprocess.run(
        [python, "-c", "import sys; del sys.path[0]; import pipeline; print(pipeline.__file__)"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(site_packages))
    sizes = ("demo.num_train=8", "demo.num_val=4", "demo.num_unlabelled=4", "demo.max_steps=4", "cluster.num_cpus=2")
    done = subprocess.run(
        [environment / "bin" / "maskfleet", "demo", *sizes], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "segm AP" in done.stdout and (folder / "demo" / "pictures").is_dir()
    words = ["model.checkpoint=demo/model", "input.uri=demo/data/val", "output.uri=out"]
    shown = subprocess.run(
        [environment / "bin" / "maskfleet", "segment", "--config", "tiny_cpu", "--print-config", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0 and "batch_size: 8" in shown.stdout
