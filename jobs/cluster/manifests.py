"""`maskfleet manifests`: generates manifests for KubeRay and Ray's cluster launcher from the commands' configurations.

The checked settings of each command are in a ConfigMap. Credentials come from a Secret, which is not among these files.
Nothing is applied here: users call `kubectl apply -f` and `ray up` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from cronsim import CronSim, CronSimError
from pydantic import BaseModel, TypeAdapter

from jobs.cluster.job_package import CREDENTIALS
from jobs.commands import read_settings
from jobs.config.load import ConfigError
from jobs.config.manifests import GroupSection, HeadSection, ManifestsConfig
from model.spec import ModelSpec
from pipeline.storage.stores import open_storage

MOUNT = "/etc/maskfleet"
DASHBOARD_PORT = 8265
RAY_JOBS = ("train", "segment")
ANY_DAY = datetime(2026, 1, 1, tzinfo=UTC)  # to try a cron expression on
NodeSection = GroupSection | HeadSection
Manifest = dict[str, Any]  # YAML, in the form that Kubernetes and Ray's cluster launcher define
HEADER = "# Made by `maskfleet manifests --config {source}`; change that file and make this one again.\n# {about}\n"


class _Dumper(yaml.SafeDumper):
    """YAML dumper that writes strings of several lines as literal blocks."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def make_manifests(config: ManifestsConfig, folder: Path, source: str) -> dict[str, str]:
    """The text of each manifest by file name.

    Args:
        config: the cluster, and the configurations of its commands.
        folder: the folder that the configurations' paths are relative to.
        source: the name of `config`'s file in the first line of each manifest.

    Raises:
        ConfigError: a command's configuration is wrong or holds a credential, or the cron expression is wrong.
    """
    about = "A cluster that stays, with a token; `maskfleet submit` sends jobs to it."
    files: dict[str, tuple[str, list[Manifest]]] = {"raycluster.yaml": (about, [_cluster(config)])}
    for command in RAY_JOBS:
        section = getattr(config, command)
        settings = _settings(command, folder / section.config, section.words)
        about = f"One `maskfleet {command}` on a cluster of its own, which goes when it is done."
        files[f"rayjob-{command}.yaml"] = (about, [_settings_map(config, command, settings), _ray_job(config, command)])
    try:
        next(CronSim(config.evaluate.cron, ANY_DAY))
    except CronSimError as error:
        raise ConfigError(f"evaluate.cron: {config.evaluate.cron!r} is not allowed: {error}") from None
    schedule = _settings("schedule", folder / config.evaluate.config, config.evaluate.words)
    settings_map = _settings_map(config, "evaluate", schedule)
    about = "A pass of the schedule on a cluster that comes and goes (KubeRay 1.6 or later, feature gate RayCronJob)."
    files["raycronjob-evaluate.yaml"] = (about, [settings_map, _ray_cron_job(config)])
    schedule = {**schedule, "schedule": {**schedule["schedule"], "submit_to": _dashboard(config)}}
    settings_map = _settings_map(config, "schedule", schedule)
    about = "A pass of the schedule; its steps are jobs of the cluster of raycluster.yaml. Any Kubernetes has CronJob."
    files["cronjob-evaluate.yaml"] = (about, [settings_map, _cron_job(config)])
    files["launcher.yaml"] = ("A cluster on plain machines of a cloud: `ray up`; no Kubernetes.", [_launcher(config)])
    return {
        name: HEADER.format(source=source, about=about)
        + yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)
        for name, (about, documents) in files.items()
    }


def write_manifests(config: ManifestsConfig, file: Path) -> list[str]:
    """Writes the manifests to output.uri; returns their file names."""
    storage = open_storage(config.output.uri)
    files = make_manifests(config, file.parent, source_name(file))
    for name, text in files.items():
        storage.write_bytes(name, text.encode())
    return list(files)


def source_name(file: Path) -> str:
    """A configuration's name in the manifests: the last three parts of its path, the same in every checkout."""
    return "/".join(file.resolve().parts[-3:])


def _settings(command: str, file: Path, words: tuple[str, ...]) -> Manifest:
    """A command's checked settings for a process inside the cluster; settings that are not set are left out."""
    config: BaseModel = read_settings(command, file, words)
    values = config.model_dump(mode="json", exclude_unset=True)
    if spec := values.get("model", {}).get("spec"):
        defaults = TypeAdapter(ModelSpec).dump_python(ModelSpec(num_classes=spec["num_classes"]), mode="json")
        changed = {name: value for name, value in spec.items() if value != defaults[name]}
        values["model"]["spec"] = {"num_classes": spec["num_classes"], **changed}
    if credentials := [name for name in CREDENTIALS if name in values.get("storage", {})]:
        raise ConfigError(f"storage.{credentials[0]}: is not allowed here: it would stand in a ConfigMap; use a Secret")
    values["cluster"] = {**values.get("cluster", {}), "address": "auto"}
    return values


def _settings_map(config: ManifestsConfig, name: str, settings: Mapping[str, Any]) -> Manifest:
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config, f"{config.manifests.name}-{name}"),
        "data": {f"{name}.yaml": text},
    }


def _metadata(config: ManifestsConfig, name: str) -> Manifest:
    return {"name": name, "namespace": config.manifests.namespace, "labels": {"app.kubernetes.io/part-of": "maskfleet"}}


def _container(config: ManifestsConfig, name: str, group: NodeSection, settings: str | None) -> Manifest:
    """A container whose resource requests equal its limits, which is Kubernetes' Guaranteed quality of service."""
    amount = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if isinstance(group, GroupSection) and group.gpus:
        amount["nvidia.com/gpu"] = str(group.gpus)
    container: Manifest = {
        "name": name,
        "image": config.manifests.image,
        "resources": {"requests": amount, "limits": dict(amount)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if config.manifests.credentials is not None:
        container["envFrom"] = [{"secretRef": {"name": config.manifests.credentials}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}] if name.startswith("ray") else []
    if settings is not None:
        mounts.append({"name": "settings", "mountPath": MOUNT})
    if mounts:
        container["volumeMounts"] = mounts
    return container


def _pod(config: ManifestsConfig, name: str, group: NodeSection, settings: str | None) -> Manifest:
    volumes: list[Manifest] = []
    if name.startswith("ray"):
        # Shared memory for Ray's object store: 30 % of the memory, which is Ray's default.
        size = max(1, group.memory_gib * 3 // 10)
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size}Gi"}})
    if settings is not None:
        volumes.append({"name": "settings", "configMap": {"name": f"{config.manifests.name}-{settings}"}})
    pod: Manifest = {
        # Only the head's autoscaler talks to Kubernetes.
        "automountServiceAccountToken": name == "ray-head",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(config, name, group, settings)],
    }
    if volumes:
        pod["volumes"] = volumes
    return pod


def _cluster_spec(config: ManifestsConfig, settings: str | None = None) -> Manifest:
    section = config.manifests
    head = _pod(config, "ray-head", section.head, settings)
    head["containers"][0]["ports"] = [
        {"containerPort": 6379, "name": "gcs"},
        {"containerPort": DASHBOARD_PORT, "name": "dashboard"},
    ]
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": 300},
        "headGroupSpec": {
            # 0 CPUs: no task or actor runs on the head. The dashboard listens to other pods, which need the token.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": {"spec": head},
        },
        "workerGroupSpecs": [_workers(config, name, group) for name, group in _groups(config).items()],
    }


def _groups(config: ManifestsConfig) -> dict[str, GroupSection]:
    """The groups of workers whose max_count is not 0."""
    groups = {"cpu": config.manifests.cpu, "gpu": config.manifests.gpu}
    return {name: group for name, group in groups.items() if group.max_count}


def _workers(config: ManifestsConfig, name: str, group: GroupSection) -> Manifest:
    return {
        "groupName": name,
        "replicas": group.min_count,
        "minReplicas": group.min_count,
        "maxReplicas": group.max_count,
        "rayStartParams": {},
        "template": {"spec": _pod(config, "ray-worker", group, None)},
    }


def _cluster(config: ManifestsConfig) -> Manifest:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(config, config.manifests.name),
        "spec": _cluster_spec(config),
    }


def _job_spec(config: ManifestsConfig, entrypoint: str, settings: str) -> Manifest:
    return {
        "entrypoint": entrypoint,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 2,  # each further attempt resumes
        "rayClusterSpec": _cluster_spec(config, settings),
    }


def _ray_job(config: ManifestsConfig, command: str) -> Manifest:
    entrypoint = f"maskfleet {command} --config {MOUNT}/{command}.yaml"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(config, f"{config.manifests.name}-{command}"),
        "spec": _job_spec(config, entrypoint, command),
    }


def _ray_cron_job(config: ManifestsConfig) -> Manifest:
    entrypoint = f"maskfleet schedule --once --config {MOUNT}/evaluate.yaml"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(config, f"{config.manifests.name}-evaluate"),
        "spec": {
            "schedule": config.evaluate.cron,
            "jobTemplate": {**_job_spec(config, entrypoint, "evaluate"), "backoffLimit": 0},
        },
    }


def _cron_job(config: ManifestsConfig) -> Manifest:
    section = config.manifests
    pod = _pod(config, "schedule", section.head, "schedule")
    container = pod["containers"][0]
    container["command"] = ["maskfleet", "schedule", "--once", "--config", f"{MOUNT}/schedule.yaml"]
    container["resources"] = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
    # KubeRay writes a cluster's token to a Secret of the cluster's name.
    secret = {"secretKeyRef": {"name": section.name, "key": "auth_token"}}
    container["env"] = [{"name": "RAY_AUTH_TOKEN", "valueFrom": secret}]
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(config, f"{section.name}-schedule"),
        "spec": {
            "schedule": config.evaluate.cron,
            "concurrencyPolicy": "Forbid",
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            # No retries by Kubernetes: the schedule has its own, and the next pass repeats what failed.
            "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": {**pod, "restartPolicy": "Never"}}}},
        },
    }


def _dashboard(config: ManifestsConfig) -> str:
    section = config.manifests
    return f"http://{section.name}-head-svc.{section.namespace}.svc:{DASHBOARD_PORT}"


def _launcher(config: ManifestsConfig) -> Manifest:
    section = config.manifests
    groups = _groups(config)
    start = "ulimit -n 65536; RAY_AUTH_MODE=token ray start"
    types: Manifest = {
        "head": {
            "node_config": {"InstanceType": section.head.instance, **_disk()},
            "resources": {"CPU": 0},
            "max_workers": 0,
        }
    }
    for name, group in groups.items():
        market = {"InstanceMarketOptions": {"MarketType": "spot"}} if section.cloud.spot else {}
        types[name] = {
            "node_config": {"InstanceType": group.instance, **_disk(), **market},
            "resources": {"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {})},
            "min_workers": group.min_count,
            "max_workers": group.max_count,
        }
    return {
        "cluster_name": section.name,
        "max_workers": sum(group.max_count for group in groups.values()),
        "idle_timeout_minutes": 5,
        "provider": {"type": section.cloud.provider, "region": section.cloud.region},
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": types,
        "head_node_type": "head",
        # Copied to every node: the checkout that `ray up` is called in, and the token.
        "file_mounts": {"~/maskfleet": ".", "~/.ray/auth_token": "~/.ray/auth_token"},
        "rsync_exclude": [".venv", ".git", "demo", "out"],
        "setup_commands": ["python3 -m pip install --constraint ~/maskfleet/constraints.txt --editable ~/maskfleet"],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def _disk() -> Manifest:
    return {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 200, "Encrypted": True}}]}
