"""The program as people call it: exit codes and the one sentence, before any cluster starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.cluster import start
from jobs.home import HOME
from jobs.terminal import Exit
from pipeline.manifest import RUN_KEY

runner = CliRunner()


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(start, "cluster", started)
    monkeypatch.setattr("jobs.training.train.cluster", started)


def refused(words: list[str], *sentences: str) -> None:
    result = runner.invoke(app, words)
    assert result.exit_code == Exit.BAD_INPUT, result.output
    assert result.stdout == ""
    for sentence in sentences:
        assert sentence in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def places(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> list[str]:
    return [f"model.checkpoint={tiny_checkpoint}", f"input.uri={photos}", f"output.uri={tmp_path / 'out'}"]


def test_wrong_input_of_segment_is_refused_and_nothing_written(places: list[str], tmp_path: Path) -> None:
    checkpoint, photos, out = places
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "checkpoint.json").write_text("{")
    refused(["segment", *places, "segment.batch_size=0"], "segment.batch_size", "0", "greater than or equal to 1")
    refused(["segment", *places, "segment.batchsize=3"], "segment.batchsize", "batch_size")
    refused(["segment", checkpoint, out], "input.uri: missing", "usage: maskfleet segment")
    refused(["segment", checkpoint, "input.uri=/no/such/folder", out], "input.uri", "/no/such/folder", "folder")
    refused(["segment", "model.checkpoint=/no/model", photos, out], "/no/model", "checkpoint")
    refused(["segment", f"model.checkpoint={torn}", photos, out], "torn", "checkpoint.json")
    inside = f"output.uri={photos.removeprefix('input.uri=')}/out"
    refused(["segment", checkpoint, photos, inside], "output.uri", "inside")
    refused(["segment", "--config", "/no/such.yaml", *places], "/no/such.yaml", "no such file", "segment/tiny_cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn"]


def test_an_output_of_another_run_is_refused(places: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RUN_KEY).write_text('{"segment": {"score_threshold": 0.9}}')
    refused(["segment", *places], "belongs to run", "in the run", "asked for", "another output.uri")
    (out / RUN_KEY).rename(out / "photo.jpg")
    refused(["segment", *places], "is not empty", "photo.jpg")
    assert [path.name for path in out.iterdir()] == ["photo.jpg"]


def test_dry_run_says_what_and_writes_nothing(places: list[str], tmp_path: Path) -> None:
    result = runner.invoke(app, ["segment", *places, "--dry-run"])
    assert result.exit_code == Exit.DONE, result.output
    assert "would segment" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["settings train", "--help"])
def test_output_that_cannot_be_written_ends_in_one_sentence(command: str, tmp_path: Path) -> None:
    program = f"exec {sys.executable} -P {HOME}/maskfleet/__main__.py {command} 2> {tmp_path / 'errors'}"
    for redirection, code, errors in (
        ("> /dev/full", Exit.FAILED, "maskfleet: what is printed cannot be written: No space left on device\n"),
        (">&-", Exit.DONE, ""),
    ):
        done = subprocess.run(f"{program} {redirection}", shell=True, timeout=60)
        assert (done.returncode, (tmp_path / "errors").read_text()) == (code, errors)


def test_print_config_prints_what_config_reads(places: list[str], tmp_path: Path) -> None:
    result = runner.invoke(app, ["segment", *places, "segment.batch_size=7", "--print-config"])
    assert result.exit_code == Exit.DONE
    file = tmp_path / "c.yaml"
    file.write_text(result.stdout)
    assert yaml.safe_load(result.stdout)["segment"]["batch_size"] == 7
    again = runner.invoke(app, ["segment", "--config", str(file), "--print-config"])
    assert again.stdout == result.stdout


@pytest.mark.parametrize("command", ["verify", "evaluate"])
def test_a_place_without_a_run_is_refused(command: str, tmp_path: Path) -> None:
    more = ["ground_truth.uri=x"] if command == "evaluate" else []
    refused([command, str(tmp_path), *more], str(tmp_path), "holds no run")


def test_wrong_input_of_train_is_refused_and_nothing_written(tmp_path: Path) -> None:
    out = f"output.uri={tmp_path / 'out'}"
    refused(["train", "data.train=/no/such.json", "train.max_steps=1", out], "/no/such.json")
    refused(["train", "data.train=x", "train.lerning_rate=1", out], "train.lerning_rate", "learning_rate")
    refused(["train", "data.train=x", "train.max_steps=1", "model.spec.backbone=resnet51", out], "backbone", "resnet51")
    assert list(tmp_path.iterdir()) == []
