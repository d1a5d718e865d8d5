"""What all sections share: they are strict and frozen, and credentials stay out of what is shown."""

from __future__ import annotations

from dataclasses import fields

import pytest
from pydantic import SecretStr, ValidationError

from jobs.config.base import ClusterSection, OutputSection, StorageSection, flatten
from pipeline.storage.base import Secret, StorageSettings


def test_sections_refuse_unknown_keys_and_later_changes() -> None:
    with pytest.raises(ValidationError, match="num_cpu"):
        ClusterSection.model_validate({"num_cpu": 3})
    with pytest.raises(ValidationError, match="frozen"):
        ClusterSection().num_cpus = 3  # type: ignore[misc]  # what the type forbids is refused at run time too


def test_a_number_may_stand_where_text_is_wanted() -> None:
    assert OutputSection.model_validate({"uri": 2026}).uri == "2026"
    with pytest.raises(ValidationError, match="at least 1 character"):
        OutputSection(uri="")


def test_storage_settings_are_the_sections_values_with_credentials_in_plain_text() -> None:
    section = StorageSection(
        endpoint_url="http://store:9000", access_key=SecretStr("key"), secret_key=SecretStr("planted"), num_retries=3
    )
    settings = section.to_settings()
    assert settings == StorageSettings(
        endpoint_url="http://store:9000", access_key=Secret("key"), secret_key=Secret("planted"), num_retries=3
    )
    assert "planted" not in repr(section) + section.model_dump_json()


def test_every_storage_setting_has_a_key_with_the_same_default() -> None:
    assert set(StorageSection.model_fields) == {field.name for field in fields(StorageSettings)}
    assert StorageSection().to_settings() == StorageSettings()


def test_an_endpoint_with_credentials_in_it_is_refused() -> None:
    with pytest.raises(ValidationError, match="give them as access_key and secret_key"):
        StorageSection(endpoint_url="https://user:word@store:9000/")
    assert StorageSection(endpoint_url="https://store/a@b").endpoint_url == "https://store/a@b"


def test_flatten_keeps_empty_sections_and_leaves() -> None:
    nested = {"a": {"b": 1, "c": {"d": [2], "e": {}}}, "f": None, "g.h": {"i": 3}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "a.c.e": {}, "f": None, "g.h.i": 3}
