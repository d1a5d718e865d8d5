"""What a cluster gets, what the wheel holds and what the Docker image holds are the same files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from jobs.cluster.job_package import FOLDERS, code_files
from tests.paths import ROOT

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
