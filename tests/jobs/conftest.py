"""Fixtures of the commands that read finished runs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn annotated images (data), a run that finds every object (perfect) and one that finds about
    half of them (worse)."""
    from pipeline.dataset.shapes import draw_shapes
    from tests.jobs.drawn_runs import write_run

    folder = tmp_path_factory.mktemp("results")
    draw_shapes(str(folder / "data"), num_train=2, num_val=12, num_unlabelled=1)
    write_run(folder / "data", folder / "perfect", drop_every=0)
    write_run(folder / "data", folder / "worse", drop_every=2)
    return folder
