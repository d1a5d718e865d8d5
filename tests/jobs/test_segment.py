"""The bulk commands as people call them, on a disk and in a bucket."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import Exit, app
from pipeline.results import load_images
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
    from pipeline.storage import open_storage

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
