"""A small run with known answers, for every test of `pipeline`."""

from __future__ import annotations

import pandas as pd
import pytest

from pipeline.tables import load_images, load_instances
from tests.pipeline.made_run import DrawnRun, write_drawn_run


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> DrawnRun:
    """Eight drawn photos and a run over them, see `write_drawn_run`."""
    return write_drawn_run(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def frames(drawn_run: DrawnRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run's instances and images."""
    return load_instances(drawn_run.uri), load_images(drawn_run.uri)
