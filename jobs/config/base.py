"""Base of all settings: strict, frozen sections; the output, storage and cluster sections that commands share."""

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
    """Where a command writes its result."""

    uri: str = Field(min_length=1, description="Folder or s3:// prefix that receives the result; one URI is one run.")


_STORAGE = StorageSettings()


class StorageSection(Section):
    """How the command reaches buckets, for all its reads and writes. Credentials are never printed or written."""

    endpoint_url: str | None = Field(None, description="URL of an S3-compatible store; null is Amazon S3.")
    region: str | None = Field(None, description="Region of the bucket; null takes it from the environment.")
    access_key: SecretStr | None = Field(None, description="Access key id; null finds it as the AWS tools do.")
    secret_key: SecretStr | None = Field(None, description="Secret access key; null finds it as the AWS tools do.")
    session_token: SecretStr | None = Field(None, description="Session token; null finds it as the AWS tools do.")
    anonymous: bool = Field(False, description="Send no credentials, for a public bucket.")
    num_retries: int = Field(_STORAGE.num_retries, ge=0, le=100, description="Further tries of a request that failed.")
    connect_timeout_s: float = Field(
        _STORAGE.connect_timeout_s, gt=0, description="Longest wait for a connection, in seconds."
    )
    read_timeout_s: float = Field(
        _STORAGE.read_timeout_s, gt=0, description="Longest silence on a connection, in seconds."
    )
    request_timeout_s: float = Field(
        _STORAGE.request_timeout_s, gt=0, description="Longest time of one try of a request with its body, in seconds."
    )
    max_parallel: int = Field(
        _STORAGE.max_parallel, ge=1, le=1024, description="Requests that one process makes at a time, at most."
    )
    conditional_put: bool = Field(
        True,
        description="False accepts a store without conditional PUT; then never run two commands on one output at a "
        "time.",
    )

    @field_validator("endpoint_url")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url is not None and "@" in urlsplit(url).netloc:
            raise ValueError("a URL with credentials in it; give them as access_key and secret_key")
        return url

    def to_settings(self) -> StorageSettings:
        """The same values as `pipeline.storage` takes them, credentials in plain text."""
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
    """Nested mappings as one dict with dotted keys; an empty mapping stays as a value."""
    if isinstance(values, Mapping) and values:
        return {key: value for name, part in values.items() for key, value in flatten(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
