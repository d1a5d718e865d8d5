"""What several suites share: the real data where it is there, and one Ray for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.paths import ROOT

if TYPE_CHECKING:
    from tests.chaos.rgw import Rgw


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos beside the repository; tests on them skip where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs image files of others in ../shared/data, which this project may not pass on")
    return folder


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Ray on this machine, two cores, one for the whole session."""
    from jobs.cluster.start import cluster
    from jobs.config.base import ClusterSection

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))  # its workers inherit it
    with ExitStack() as started:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))  # for its workers, which unpickle functions of the tests
            started.enter_context(cluster(ClusterSection(num_cpus=2, num_gpus=0)))
        yield


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of moto's S3 server, one for the whole session."""
    from tests.chaos.s3 import moto_server

    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def second_moto() -> Iterator[str]:
    """The endpoint of another S3 server, which knows nothing of the first one's buckets."""
    from tests.chaos.s3 import moto_server

    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rgw]:
    """A real S3 server; skips with the reason where there can be none."""
    from tests.chaos.rgw import Rgw
    from tests.debian import Unavailable

    try:
        gateway = Rgw(tmp_path_factory.mktemp("ceph") / "rgw")
        gateway.start()
    except Unavailable as reason:
        pytest.skip(f"no RADOS gateway here: {reason}")
    yield gateway
    gateway.stop()


@pytest.fixture
def rgw(gateway: Rgw) -> str:
    """The endpoint of the real S3 server."""
    return gateway.endpoint


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket of moto's, found through the environment as the AWS tools do."""
    from tests.chaos.s3 import environment_for, make_bucket

    for name, value in environment_for(moto).items():
        monkeypatch.setenv(name, value)
    return f"s3://{make_bucket(moto)}"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny network with random weights whose class scores are peaked, so that it finds things."""
    import torch

    from model.categories import Category
    from model.checkpoint import save_checkpoint
    from model.network import build_model
    from model.spec import ModelSpec

    torch.manual_seed(0)
    spec = ModelSpec.tiny(num_classes=3)
    network = build_model(spec)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.mul_(60.0)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    categories = tuple(Category(3 * i + 1, name) for i, name in enumerate(("circle", "square", "triangle")))
    save_checkpoint(folder, model=network, spec=spec, categories=categories, progress={})
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 small drawn images in three sizes and subfolders, a text file, an empty file and a torn PNG."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(40):
        height, width = [(64, 96), (96, 64), (80, 80)][i % 3]
        pixels = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        path = folder / f"roll-{i % 4}" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "torn.png").write_bytes((folder / "roll-0" / "000.png").read_bytes()[:-40])
    return folder
