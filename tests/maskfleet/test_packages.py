"""A module of the user's in the place of one of ours ends the import in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

PROGRAM = """
import sys
sys.path.append({root!r})
{first}
try:
    from maskfleet import load_instances
except ImportError as error:
    print(error)
"""


def import_beside(folder: Path, first: str = "") -> str:
    """What `from maskfleet import load_instances` says in a notebook's process whose folder comes first on the path."""
    program = PROGRAM.format(root=str(ROOT), first=first)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["model", "pipeline", "jobs"])
def test_a_file_of_that_name_is_named_with_ours_and_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("WEIGHTS = 3\n")
    said = import_beside(tmp_path)
    assert "\n" not in said and str(tmp_path / f"{name}.py") in said and str(ROOT / name) in said and "rename" in said


def test_a_module_that_was_imported_before_is_seen_too(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    assert str(tmp_path / "model.py") in import_beside(tmp_path, first="import model")


def test_a_folder_of_that_name_is_seen(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("")
    assert str(tmp_path / "model") in import_beside(tmp_path)


def test_without_such_a_module_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text("")
    assert import_beside(tmp_path) == ""
