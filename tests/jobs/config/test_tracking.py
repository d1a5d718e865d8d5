"""Settings of tracking: which stores are taken, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.job_package import from_settings
from jobs.config.load import ConfigError, load_config, to_saved
from jobs.config.results import EvaluateConfig

PLACES = ["run.uri=run", "ground_truth.uri=val.json"]


def evaluate_config(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, None, [*PLACES, *words])


@pytest.mark.parametrize(
    "uri",
    ["http://tracking:5000", "https://tracking.lab/mlflow/", "HTTP://tracking", "mlruns", "/data/ml", "file:///a"],
)
def test_servers_and_folders_are_taken(uri: str) -> None:
    assert evaluate_config(f"tracking.uri={uri}").tracking.uri == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///mlflow.db", "it must be http:// or https:// of a tracking server, or a folder"),
        ("s3://bucket/ml", "it must be http:// or https://"),
        ("http://", "it must be http:// or https://"),
        ("http://host:port", "it must be http:// or https://"),
        ("tracking:5000", "the address of a server has a scheme: http://tracking:5000"),
        ("localhost:5000/mlflow", "has a scheme: http://localhost:5000/mlflow"),
        ("databricks", "the store of Databricks is not supported"),
        ("databricks://profile", "it must be http:// or https://"),
        ("", "tracking.uri"),
        ("file://elsewhere/ml", "tracking.uri: 'file://elsewhere/ml' names no path of this machine"),
    ],
)
def test_others_are_refused_by_name(uri: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_config(f"tracking.uri='{uri}'")
    assert message in str(caught.value) and "tracking.uri" in str(caught.value)


@pytest.mark.parametrize("uri", ["http://me:planted@host", "https://host/?token=planted", "http://planted@host"])
def test_credentials_in_the_address_are_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_TOKEN") as caught:
        evaluate_config(f"tracking.uri={uri}")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a`b", "a\nb", ""])
def test_a_name_that_the_file_store_would_not_find_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.experiment: "):
        evaluate_config(f"tracking.experiment={json.dumps(name)}")
    assert evaluate_config("tracking.experiment=a/b ü %1 (c)").tracking.experiment == "a/b ü %1 (c)"


def test_a_folder_is_a_place_and_a_server_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def submitted(uri: str) -> tuple[Any, list[str]]:
        submission = from_settings("evaluate", evaluate_config(f"tracking.uri={uri}"), {})
        assert submission.config is not None
        return submission.config["tracking"]["uri"], submission.local_paths()

    uri, paths = submitted("mlruns")
    assert uri == str(tmp_path / "mlruns") and f"tracking.uri={uri}" in paths
    uri, paths = submitted("http://tracking:5000")
    assert uri == "http://tracking:5000" and not any("tracking" in path for path in paths)


def test_saved_settings_are_as_before_without_tracking() -> None:
    assert "tracking" not in to_saved(evaluate_config()) and "storage" not in to_saved(evaluate_config())
    assert to_saved(evaluate_config("tracking.uri=ml"))["tracking"]["experiment"] == "maskfleet"
