"""What every configuration has in common: strict, frozen sections, and the two sections every command shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from pipeline.storage.base import StorageSettings


class Section(BaseModel):
    """A group of settings. Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)


class OutputSection(Section):
    """Where a command writes."""

    uri: str = Field(min_length=1, description="Folder or s3:// prefix that receives the result; one URI is one run.")


_STORAGE = StorageSettings()


class StorageSection(Section):
    """How buckets are reached; every access of a command uses it. Credentials are never printed or written."""

    endpoint_url: str | None = Field(None, description="Address of an S3-compatible store; null is Amazon's.")
    region: str | None = Field(None, description="Name of the region; null takes it from the environment.")
    access_key: SecretStr | None = Field(None, description="Credential; null looks where the AWS tools look.")
    secret_key: SecretStr | None = Field(None, description="Credential; null looks where the AWS tools look.")
    session_token: SecretStr | None = Field(None, description="Credential; null looks where the AWS tools look.")
    anonymous: bool = Field(False, description="A public bucket: no credentials at all.")
    num_retries: int = Field(_STORAGE.num_retries, ge=0, le=100, description="Further tries of a failed request.")
    connect_timeout_s: float = Field(_STORAGE.connect_timeout_s, gt=0, description="Longest wait for a connection.")
    read_timeout_s: float = Field(_STORAGE.read_timeout_s, gt=0, description="Longest silence on a connection.")
    request_timeout_s: float = Field(_STORAGE.request_timeout_s, gt=0, description="Longest time of one try.")
    max_parallel: int = Field(_STORAGE.max_parallel, ge=1, le=1024, description="Requests of a process at a time.")
    conditional_put: bool = Field(
        True, description="False accepts a store without conditional PUT; never run two at once on one output then."
    )

    @field_validator("endpoint_url")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url is not None and "@" in urlsplit(url).netloc:
            raise ValueError("a URL with credentials in it; give them as access_key and secret_key")
        return url

    def to_settings(self) -> StorageSettings:
        """The same for `pipeline.storage`."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        secrets = {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}
        return StorageSettings(**{**values, **secrets})


class ClusterSection(Section):
    """The Ray cluster a command runs on."""

    address: str | None = Field(
        None, description="A running cluster ('auto', 'host:6379', 'ray://host:10001'); null starts a local one."
    )
    num_cpus: int | None = Field(None, ge=1, description="CPU cores of a local cluster; null is all of this machine's.")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a local cluster; null is all of this machine's.")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping of dotted keys; an empty section is a value."""
    if isinstance(values, Mapping) and values:
        return {key: value for name, part in values.items() for key, value in flatten(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
