"""The undisturbed run that the fault suites compare their runs with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.runs import finish, start


@pytest.fixture(scope="session")
def undisturbed(tiny_checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over the drawn photos, made without faults."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(tiny_checkpoint, photos, out))
    return out
