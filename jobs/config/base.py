"""Base of all settings: strict, frozen sections; the output and cluster sections that commands share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from pipeline.storage.uri import Uri

INCOMPLETE = "incomplete"  # pydantic's type of the error of a section that lacks one of several keys


class Section(BaseModel):
    """A group of settings. Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)


class OutputSection(Section):
    """Where a command writes its result."""

    uri: Uri = Field(min_length=1, description="Folder or s3:// prefix that receives the result; one URI is one run.")


class ClusterSection(Section):
    """The Ray cluster a command runs on."""

    address: str | None = Field(
        None, description="A running cluster ('auto', 'host:6379', 'ray://host:10001'); null starts a local one."
    )
    num_cpus: int | None = Field(None, ge=1, description="CPU cores of a local cluster; null is all of this machine's.")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a local cluster; null is all of this machine's.")


def field_of(settings: type, name: str) -> Any:
    """A field of a section with the default, range and description of a component's setting."""
    field = next(field for field in fields(settings) if field.name == name)
    return Field(field.default, **field.metadata)


@dataclass(frozen=True)
class FieldInfo:
    """A field of a section: its type, as annotated, and its description."""

    annotation: Any
    description: str


def fields_of(section: Any) -> dict[str, FieldInfo]:
    """The fields of a section by name: of a pydantic model, or a component's dataclass; none of anything else."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        descriptions = {name: field.description or "" for name, field in section.model_fields.items()}
    elif isinstance(section, type) and is_dataclass(section):
        descriptions = {field.name: field.metadata.get("description", "") for field in fields(section)}
    else:
        return {}
    types = get_type_hints(section, include_extras=True)
    return {name: FieldInfo(types[name], description) for name, description in descriptions.items()}


def section_of(kind: Any, path: Sequence[str]) -> Any:
    """The class (a pydantic model or a dataclass) of the section at `path`; a section that may be null counts."""
    for name in path:
        if name.isdigit():  # the number of an entry in a list of sections
            continue
        field = fields_of(kind).get(name)
        if field is None:
            return kind
        kind = next((arg for arg in get_args(field.annotation) if isinstance(arg, type)), field.annotation)
    return kind


def type_of(kind: Any, key: str) -> Any:
    """The type, as annotated, of the setting of a dotted key; None where there is none."""
    *path, name = key.split(".")
    field = fields_of(section_of(kind, path)).get(name)
    return None if field is None else field.annotation


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict with dotted keys; an empty mapping stays as a value."""
    if isinstance(values, Mapping) and values:
        return {key: value for name, part in values.items() for key, value in flatten(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): values}
