"""What a submitted job takes along: its identity, settings, environment, pinned dependencies and files."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pyarrow
import pytest
from pydantic import BaseModel

from jobs.cluster import job_package
from jobs.cluster.job_package import from_settings, from_words, handed_environment, write_package
from jobs.cluster.submission import SUBMISSION, read_submission
from jobs.commands import COMMANDS, read_settings
from jobs.config.load import ConfigError
from pipeline.predictors.source import PredictorError, read_folder
from tests.paths import ROOT
from tests.pipeline.predictors.written import write_code


def settings(*words: str) -> BaseModel:
    """Settings of `segment` with these words."""
    return read_settings("segment", None, ["model.checkpoint=m", "input.uri=i", "output.uri=s3://b/o", *words])


def test_a_submission_is_named_by_code_and_settings_and_not_by_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = from_settings("segment", settings(), {}).hash()
    secret = ("storage.access_key=a", "storage.secret_key=b")
    assert from_settings("segment", settings(*secret), {"X": "y"}).hash() == name
    assert from_settings("segment", settings("segment.batch_size=3"), {}).hash() != name
    monkeypatch.setattr(job_package, "code_files", lambda: {"jobs/cli.py": Path(__file__)})
    assert from_settings("segment", settings(), {}).hash() != name


def test_paths_become_absolute_and_secrets_leave_the_settings(tmp_path: Path) -> None:
    submission = from_settings("segment", settings("storage.access_key=a", "storage.secret_key=b"), {})
    assert submission.config is not None
    assert submission.config["input"]["uri"] == str(Path("i").absolute())
    assert submission.config["output"]["uri"] == "s3://b/o" == submission.output
    assert submission.config["cluster"]["address"] == "auto"
    current = Path.cwd()
    assert submission.local_paths() == [f"model.checkpoint={current / 'm'}", f"input.uri={current / 'i'}"]
    assert submission.environment == {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert "secret_key': None" in repr(submission.config) and "'b'" not in repr(submission)
    write_package(tmp_path, submission)
    shipped = {"args": ["segment", "--config", "config.yaml"], "environment": submission.environment}
    assert read_submission(tmp_path) == shipped
    assert (tmp_path / SUBMISSION).stat().st_mode & 0o777 == 0o600
    assert read_settings("segment", tmp_path / "config.yaml", []).output.uri == "s3://b/o"
    assert {path.name for path in tmp_path.iterdir()} == {*job_package.FOLDERS, "config.yaml", SUBMISSION}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 4 * 2**20


def test_the_package_of_a_sweep_holds_its_base(tmp_path: Path) -> None:
    base = ROOT / "configs/train/tiny_cpu.yaml"
    words = [f"sweep.base={base}", "sweep.grid.train.learning_rate=[0.1, 0.2]", "sweep.fixed.data.train=photos"]
    submission = from_settings("sweep", read_settings("sweep", None, [*words, "output.uri=s3://b/o"]), {})
    assert submission.config is not None
    assert submission.config["sweep"]["fixed"] == {"data.train": str(Path.cwd() / "photos")}
    write_package(tmp_path, submission)
    assert (tmp_path / "base.yaml").read_text() == base.read_text()
    assert read_settings("sweep", tmp_path / "config.yaml", []).sweep.base == "base.yaml"


def test_the_package_of_a_predictor_holds_its_code(tmp_path: Path) -> None:
    code = write_code(tmp_path / "code", mine="X = 1")
    words = ["segment.predictor=mine:Mine", f"segment.predictor_path={code}", "input.uri=s3://b/i"]
    made = from_settings("segment", read_settings("segment", None, [*words, "output.uri=s3://b/o"]), {})
    write_package(tmp_path / "package", made)
    assert read_folder(tmp_path / "package/predictor_code") == read_folder(code) and made.local_paths() == []
    settings = read_settings("segment", tmp_path / "package/config.yaml", [])
    assert (settings.segment.predictor_path, settings.model.checkpoint) == ("predictor_code", "mine:Mine")
    again = from_words("retry", ["s3://b/o", f"segment.predictor_path={code}"], {})
    assert again.files == made.files and "segment.predictor_path=predictor_code" in again.args
    write_code(code, mine="X = 2")
    assert from_settings("segment", read_settings("segment", None, [*words, "output.uri=s3://b/o"]), {}).hash() != (
        made.hash()
    )
    with pytest.raises(PredictorError, match="is not a folder"):
        from_words("retry", ["s3://b/o", f"segment.predictor_path={tmp_path / 'none'}"], {})


def test_every_place_of_a_sweep_becomes_absolute() -> None:
    words = ["sweep.grid.data.train=[a.json, s3://b/c.json]", "sweep.grid.model.weights=[coco, w.pth]"]
    cases = ["sweep.cases={deep: {data.extra_channels: '{folder}/{stem}.png'}, other: {data.image_root: photos}}"]
    config = from_settings("sweep", read_settings("sweep", None, [*words, *cases, "output.uri=o"]), {}).config
    assert config is not None
    here = Path.cwd()
    assert config["sweep"]["grid"]["data.train"] == [str(here / "a.json"), "s3://b/c.json"]
    assert config["sweep"]["grid"]["model.weights"] == ["coco", str(here / "w.pth")]
    assert config["sweep"]["cases"]["deep"] == {"data.extra_channels": "{folder}/{stem}.png"}
    assert config["sweep"]["cases"]["other"] == {"data.image_root": str(here / "photos")}


def test_places_among_the_words_of_retry_become_absolute() -> None:
    words = ["run", "model.checkpoint=m", "input.since_run=file:///a%20b", "input.pattern=*.jpg", "no.such=x"]
    kept = from_words("retry", words, {}).args
    here = Path.cwd()
    assert kept[1:-1] == (
        str(here / "run"),
        f"model.checkpoint={here / 'm'}",
        "input.since_run=/a b",
        "input.pattern=*.jpg",
        "no.such=x",
    )


def test_retry_is_submitted_as_words_without_secrets() -> None:
    submission = from_words("retry", ["s3://b/run", "storage.secret_key=b", "segment.batch_size=2"], {})
    assert submission.args == ("retry", "s3://b/run", "segment.batch_size=2", "cluster.address=auto")
    assert submission.environment == {"AWS_SECRET_ACCESS_KEY": "b"} and submission.output == "s3://b/run"


def test_only_variables_that_are_set_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("NAMED", "m")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    assert handed_environment(["NAMED", "WITH_VALUE=t=u"], credentials=False) == {"NAMED": "m", "WITH_VALUE": "t=u"}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    handed = handed_environment([], credentials=True)
    assert handed["AWS_SECRET_ACCESS_KEY"] == "s" and handed["MLFLOW_TRACKING_TOKEN"] == "t"
    with pytest.raises(ConfigError, match="--env NOT_THERE: is not set here"):
        handed_environment(["NOT_THERE"], credentials=False)


def test_what_some_machines_have_is_pinned_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO: also for `retry`, whose run may compute with it."""
    retry = from_words("retry", ["s3://b/run"], {})
    missing: set[str] = set()

    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    assert "openvino==1.0" in job_package.pinned_dependencies(retry)
    missing.add("openvino")
    assert "openvino==1.0" not in job_package.pinned_dependencies(retry)
    missing.add("pyarrow")
    with pytest.raises(ConfigError, match=r"--dependencies pinned: .*pyarrow.* is not installed here"):
        job_package.pinned_dependencies(retry)


def test_dependencies_are_pinned_to_the_installed_versions() -> None:
    pins = job_package.pinned_dependencies(from_settings("segment", settings(), {}))

    assert f"pyarrow=={pyarrow.__version__}" in pins
    assert not [pin for pin in pins if pin.startswith(("ray", "mlflow"))]
    words = ["run.uri=run", "ground_truth.uri=val.json", "tracking.uri=http://tracking:5000"]
    tracked = from_settings("evaluate", read_settings("evaluate", None, words), {})
    assert f"mlflow-skinny=={metadata.version('mlflow-skinny')}" in job_package.pinned_dependencies(tracked)
    words = ["model.checkpoint=m", "input.uri=i", "output.uri=o", "segment.refine.model=facebook/sam-vit-base"]
    refined = from_settings("segment", read_settings("segment", None, words), {})
    assert refined.config is not None and refined.config["segment"]["refine"]["model"] == "facebook/sam-vit-base"
    assert f"transformers=={metadata.version('transformers')}" in job_package.pinned_dependencies(refined)


def test_every_command_but_the_local_ones_can_be_submitted() -> None:
    assert set(job_package.SUBMITTED) == {*COMMANDS, "retry"} - {"demo", "schedule", "manifests"}


def test_a_package_holds_code_and_configurations_and_no_data() -> None:
    names = list(job_package.code_files())
    assert {"jobs/cluster/entrypoint.py", "maskfleet/__main__.py", "configs/train/tiny_cpu.yaml"} <= set(names)
    assert {Path(name).suffix for name in names} == {".py", ".typed", ".j2", ".yaml"}
    assert names == sorted(names)
