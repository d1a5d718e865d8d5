"""What all sections share: they are strict and frozen, and credentials stay out of what is shown."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from jobs.config.base import ClusterSection, OutputSection, Section, fields_of, flatten
from jobs.config.segment import DecodeSection
from pipeline.dataset.transforms.settings import Augmentation
from pipeline.images.decode_pool import DecodeLimits
from pipeline.run_spec import Slicing
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


class Reached(Section):
    """A configuration with a component's own settings as its section."""

    storage: StorageSettings = Field(default_factory=StorageSettings)


def test_a_components_settings_are_a_section_of_the_configuration() -> None:
    given = {"access_key": "key", "secret_key": "planted", "num_retries": 3}
    config = Reached.model_validate({"storage": given})
    assert config.storage == StorageSettings(access_key=Secret("key"), secret_key=Secret("planted"), num_retries=3)
    assert "planted" not in repr(config) + config.model_dump_json()
    assert config.model_dump(mode="json")["storage"]["secret_key"] == "**********"
    for wrong in ({"num_retrys": 3}, {"num_retries": -1}, {"num_retries": 101}, {"access_key": "alone"}):
        with pytest.raises(ValidationError, match="storage"):
            Reached.model_validate({"storage": wrong})
    with pytest.raises(ValidationError, match="give them as access_key and secret_key"):
        Reached.model_validate({"storage": {"endpoint_url": "https://user:word@store:9000/"}})


@pytest.mark.parametrize("settings", [StorageSettings, DecodeLimits, Augmentation, Slicing, DecodeSection])
def test_every_setting_of_a_component_has_a_description(settings: type) -> None:
    described = fields_of(settings)
    assert described and all(field.description.endswith(".") for field in described.values())


def test_flatten_keeps_empty_sections_and_leaves() -> None:
    nested = {"a": {"b": 1, "c": {"d": [2], "e": {}}}, "f": None, "g.h": {"i": 3}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "a.c.e": {}, "f": None, "g.h.i": 3}
