"""What every configuration has in common: strict, frozen sections, and the two sections every command shares."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A group of settings. Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)


class OutputSection(Section):
    """Where a command writes."""

    uri: str = Field(min_length=1, description="Folder or s3:// prefix that receives the result; one URI is one run.")


class ClusterSection(Section):
    """The Ray cluster a command runs on."""

    address: str | None = Field(
        None, description="A running cluster ('auto', 'host:6379', 'ray://host:10001'); null starts a local one."
    )
    num_cpus: int | None = Field(None, ge=1, description="CPU cores of a local cluster; null is all of this machine's.")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a local cluster; null is all of this machine's.")
