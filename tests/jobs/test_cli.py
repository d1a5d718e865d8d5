"""The program as people call it: exit codes and the one sentence, before any cluster starts."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import ray
import yaml
from typer.testing import CliRunner

from jobs.cli import app, warn_of_failures
from jobs.cluster import start
from jobs.commands import COMMANDS, CONFIGURED, print_settings, read_settings
from jobs.config.base import flatten
from jobs.config.describe import MISSING, settings_of
from jobs.config.load import IncompleteError, required_keys
from jobs.home import HOME, shipped_configs
from jobs.terminal import Exit
from pipeline.manifest import RUN_KEY
from pipeline.predictors.source import hash_files, read_folder
from tests.pipeline.predictors.written import write_example

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


def dry_run(*words: object) -> str:
    result = runner.invoke(app, [*map(str, words), "--dry-run"])
    assert result.exit_code == Exit.DONE, result.output
    return result.stdout


def test_dry_run_says_what_and_writes_nothing(
    places: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _, out = places
    num_photos = sum(1 for path in photos.rglob("*") if path.is_file())
    assert f"would segment {num_photos} images of {photos} with " in dry_run("segment", *places)
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"{number}.jpg\n" for number in range(1234)))
    assert "would segment 1,234 images of " in dry_run("segment", checkpoint, f"input.uri={tmp_path}/list.csv", out)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(photos, "photos")
    assert f"would segment {num_photos} images" in dry_run("segment", checkpoint, f"input.uri={tmp_path}/a.tar", out)
    monkeypatch.setattr("jobs.segment.MOST_COUNTED", 1)
    assert "would segment more than 1 images of" in dry_run("segment", *places)
    assert not (tmp_path / "out").exists()


def test_a_predictor_of_the_users_own_is_checked_before_anything_starts(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out = write_example(tmp_path / "code"), tmp_path / "out"
    words = ["segment", "segment.predictor=colours:Colours", f"segment.predictor_path={code}"]
    words += [f"input.uri={photos}", f"output.uri={out}"]
    assert f"with colours:Colours (code {hash_files(read_folder(code))[:12]}) into {out}" in dry_run(*words)
    for more in ([], ["--dry-run"]):
        refused(
            [*words, *more, "segment.predictor_settings.min_share=2"], "colours:Colours refuses them: ValueError: min"
        )
    refused([*words, "segment.predictor=nothing:X"], "segment.predictor: nothing:X cannot be imported: ModuleNotFound")
    refused([*words, f"segment.predictor_path={tmp_path / 'none'}"], "segment.predictor_path", "is not a folder")
    refused([*words, "segment.mode=fast"], "segment.mode is fast; not allowed with segment.predictor")
    assert not out.exists()


def test_a_dry_run_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for words in (["check-data", "x"], ["convert", "x", "y.json"], ["history", "x"], ["retry", "x"], ["verify", "x"]):
        refused([*words[:1], *(str(tmp_path / word) for word in words[1:]), "--dry-run"], str(tmp_path / "x"))


def test_print_config_prints_what_config_reads(places: list[str], tmp_path: Path) -> None:
    result = runner.invoke(
        app,
        [
            "segment",
            *places,
            "segment.batch_size=7",
            "storage.secret_key=planted",
            "storage.access_key=k",
            "--print-config",
        ],
    )
    assert result.exit_code == Exit.DONE
    assert "batch_size: 7  # Most images in one forward pass" in result.stdout and "planted" not in result.stdout
    file = tmp_path / "c.yaml"
    file.write_text(result.stdout)
    assert yaml.safe_load(result.stdout)["segment"]["batch_size"] == 7
    again = runner.invoke(app, ["segment", "--config", str(file), "--print-config"])
    assert again.stdout == result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_print_config_needs_no_setting_and_what_it_lacks_is_asked_for(command: str, tmp_path: Path) -> None:
    result = runner.invoke(app, [command, "--print-config"])
    assert result.exit_code == Exit.DONE, result.output
    values = flatten(yaml.safe_load(result.stdout))
    config = COMMANDS[command].config
    assert {key for key, value in values.items() if value == MISSING} == set(required_keys(config))
    for each in settings_of(config):
        if each.key in values:
            assert " ".join(each.description.split()) in result.stdout, each.key
    (tmp_path / "c.yaml").write_text(result.stdout)
    try:
        read_settings(command, tmp_path / "c.yaml", None)
    except IncompleteError as error:
        assert all(f"{key}: missing; " in str(error) for key in required_keys(config))
        assert str(error).splitlines()[-1].startswith(f"usage: maskfleet {command} [--config FILE] ")
    else:
        assert not required_keys(config)


@pytest.mark.parametrize(
    "path", sorted(shipped_configs().rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_shipped_configuration_is_printed_as_it_is_read(path: Path, tmp_path: Path) -> None:
    command = path.parent.name
    if command in COMMANDS:
        text = print_settings(command, path, None)
        (tmp_path / "c.yaml").write_text(text)
        assert print_settings(command, tmp_path / "c.yaml", None) == text


@pytest.mark.parametrize("command", CONFIGURED)
def test_every_command_takes_quiet_and_words_in_any_order(command: str) -> None:
    settings = "--quiet", "storage.num_retries=x" if "storage" in CONFIGURED[command].config.model_fields else "x.y=1"
    refused([command, "--dry-run", "run", *settings] if command == "retry" else [command, "--dry-run", *settings])
    assert f"maskfleet settings {command}" in runner.invoke(app, [command, "--help"]).stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["segmnt"], "Did you mean 'segment'?"),
        (["segment", "modle.checkpoint=m"], "modle.checkpoint: there is no such key; did you mean model.checkpoint?"),
        (["segment", "checkpoint=m"], "checkpoint: there is no such key; did you mean model.checkpoint?"),
        (
            ["segment", "segment.mode=fats"],
            "segment.mode: 'fats' is not allowed: input should be 'exact', 'fast' or 'int8'; did",
        ),
        (["train", "model.spec.backbone=resnet5"], "model.spec.backbone: 'resnet5' is not allowed: allowed are 'tiny'"),
        (["export", "run", "--to", "coco"], "--to: export has no such option; did you mean export.to=...?"),
        (["train", "--dryrun"], "--dryrun: train has no such option; did you mean --dry-run?"),
        (["settings", "train", "mdoel"], "settings: train has no section 'mdoel'; did you mean model?"),
    ],
)
def test_a_near_miss_is_answered_with_what_may_be_meant(words: list[str], sentence: str) -> None:
    refused(words, sentence)


def test_most_images_failed_is_said_in_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_failures({"ok": 2, "corrupt": 2}, "out")
    assert capsys.readouterr().out == ""
    warn_of_failures({"ok": 2, "corrupt": 2, "timeout": 1}, "out")
    assert capsys.readouterr().out.startswith("WARNING: 3 of 5 images FAILED; status and error in out/images say why")


@pytest.mark.parametrize("command", ["settings train", "--help"])
def test_output_that_cannot_be_written_ends_in_one_sentence(command: str, tmp_path: Path) -> None:
    program = f"exec {sys.executable} -P {HOME}/maskfleet/__main__.py {command} 2> {tmp_path / 'errors'}"
    for redirection, code, errors in (
        ("> /dev/full", Exit.FAILED, "maskfleet: what is printed cannot be written: No space left on device\n"),
        (">&-", Exit.DONE, ""),
    ):
        done = subprocess.run(f"{program} {redirection}", shell=True, timeout=60)
        assert (done.returncode, (tmp_path / "errors").read_text()) == (code, errors)


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
