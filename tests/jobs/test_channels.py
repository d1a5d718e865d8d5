"""A network of more than three channels, from training with validation to a bulk run; depth in files of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from jobs.config.load import ConfigError, load_config
from jobs.config.segment import SegmentConfig
from jobs.config.train import TrainConfig
from jobs.segment import prepare_segment, run_segment
from jobs.training.loop import TrainingRun, Worker
from jobs.training.train import prepare_train
from model.categories import Category
from model.checkpoint import load_checkpoint, save_checkpoint
from model.inference.predictor import Predictor
from model.network import build_model
from pipeline.bulk.verify import verify_run
from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.photos import load_photo
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import open_run
from tests.pipeline.images.tiff_files import random_bands, tiff_bytes
from tests.specs import small_spec

PATTERN = "{folder}/../depth/{stem}.png"
SPEC = small_spec(in_channels=4, image_mean=(0.5,) * 4, image_std=(0.25,) * 4, score_threshold=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn shapes; the depth beside them is 16 bits deep and says where an object is."""
    folder = tmp_path_factory.mktemp("deep")
    draw_shapes(str(folder), num_train=4, num_val=3, num_unlabelled=0, image_size=(48, 64), max_shapes=2)
    (folder / "depth").mkdir()
    for name in ("train", "val"):
        for image in load_annotations(str(folder / f"{name}.json")).images:
            depth = np.full((image.height, image.width), 40_000, np.uint16)
            for instance in image.instances:
                depth[instance.mask(image.height, image.width) > 0] = 10_000
            Image.fromarray(depth).save(folder / "depth" / f"{Path(image.path).stem}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    config = TrainConfig.model_validate(
        {
            "model": {"spec": SPEC.to_dict()},
            "data": {
                "train": str(data / "train.json"),
                "val": str(data / "val.json"),
                "extra_channels": PATTERN,
            },
            "train": {
                "max_steps": 2,
                "batch_size": 2,
                "data_workers": 0,
                "validate_every_steps": 2,
                "learning_rate": 0.001,
            },
            "output": {"uri": str(data / "training")},
        }
    )
    notes: list[str] = []

    def report(kind: str, sentence: str, **_: Any) -> None:
        notes.append(f"{kind}: {sentence}")

    worker = Worker(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
    TrainingRun(prepare_train(config).config, worker, report).run()
    assert not [note for note in notes if note.startswith("broken")]
    rows = pd.read_parquet(data / "training/metrics.parquet")
    assert "segm_AP" in rows.columns, "the validation has read the depth too"
    return data / "training"


def segment_config(checkpoint: Path, photos: Path, out: Path, *words: str) -> SegmentConfig:
    places = [f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}"]
    return load_config(SegmentConfig, None, ["segment.cpus_per_worker=1", "segment.score_threshold=0", *places, *words])


def test_a_photo_and_its_depth_are_trained_on_and_segmented(
    trained: Path, data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    out = tmp_path / "run"
    plan = prepare_segment(segment_config(trained, data / "val", out, f"input.extra_channels={PATTERN}"))
    assert run_segment(plan)["statuses"] == {"ok": 3}
    assert list(verify_run(open_run(str(out)))) == []

    checkpoint = load_checkpoint(plan.checkpoint)
    predictor = Predictor(checkpoint.build(), checkpoint.spec)
    instances = pd.read_parquet(out / "instances").sort_values(["image_id", "instance"])
    assert len(instances) > 3
    for image in with_extra_channels(load_annotations(str(data / "val.json")), PATTERN).images:
        (expected,) = predictor.predict([load_photo(image, in_channels=4)[0]])
        found = instances[instances["image_id"] == Path(image.path).name]
        np.testing.assert_allclose(found["score"], expected.scores, atol=1e-4)
        np.testing.assert_allclose(found[["x1", "y1", "x2", "y2"]], expected.boxes, atol=0.05)


def test_without_its_depth_a_photo_has_a_row_that_says_so(
    trained: Path, data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    plan = prepare_segment(segment_config(trained, data / "val", tmp_path / "run"))
    assert run_segment(plan)["statuses"] == {"unsupported_format": 3}
    errors = pd.read_parquet(tmp_path / "run/images")["error"]
    assert set(errors) == {"it has 3 bands; 4 are wanted"}


def test_files_of_many_bands_are_segmented(tmp_path: Path, ray_cluster: None) -> None:
    spec = SPEC.replace(num_classes=1, in_channels=5, image_mean=(0.5,) * 5, image_std=(0.25,) * 5)
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(checkpoint, model=build_model(spec), spec=spec, categories=[Category(1, "field")], progress={})
    (tmp_path / "tiles").mkdir()
    for i in range(3):
        bands = random_bands("u2", 5, 48, 40 + i)
        (tmp_path / f"tiles/{i}.tif").write_bytes(tiff_bytes(bands, tile=16, planar=True, deflate=True))
    (tmp_path / "tiles/rgb.tif").write_bytes(tiff_bytes(random_bands("u1", 3)))
    totals = run_segment(prepare_segment(segment_config(checkpoint, tmp_path / "tiles", tmp_path / "run")))
    assert totals["statuses"] == {"ok": 3, "unsupported_format": 1}
    images = pd.read_parquet(tmp_path / "run/images").set_index("image_id")
    assert images.loc["1.tif", ["height", "width"]].tolist() == [48, 41]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input.extra_channels=depth.png"], r"input\.extra_channels: the pattern 'depth.png' must have \{stem\}"),
        (["input.extra_channels={stem}.png", "input.kind=tars"], r"input\.extra_channels: not allowed with tar files"),
    ],
)
def test_patterns_that_cannot_be_are_refused(tiny_checkpoint: Path, tmp_path: Path, words: list, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare_segment(segment_config(tiny_checkpoint, tmp_path, tmp_path.with_name("run"), *words))
