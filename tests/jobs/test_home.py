"""Where the program's files lie, and its version."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from jobs import home
from tests.paths import ROOT


def test_home_holds_the_packages() -> None:
    assert ROOT == home.HOME
    assert all((home.HOME / name / "__init__.py").is_file() for name in ("maskfleet", "jobs", "pipeline", "model"))


def test_shipped_configurations_are_those_of_the_checkout() -> None:
    assert home.shipped_configs() == ROOT / "configs"


def test_an_installation_has_its_configurations_inside_the_public_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maskfleet" / "configs").mkdir(parents=True)
    monkeypatch.setattr(home, "HOME", tmp_path)
    assert home.shipped_configs() == tmp_path / "maskfleet" / "configs"


def test_the_program_says_the_version_that_is_installed() -> None:
    done = subprocess.run([sys.executable, "-m", "maskfleet", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"maskfleet {home.VERSION}\n"
    assert metadata.version("maskfleet") == home.VERSION
