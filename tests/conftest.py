"""What several suites share: the real data where it is there, and one Ray for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; tests on them skip where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real photos in ../shared/data, which are not part of the project")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray on this machine, two cores, one for the whole session."""
    from jobs.cluster import cluster
    from jobs.config_base import ClusterSection

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with cluster(ClusterSection(num_cpus=2, num_gpus=0)):
        yield
