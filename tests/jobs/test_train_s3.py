"""A training whose output is a bucket; the store is moto's server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.checkpoints import open_checkpoint
from jobs.config.train import TrainConfig
from jobs.training.loop import TrainingRun, Worker
from jobs.training.output import TrainingOutput
from jobs.training.train import prepare_train, run_train, to_saved
from pipeline.dataset.shapes import draw_shapes
from pipeline.storage.stores import use_settings
from tests.chaos.rgw import ACCESS_KEY, SECRET_KEY
from tests.chaos.s3 import make_bucket, settings_for
from tests.specs import small_spec

SPEC = small_spec()


def test_workers_reach_photos_in_a_bucket_by_the_settings_alone(ray_cluster: None, moto: str):
    """Neither the environment nor the cluster knows of the store."""
    settings = settings_for(moto)
    uri = f"s3://{make_bucket(moto)}"
    use_settings(settings)
    try:
        draw_shapes(f"{uri}/data", num_train=3, num_val=1, num_unlabelled=0, image_size=(48, 64), max_shapes=2)
        config = TrainConfig.model_validate(
            {
                "model": {"spec": SPEC.to_dict()},
                "data": {"train": f"{uri}/data/train.json", "val": f"{uri}/data/val.json"},
                "train": {"max_steps": 2, "batch_size": 1, "data_workers": 1, "validate_every_steps": 2},
                "output": {"uri": f"{uri}/model"},
                "storage": {
                    "endpoint_url": moto,
                    "region": "us-east-1",
                    "access_key": ACCESS_KEY,
                    "secret_key": SECRET_KEY,
                },
            }
        )
        result = run_train(prepare_train(config))
        assert result.step == 2 and not result.broken_images and "segm_AP" in result.last_metrics
        assert "secret_key" not in str(TrainingOutput(f"{uri}/model", settings).read_config())
    finally:
        use_settings(None)


def test_a_training_in_a_bucket_is_cut_off_and_goes_on(bucket: str, tmp_path: Path):
    draw_shapes(str(tmp_path), num_train=4, num_val=1, num_unlabelled=0, image_size=(48, 64), max_shapes=2)

    def config(uri: str) -> TrainConfig:
        train = {"max_steps": 4, "batch_size": 1, "data_workers": 0, "checkpoint_every_steps": 1, "num_to_keep": 2}
        train |= {"validate_every_steps": 2, "learning_rate": 0.01, "log_every_steps": 1}
        return TrainConfig.model_validate(
            {
                "model": {"spec": SPEC.to_dict()},
                "data": {"train": str(tmp_path / "train.json"), "val": str(tmp_path / "val.json")},
                "train": train,
                "output": {"uri": uri},
            }
        )

    def run(uri: str, stop_at: int | None = None) -> None:
        def report(kind: str, sentence: str, **values: Any) -> None:
            if kind == "step" and values["step"] == stop_at:
                raise KeyboardInterrupt

        worker = Worker(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
        TrainingRun(config(uri), worker, report).run()

    run(str(tmp_path / "whole"))
    uri = f"{bucket}/models/one"
    with pytest.raises(KeyboardInterrupt):
        run(uri, stop_at=4)
    output = TrainingOutput(uri)
    assert output.steps() == [2, 3]
    output.storage.delete("checkpoints/step-00000003/checkpoint.json")  # a write that was cut off
    assert output.torn_names() == ["step-00000003"]
    output.write_config(to_saved(prepare_train(config(uri)).config))
    run(uri)

    whole, there = TrainingOutput(str(tmp_path / "whole")).load_newest(), output.load_newest()
    assert whole is not None and there is not None and whole[0] == there[0] == 4
    assert whole[1].sha256 == there[1].sha256
    assert [row["step"] for row in output.read_metrics()] == [1, 2, 2, 3, 4, 4]
    assert prepare_train(config(uri)).is_finished
    for source in (uri, output.checkpoint_uri(4)):
        assert open_checkpoint(source).sha256 == whole[1].sha256
    names = {info.key.split("/")[0] for info in output.storage.iter_objects()}
    assert names == {"best.json", "checkpoints", "config.yaml", "finished.json", "metrics.parquet", "tensorboard"}
