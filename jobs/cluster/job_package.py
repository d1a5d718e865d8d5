"""What a job takes along: the code, the settings without secrets, and apart from them the environment it is handed."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from jobs.cluster.submission import SUBMISSION
from jobs.commands import COMMANDS
from jobs.config.base import type_of
from jobs.config.load import ConfigError, find_config, is_override, to_plain
from jobs.config.places import map_places
from jobs.config.segment import RetryConfig
from jobs.home import HOME
from pipeline.manifest import sha256_of, to_json
from pipeline.predictors.source import read_folder
from pipeline.storage.uri import absolute_uri, is_local, local_path

FOLDERS = ("maskfleet", "jobs", "pipeline", "model", "configs")  # the last lies in maskfleet/ where it is installed
SHIPPED = (".py", ".j2", ".yaml", ".typed")  # endings; what an editor or a user leaves beside them stays here
CONFIG, BASE = "config.yaml", "base.yaml"
PREDICTOR = "predictor_code"  # folder of the package for that of segment.predictor_path
# These are for the machine that they are typed on.
HERE = ("demo", "schedule", "manifests")
SUBMITTED = (*(name for name in COMMANDS if name not in HERE), "retry")
# A credential of the storage section, and the variable under which the AWS tools look for it.
CREDENTIALS = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
HANDED_OVER = (
    *(*CREDENTIALS.values(), "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)


@dataclass(frozen=True)
class Submission:
    """One command to be run as a job.

    Attributes:
        command: its name.
        args: its words, the command first, without secrets.
        config: its resolved settings without secrets; None for a command that only takes words.
        files: further files of the package by name.
        environment: what the job's processes find in their environment. Never printed, logged or part of the identity.
    """

    command: str
    args: tuple[str, ...]
    config: Mapping[str, Any] | None
    environment: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Submission({self.command!r}, args={self.args!r}, environment={sorted(self.environment)!r})"

    @property
    def output(self) -> str:
        """The URI that the command writes to or is about; '' where it names none."""
        config = self.config or {}
        for section in ("output", "run", "data", "history"):
            uri = (config.get(section) or {}).get("uri")
            if uri:
                return str(uri)
        return next((word for word in self.args[1:] if not is_override(word)), "")

    def hash(self) -> str:
        """The first 12 hex digits of the SHA-256 over code, settings and words."""
        files = {name: sha256_of(data) for name, data in self.files.items()}
        identity = {"code": code_hash(), "args": list(self.args), "config": self.config, "files": files}
        return sha256_of(to_json(identity))[:12]

    def local_paths(self) -> list[str]:
        """Settings that name paths, as 'key=path': every node of the cluster has to see them."""
        if self.config is None:
            return [word for word in self.args[1:] if word.startswith("/")]
        found: list[str] = []

        def note(key: str, value: str) -> str:
            found.extend([f"{key}={value}"] if is_local(value) else [])
            return value

        map_places(COMMANDS[self.command].config, self.config, note)
        return found


def from_settings(
    command: str, settings: BaseModel, environment: Mapping[str, str], switches: Sequence[str] = ()
) -> Submission:
    """The submission of validated settings: paths made absolute, credentials moved into the environment.

    Args:
        switches: options of the command that are no settings, such as --profile.

    Raises:
        ConfigError, PredictorError: a file or folder that the job takes along cannot be read.
    """
    values = to_plain(settings)
    storage = getattr(settings, "storage", None)
    handed = dict(environment)
    for name, variable in CREDENTIALS.items():
        secret = getattr(storage, name, None)
        if secret is not None:
            handed[variable] = secret.reveal()
        if "storage" in values:
            values["storage"][name] = None
    if getattr(storage, "anonymous", False):
        for variable in CREDENTIALS.values():
            handed.pop(variable, None)
    if "cluster" in values:
        values["cluster"] = {**values["cluster"], "address": "auto", "num_cpus": None, "num_gpus": None}
    files = dict[str, bytes]()
    if command == "sweep" and values["sweep"]["base"] is not None:
        files[BASE] = _read_config(values["sweep"]["base"])
        values["sweep"]["base"] = BASE
    values = map_places(type(settings), values, lambda _, uri: absolute_uri(uri))
    if command == "segment" and values["segment"]["predictor"] is not None:
        del values["model"]["checkpoint"]  # the predictor's name, which is no place
        if (folder := values["segment"]["predictor_path"]) is not None:
            files |= _predictor_files(folder)
            values["segment"]["predictor_path"] = PREDICTOR
    return Submission(command, (command, "--config", CONFIG, *switches), values, handed, files)


def from_words(command: str, words: Sequence[str], environment: Mapping[str, str]) -> Submission:
    """The submission of a command whose settings are only known where it runs (`retry`). Raises as `from_settings`."""
    handed, kept, files = dict(environment), [], dict[str, bytes]()
    for word in words:
        key, _, value = word.partition("=")
        name = key.removeprefix("storage.")
        if key.startswith("storage.") and name in CREDENTIALS:
            handed[CREDENTIALS[name]] = value
        elif key == "segment.predictor_path":
            files = _predictor_files(value)
            kept.append(f"{key}={PREDICTOR}")
        elif is_override(word):
            place = map_places(type_of(RetryConfig, key), value, lambda _, uri: absolute_uri(uri))
            kept.append(f"{key}={place}")
        else:
            kept.append(absolute_uri(word))
    return Submission(command, (command, *kept, "cluster.address=auto"), None, handed, files)


def handed_environment(names: Sequence[str], *, credentials: bool) -> dict[str, str]:
    """The variables of this process that a job gets: those named (`NAME` or `NAME=VALUE`), the AWS tools' and MLflow's.

    Raises:
        ConfigError: a name that is not set here.
    """
    environment = {name: os.environ[name] for name in HANDED_OVER if credentials and name in os.environ}
    for word in names:
        name, equals, value = word.partition("=")
        if not name.isidentifier() or (not equals and name not in os.environ):
            raise ConfigError(f"--env {name}: is not set here; allowed are names of variables, or NAME=VALUE")
        environment[name] = value if equals else os.environ[name]
    return environment


def code_files() -> dict[str, Path]:
    """The program's files by their name in the package, sorted: its packages, templates and configurations."""
    files = {
        path.relative_to(HOME).as_posix(): path
        for folder in FOLDERS
        for path in (HOME / folder).rglob("*")
        if path.suffix in SHIPPED and path.is_file()
    }
    return dict(sorted(files.items()))


def code_hash() -> str:
    """The SHA-256 of the code that is shipped, names and contents.

    Configurations are left out: a job has its settings resolved.
    """
    digest = hashlib.sha256()
    for name, path in code_files().items():
        if path.suffix == ".yaml":
            continue
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def write_package(folder: Path, submission: Submission) -> None:
    """Writes the package of a job into an empty folder. Only the owner may read the file with the environment."""
    for name, source in code_files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    if submission.config is not None:
        (folder / CONFIG).write_text(yaml.safe_dump(dict(submission.config), sort_keys=False, allow_unicode=True))
    for name, data in submission.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    descriptor = os.open(folder / SUBMISSION, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"args": list(submission.args), "environment": dict(submission.environment)}, file)


def pinned_dependencies(submission: Submission) -> list[str]:
    """What the program needs for a job beyond Ray itself, as `name==version` of this machine.

    Raises:
        ConfigError: the program is not installed here, so there is nothing to pin by.
    """
    try:
        project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
        required = project["dependencies"]
    except OSError:
        required = [line for line in metadata.requires("maskfleet") or () if "extra ==" not in line]
    config = submission.config or {}
    extra = {"mlflow-skinny"} if (config.get("tracking") or {}).get("uri") else set()
    extra |= {"nncf"} if submission.command == "quantize" else set()
    extra |= {"transformers"} if (config.get("segment") or {}).get("refine") else set()
    names = sorted({_name_of(line) for line in required} - {"ray"} | extra)
    of_some_machines = {_name_of(line) for line in required if ";" in line}
    pins = []
    for name in names:
        try:
            pins.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError as error:
            if name not in of_some_machines:
                raise ConfigError(f"--dependencies pinned: {error} is not installed here") from None
    return pins


def _name_of(requirement: str) -> str:
    end = next((index for index, letter in enumerate(requirement) if not (letter.isalnum() or letter in "-_.")), None)
    return requirement[:end].strip().lower()


def _predictor_files(folder: str) -> dict[str, bytes]:
    """The files of a predictor's code by their names in the package. Raises PredictorError as `read_folder`."""
    return {f"{PREDICTOR}/{name}": data for name, data in read_folder(local_path(folder)).items()}


def _read_config(file: str) -> bytes:
    try:
        return find_config(file, "train", "sweep.base").read_bytes()
    except OSError as error:
        raise ConfigError(f"sweep.base: {file!r} cannot be read: {error.strerror}") from None
