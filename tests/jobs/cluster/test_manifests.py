"""Manifests: checked-in files equal the generated ones, Ray's schema accepts them, commands read their settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.manifests import MOUNT, make_manifests, source_name
from jobs.commands import read_settings
from jobs.config.load import ConfigError
from tests.paths import ROOT

SOURCE = ROOT / "configs/manifests/lab.yaml"
FILES = make_manifests(read_settings("manifests", SOURCE, []), SOURCE.parent, source_name(SOURCE))


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The documents of a manifest by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(FILES[name])}


def test_the_checked_in_files_are_the_generated_ones() -> None:
    folder = ROOT / "configs/cluster"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for name, text in FILES.items():
        assert (folder / name).read_text() == text, f"run: maskfleet manifests --config {source_name(SOURCE)}"


def test_the_launcher_file_passes_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(FILES["launcher.yaml"])
    prepared = prepare_config(config)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu"}
    with pytest.raises(Exception, match="available_node"):
        validate_config({**prepared, "available_node_typos": {}})
    assert all("RAY_AUTH_MODE=token" in config[f"{kind}_start_ray_commands"][1] for kind in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("command", ["train", "segment"])
def test_a_rayjob_runs_our_own_configuration(command: str, tmp_path: Path) -> None:
    job = documents(f"rayjob-{command}.yaml")
    entrypoint = job["RayJob"]["spec"]["entrypoint"]
    assert entrypoint == f"maskfleet {command} --config {MOUNT}/{command}.yaml"
    (name,) = job["ConfigMap"]["data"]
    assert entrypoint.endswith(f"{MOUNT}/{name}")
    (tmp_path / name).write_text(job["ConfigMap"]["data"][name])
    settings = read_settings(command, tmp_path / name, [])
    assert settings.cluster.address == "auto" and settings.output.uri.startswith("s3://lab/")
    pod = job["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} == {
        job["ConfigMap"]["metadata"]["name"]
    }


def test_both_cron_jobs_make_one_pass_of_the_same_schedule(tmp_path: Path) -> None:
    ray = documents("raycronjob-evaluate.yaml")
    assert "schedule --once" in ray["RayCronJob"]["spec"]["jobTemplate"]["entrypoint"]
    plain = documents("cronjob-evaluate.yaml")
    pod = plain["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][:3] == ["maskfleet", "schedule", "--once"]
    assert plain["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    schedules = []
    for document in (ray, plain):
        ((name, text),) = document["ConfigMap"]["data"].items()
        (tmp_path / name).write_text(text)
        schedules.append(read_settings("schedule", tmp_path / name, []))
    assert schedules[0].tasks == schedules[1].tasks
    assert schedules[1].schedule.submit_to == "http://maskfleet-head-svc.default.svc:8265"


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod specification in the manifests, with its file's name."""
    specs: list[tuple[str, dict[str, Any]]] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, dict):
            if "containers" in node:
                specs.append((name, node))
            for value in node.values():
                visit(name, value)
        elif isinstance(node, list):
            for value in node:
                visit(name, value)

    for name, text in FILES.items():
        for document in yaml.safe_load_all(text):
            visit(name, document)
    return specs


def test_every_pod_is_restricted_and_every_cluster_has_a_token() -> None:
    assert len(pods()) == 4 * 3 + 1
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        is_head = pod["containers"][0]["name"] == "ray-head"  # its autoscaler talks to Kubernetes
        assert pod["automountServiceAccountToken"] is is_head
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            assert container["envFrom"] == [{"secretRef": {"name": "maskfleet-storage"}}]
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted == {volume["name"] for volume in pod.get("volumes", ())}
    for text in FILES.values():
        assert text.count("rayVersion") == text.count("authOptions:\n")


def test_a_credential_in_a_configuration_is_refused(tmp_path: Path) -> None:
    words = ["segment.words=[model.checkpoint=m,input.uri=i,output.uri=o,storage.access_key=a,storage.secret_key=b]"]
    config = read_settings("manifests", SOURCE, words)
    with pytest.raises(ConfigError, match=r"storage\.access_key: is not allowed here"):
        make_manifests(config, SOURCE.parent, "x")


def test_the_image_has_the_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py311$", (ROOT / "Dockerfile").read_text(), re.M)
    assert pinned and base and pinned.group(1) == base.group(1)
    assert f"rayVersion: {pinned.group(1)}\n" in FILES["raycluster.yaml"]
