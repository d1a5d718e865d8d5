"""A Ray of our own: where its workers run, what they import, and that it ends with the block."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import ray

from jobs.cluster import start
from jobs.cluster.start import cluster, total
from jobs.config.base import ClusterSection
from jobs.home import HOME


def test_workers_run_beside_our_packages_and_not_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "random.py").write_text("raise SystemExit('the user\\'s random.py was imported')\n")
    with cluster(ClusterSection(num_cpus=1, num_gpus=0)):
        assert Path.cwd() == tmp_path
        assert (total("CPU"), total("GPU")) == (1, 0)

        def look() -> tuple[str, list[str], str]:
            import random

            import pipeline

            return os.getcwd(), sys.path, f"{pipeline.__file__} {random.__file__}"

        folder, path, files = ray.get(ray.remote(look).remote())
        with cluster(ClusterSection(num_cpus=1)):  # one that is there is used
            assert ray.is_initialized()
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert folder == str(HOME) and str(tmp_path) not in path
    assert str(HOME / "pipeline" / "__init__.py") in files and str(tmp_path) not in files


def test_an_installed_program_starts_ray_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def started(section: ClusterSection, folder: Path) -> None:
        folders.append((folder, list(folder.iterdir())))

    monkeypatch.setattr(start, "_start", started)
    monkeypatch.setattr(start, "HOME", tmp_path / "lib" / "site-packages")
    with cluster(ClusterSection(num_cpus=1)):
        pass
    ((folder, content),) = folders
    assert content == [] and not folder.exists() and folder != HOME
