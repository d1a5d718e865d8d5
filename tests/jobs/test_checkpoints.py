"""Checkpoints and weights by URI: which one a URI names, and training and segmenting from those in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import detection

from jobs.checkpoints import find_checkpoint, local_weights, open_checkpoint, place_checkpoint
from jobs.config.load import ConfigError, load_config
from jobs.config.segment import SegmentConfig
from jobs.config.train import TrainConfig
from jobs.segment import prepare_retry, prepare_segment, run_segment
from jobs.training.loop import TrainingRun, Worker
from jobs.training.train import prepare_train
from model.checkpoint import load_checkpoint
from model.checkpoint_folder import CheckpointError
from model.network import build_model
from pipeline.bulk.verify import verify_run
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import open_run
from pipeline.storage.base import StorageError
from pipeline.storage.stores import open_storage
from tests.chaos.rgw import ACCESS_KEY, SECRET_KEY
from tests.chaos.s3 import make_bucket, settings_for


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/maskfleet"


def upload(folder: Path, uri: str) -> str:
    storage = open_storage(uri)
    for path in sorted(folder.iterdir()):
        storage.write_bytes(path.name, path.read_bytes())
    return uri


@pytest.fixture
def in_bucket(bucket: str, tiny_checkpoint: Path) -> str:
    """A training output in a bucket with two checkpoints; the newer one is incomplete."""
    upload(tiny_checkpoint, f"{bucket}/training/checkpoints/step-00000010")
    open_storage(f"{bucket}/training/checkpoints/step-00000020").write_bytes("model.safetensors", b"half")
    return f"{bucket}/training"


def test_a_training_output_names_its_newest_complete_checkpoint(
    in_bucket: str, tiny_checkpoint: Path, cache: Path
) -> None:
    step = f"{in_bucket}/checkpoints/step-00000010"
    assert find_checkpoint(in_bucket) == find_checkpoint(step) == step
    assert find_checkpoint(str(tiny_checkpoint)) == str(tiny_checkpoint)
    sha256 = load_checkpoint(tiny_checkpoint).sha256
    assert open_checkpoint(in_bucket).sha256 == open_checkpoint(str(tiny_checkpoint)).sha256 == sha256
    (fetched,) = (path for path in cache.iterdir() if path.is_dir())
    assert {path.name for path in fetched.iterdir()} == {path.name for path in tiny_checkpoint.iterdir()}


def test_a_uri_without_a_checkpoint_is_refused(in_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; give a checkpoint folder"):
        find_checkpoint(f"{in_bucket}/nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(f"{in_bucket}/checkpoints/step-00000020")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(str(tmp_path / "nowhere"))


def test_a_damaged_checkpoint_is_named_by_its_uri(in_bucket: str) -> None:
    step = f"{in_bucket}/checkpoints/step-00000010"
    open_storage(step).write_bytes("spec.json", b"{}")
    with pytest.raises(CheckpointError, match=rf"{step}: spec\.json has 2 bytes"):
        open_checkpoint(in_bucket)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torchvision's form with random weights, fine-tuned to two classes."""
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("published") / "cells.pth"
    torch.save(detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict(), path)
    return path


@pytest.mark.long
def test_a_file_of_published_weights_becomes_a_checkpoint_in_the_cache(published: Path, cache: Path) -> None:
    names = ("cell", "nucleus")
    folder = find_checkpoint(str(published), class_names=names)
    assert Path(folder).parent == cache
    assert load_checkpoint(folder).sha256 == open_checkpoint(str(published), class_names=names).sha256
    assert find_checkpoint(str(published), class_names=names) == folder
    renamed = find_checkpoint(str(published), class_names=("nucleus", "cell"))
    assert renamed != folder and load_checkpoint(renamed).sha256 == load_checkpoint(folder).sha256
    with pytest.raises(CheckpointError, match=r"2 classes have no names in the file"):
        find_checkpoint(str(published))


def test_settings_of_a_weights_file_are_refused_beside_a_checkpoint(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="knows its network and classes; leave out those settings"):
        open_checkpoint(str(tiny_checkpoint), class_names=("a",))


def test_a_folder_that_is_called_like_a_file_of_weights_is_a_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pth").symlink_to(tiny_checkpoint)
    assert open_checkpoint(str(tmp_path / "model.pth")).sha256 == load_checkpoint(tiny_checkpoint).sha256


def test_a_placed_checkpoint_is_complete_and_placed_once(bucket: str, tiny_checkpoint: Path) -> None:
    uri = place_checkpoint(str(tiny_checkpoint), f"{bucket}/run/model")
    assert open_checkpoint(uri).sha256 == load_checkpoint(tiny_checkpoint).sha256
    open_storage(uri).delete("spec.json")
    assert place_checkpoint(str(tiny_checkpoint), uri) == uri
    assert not open_storage(uri).exists("spec.json"), "what is complete is never written again"


@pytest.mark.long
def test_a_run_begun_with_published_weights_holds_its_model(published: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "photos/a.png")
    settings = {
        "model": {"checkpoint": str(published), "classes": ["cell", "nucleus"]},
        "input": {"uri": str(tmp_path / "photos")},
        "output": {"uri": str(tmp_path / "run")},
        "cluster": {"num_cpus": 2, "num_gpus": 0},
    }
    without_gpu = SegmentConfig.model_validate(settings | {"segment": {"gpus_per_worker": 1}})
    with pytest.raises(ConfigError, match=r"segment\.gpus_per_worker: 1 is not allowed: the cluster has 0 GPUs"):
        run_segment(prepare_segment(without_gpu))
    plan = prepare_segment(SegmentConfig.model_validate(settings))
    assert not (tmp_path / "run").exists()
    assert run_segment(plan).statuses == {"ok": 1}
    assert load_checkpoint(tmp_path / "run/model").sha256 == plan.spec.model.sha256
    assert list(verify_run(open_run(str(tmp_path / "run")))) == []


def train_config(tmp_path: Path, **model: Any) -> TrainConfig:
    draw_shapes(str(tmp_path / "data"), num_train=2, num_val=0, num_unlabelled=0, image_size=(64, 64), max_shapes=2)
    return TrainConfig.model_validate(
        {
            "model": model,
            "data": {"train": str(tmp_path / "data/train.json")},
            "train": {"max_steps": 1, "batch_size": 1, "data_workers": 0, "learning_rate": 1e-9},
            "output": {"uri": str(tmp_path / "out")},
        }
    )


@pytest.mark.parametrize("kind", ["weights file", "weights folder", "checkpoint"])
def test_a_training_starts_from_weights_or_a_checkpoint_in_a_bucket(
    kind: str, in_bucket: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    start = load_checkpoint(tiny_checkpoint)
    step = f"{in_bucket}/checkpoints/step-00000010"
    if kind == "weights file":
        torch.save(start.state_dict, tmp_path / "w.pth")
        open_storage(in_bucket).write_bytes("w.pth", (tmp_path / "w.pth").read_bytes())
        model = {"weights": f"{in_bucket}/w.pth"}
    else:
        model = {"weights": step} if kind == "weights folder" else {"checkpoint": in_bucket}
    config = prepare_train(train_config(tmp_path, spec=start.spec.to_dict(), **model)).config
    notes: list[str] = []
    worker = Worker(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
    TrainingRun(config, worker, lambda kind, sentence, **_: notes.append(sentence)).run()
    assert any(f"{len(start.state_dict)} tensors loaded" in line or "tensors fit" in line for line in notes), notes
    trained = open_checkpoint(str(tmp_path / "out")).state_dict
    fresh = build_model(start.spec).state_dict()
    for name in ("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"):
        torch.testing.assert_close(trained[name], start.state_dict[name], atol=1e-6, rtol=0)
        assert not torch.allclose(fresh[name], start.state_dict[name], atol=1e-3)


def test_missing_weights_and_checkpoints_are_refused_before_training(
    in_bucket: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spec = load_checkpoint(tiny_checkpoint).spec.to_dict()
    with pytest.raises(StorageError, match=r"no\.pth cannot be fetched: there is no such object"):
        prepare_train(train_config(tmp_path, spec=spec, weights=f"{in_bucket}/no.pth"))
    with pytest.raises(ValueError, match="no such file"):
        prepare_train(train_config(tmp_path, spec=spec, weights=str(tmp_path / "no.pth")))
    with pytest.raises(CheckpointError, match="does not exist"):
        prepare_train(train_config(tmp_path, spec=spec, checkpoint=f"{in_bucket}/no"))
    assert local_weights("coco") == "coco" and local_weights(None) is None
    assert local_weights("file:///w%20a/x%23.pth") == "/w a/x#.pth"


def test_one_name_in_two_stores_is_two_files(moto: str, cache: Path, tmp_path: Path) -> None:
    """The settings of the call lead to the store; the cache tells the stores apart."""
    name = make_bucket(moto)
    stores = {endpoint: settings_for(endpoint) for endpoint in (moto, moto.replace("127.0.0.1", "localhost"))}
    open_storage(f"s3://{name}", stores[moto]).write_bytes("w.pth", b"weights")
    paths = {local_weights(f"s3://{name}/w.pth", settings) for settings in stores.values()}
    assert len(paths) == 2 and {Path(str(path)).read_bytes() for path in paths} == {b"weights"}


@pytest.fixture
def store(moto: str) -> list[str]:
    """Words of the command line that hold the bucket's endpoint and credentials."""
    keys = [f"storage.access_key={ACCESS_KEY}", f"storage.secret_key={SECRET_KEY}", "storage.region=us-east-1"]
    return [f"storage.endpoint_url={moto}", *keys]


@pytest.mark.long
def test_a_run_takes_its_checkpoint_from_a_bucket(
    in_bucket: str, store: list[str], photos: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None
) -> None:
    def segment(checkpoint: str, out: Path) -> pd.DataFrame:
        uris = [f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}", *store]
        config = load_config(SegmentConfig, None, ["segment.cpus_per_worker=1", "input.pattern=roll-0/*", *uris])
        assert run_segment(prepare_segment(config)).statuses == {"ok": 10}
        return pd.read_parquet(out / "instances").sort_values(["image_id", "instance"], ignore_index=True)

    instances = segment(in_bucket, tmp_path / "one")
    assert len(instances) > 20
    pd.testing.assert_frame_equal(instances, segment(str(tiny_checkpoint), tmp_path / "two"), atol=1e-3)
    assert prepare_retry(str(tmp_path / "one"), store).checkpoint == f"{in_bucket}/checkpoints/step-00000010"
