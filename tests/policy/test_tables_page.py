"""What README and docs say of the tables is what the schema says."""

from __future__ import annotations

import pytest

from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, RETRYABLE, STATUSES
from tests.paths import ROOT


@pytest.mark.parametrize("page", ["README.md", "docs/schema.md"])
def test_every_column_is_documented_as_declared(page: str) -> None:
    text = (ROOT / page).read_text()
    for field in (*IMAGES_SCHEMA, *INSTANCES_SCHEMA):
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert row.split("|")[2].strip().endswith(", or null") == field.nullable
        assert field.metadata[b"about"].decode() in text


def test_every_status_is_documented() -> None:
    text = (ROOT / "docs/schema.md").read_text()
    for status, meaning in STATUSES.items():
        assert f"| `{status}` | {meaning} |" in text
    assert set(RETRYABLE) < set(STATUSES)
