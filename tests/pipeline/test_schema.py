"""Table schemas: Parquet keeps the whole declaration, and the statuses include all that a decoder gives."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.images import decode_image
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, OK, RETRYABLE, STATUSES

SCHEMAS = {"images": IMAGES_SCHEMA, "instances": INSTANCES_SCHEMA}


@pytest.mark.parametrize("table", SCHEMAS)
def test_parquet_gives_the_declaration_back(table: str) -> None:
    schema = SCHEMAS[table]
    file = io.BytesIO()
    pq.write_table(schema.empty_table(), file)
    stored = pq.read_schema(file)
    assert stored.equals(schema)
    assert [field.metadata[b"about"] for field in stored] == [field.metadata[b"about"] for field in schema]


@pytest.mark.parametrize("table", SCHEMAS)
def test_no_column_is_dictionary_encoded_by_type(table: str) -> None:
    """pyarrow skips no row groups for a filter on a dictionary column."""
    assert not [field.name for field in SCHEMAS[table] if pa.types.is_dictionary(field.type)]


def test_both_tables_name_an_image_alike() -> None:
    assert IMAGES_SCHEMA.field("image_id").type == INSTANCES_SCHEMA.field("image_id").type
    for name in ("height", "width"):
        assert IMAGES_SCHEMA.field(name).type == INSTANCES_SCHEMA.field(f"image_{name}").type


def test_every_status_of_a_decoder_is_a_status_of_the_table() -> None:
    assert set(decode_image.STATUSES) <= set(STATUSES)


def test_only_failures_are_tried_again() -> None:
    assert set(RETRYABLE) < set(STATUSES) - {OK}
