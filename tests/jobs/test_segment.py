"""The bulk commands as people call them, on a disk and in a bucket."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import Exit, app
from pipeline.tables import decode_mask, load_images, load_instances
from tests.chaos.s3 import make_bucket, storage_words

pytestmark = pytest.mark.usefixtures("ray_cluster")
runner = CliRunner()


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Four photos and a torn one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in [*sorted((photos / "roll-1").iterdir())[:4], photos / "torn.png"]:
        shutil.copy(path, folder)
    return folder


def call(code: Exit, *words: object) -> str:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def test_too_many_failures_are_told_by_exit_code_and_status(
    folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    said = call(Exit.TOO_MANY_FAILED, "segment", *words, "segment.max_failed_fraction=0.1")
    assert "status: corrupt 1, ok 4" in said
    assert "20.0% of the images failed; segment.max_failed_fraction allows 10.0%" in said
    assert "5 images" in call(Exit.DONE, "segment", *words, "segment.max_failed_fraction=0.2"), "the run is finished"


def test_only_what_is_new_or_changed_since_a_run(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}"]
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'first'}")
    names = sorted(path.name for path in folder.glob("*.png"))
    shutil.copy(folder / names[0], folder / "new.png")
    shutil.copy(folder / names[0], folder / "torn.png")
    since = f"input.since_run={tmp_path / 'first'}"
    call(Exit.DONE, "segment", *words, since, f"output.uri={tmp_path / 'second'}")
    images = load_images(str(tmp_path / "second"))
    assert dict(zip(images["image_id"], images["status"])) == {"new.png": "ok", "torn.png": "ok"}
    since = f"input.since_run={tmp_path / 'second'}"
    assert "0 images" in call(Exit.DONE, "segment", *words, since, f"output.uri={tmp_path / 'third'}")


def test_a_bucket_from_the_first_word_to_the_last(
    folder: Path, tiny_checkpoint: Path, moto: str, bucket: str, tmp_path: Path
) -> None:
    """segment, verify, retry: input and output in buckets, reached by the storage section alone."""
    from pipeline.storage.stores import open_storage

    for path in folder.iterdir():
        open_storage(bucket).write_bytes(path.name, path.read_bytes())
    storage, run = storage_words(moto), f"s3://{make_bucket(moto)}/run"
    places = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={bucket}", f"output.uri={run}"]
    assert "corrupt 1, ok 4" in call(Exit.DONE, "segment", *places, *storage)
    assert "exact" in call(Exit.DONE, "verify", run, *storage)
    open_storage(bucket).write_bytes("torn.png", (folder / "torn.png").read_bytes() + b"again")
    statuses = 'retry.statuses=["corrupt"]'
    assert "repaired shards: changed 1" in call(Exit.DONE, "retry", run, *storage, statuses)
    assert "exact" in call(Exit.DONE, "verify", run, *storage)
    assert load_images(run).set_index("image_id").loc["torn.png", "status"] == "changed"


def test_fast_mode_is_another_run(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    fast = ["segment.mode=fast", "segment.precision=bfloat16"]
    said = call(Exit.DONE, "segment", *words, *fast, "--profile")
    assert "profile: 5 images" in said
    seconds = {line.split()[0]: line.split()[1] for line in said.splitlines() if line.startswith("  ")}
    assert all(float(seconds[stage]) > 0 for stage in ("predict", "write", "decode")), said
    assert {"fetch", "encode", "wait_for_images"} <= seconds.keys()
    images = load_images(str(tmp_path / "run"))
    assert images["status"].value_counts().to_dict() == {"ok": 4, "corrupt": 1} and images["num_instances"].sum() > 0
    result = runner.invoke(app, ["segment", *words])
    assert result.exit_code == Exit.BAD_INPUT
    assert 'segment.mode: "fast" there, "exact" here' in result.output
    assert 'segment.precision: "bfloat16" there, "float32" here' in result.output


def test_scaled_decoding_keeps_sizes_and_boxes_of_the_original(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A photo whose half is all that the network looks at, and the same photo at that size."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 12, 3), np.uint8))
    folder = tmp_path / "photos"
    folder.mkdir()
    coarse.resize((768, 512), Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", "segment.score_threshold=0.3"]
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'whole'}")
    call(Exit.DONE, "segment", *words, f"output.uri={tmp_path / 'scaled'}", "decode.scaled=true")
    whole, scaled = (load_instances(str(tmp_path / name)).sort_values("instance") for name in ("whole", "scaled"))
    image = load_images(str(tmp_path / "scaled")).iloc[0]
    assert (image["height"], image["width"]) == (512, 768)
    assert len(whole) > 0 and abs(len(scaled) - len(whole)) <= max(2, len(whole) // 5)
    assert (scaled["image_height"] == 512).all() and scaled["x2"].max() > 384, "boxes of the original"
    best = whole.iloc[0]
    distance = (scaled[["x1", "y1", "x2", "y2"]] - best[["x1", "y1", "x2", "y2"]].astype(float)).abs().max(axis=1)
    assert distance.min() < 8


def test_a_huge_image_is_cut_and_lands_in_the_same_tables(tiny_checkpoint: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("huge.png", (300, 200)), ("small.png", (96, 64))):
        coarse = Image.fromarray(random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
        coarse.resize(size, Image.Resampling.NEAREST).save(folder / name)
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={folder}", f"output.uri={tmp_path / 'run'}"]
    call(Exit.DONE, "segment", *words, "segment.slice.size=128", "segment.slice.overlap=32")
    call(Exit.DONE, "verify", tmp_path / "run")
    images = load_images(str(tmp_path / "run")).set_index("image_id")
    assert images.loc["huge.png", ["status", "height", "width"]].tolist() == ["ok", 200, 300]
    instances = load_instances(str(tmp_path / "run"))
    huge = instances[instances["image_id"] == "huge.png"]
    assert len(huge) > (instances["image_id"] == "small.png").sum() > 0
    assert huge["x2"].max() > 270 and huge["y2"].max() > 180 and huge["x1"].min() < 30
    mask = decode_mask(huge.iloc[0])
    assert mask.shape == (200, 300) and mask.sum() == huge.iloc[0]["area_px"]
    assert "segment.slice" in runner.invoke(app, ["segment", *words]).output
