"""The settings of the manifests: names that Kubernetes takes, and the default folder of the files."""

from __future__ import annotations

import pytest
import yaml

from jobs.config.load import ConfigError, load_config
from jobs.config.manifests import ManifestsConfig
from jobs.home import shipped_configs

LAB = yaml.safe_load((shipped_configs() / "manifests/lab.yaml").read_text())


def test_files_go_beside_the_other_configurations_unless_told() -> None:
    assert load_config(ManifestsConfig, None, [], base=LAB).output.uri == "configs/cluster"
    assert load_config(ManifestsConfig, None, ["output.uri=x"], base=LAB).output.uri == "x"


@pytest.mark.parametrize("name", ["lab", "lab-2", "a"])
def test_dns_labels_are_names(name: str) -> None:
    assert load_config(ManifestsConfig, None, [f"manifests.name={name}"], base=LAB).manifests.name == name


@pytest.mark.parametrize("name", ["Lab", "2lab", "lab-", "a_b", "a.b", "x" * 41])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"manifests\.name"):
        load_config(ManifestsConfig, None, [f"manifests.name={name}"], base=LAB)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("manifests.cloud.provider=gcp", r"manifests\.cloud\.provider"),
        ("manifests.gpu.max_count=-1", r"manifests\.gpu\.max_count"),
        ("manifests.head=null", r"manifests\.head"),
        ("evaluate.cron=daily", r"evaluate\.cron"),
    ],
)
def test_values_that_no_cluster_can_have_are_refused(word: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(ManifestsConfig, None, [word], base=LAB)
