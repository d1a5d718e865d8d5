"""The two tables of a shard: order, types, and rows of images that are not what they claim to be."""

from __future__ import annotations

import io
import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.bulk import encode
from pipeline.bulk.encode import ImageResult, to_parquet, to_tables
from pipeline.bulk.repair import merge_tables
from pipeline.plan import Plan, PlannedImage
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.local import LocalStorage
from pipeline.storage.parquet import read_parquet
from tests.pipeline.bulk.shards import image_result


def test_tables_are_sorted_and_typed(planned_run: tuple[LocalStorage, str, Plan]) -> None:
    _, run_id, plan = planned_run
    images, instances = to_tables([image_result(image) for image in plan.read_shard(0)], shard=0, run_id=run_id)
    assert images["image_id"].to_pylist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    scores = instances["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    empty_images, empty = to_tables([], shard=0, run_id=run_id)
    assert (empty.num_rows, empty.schema) == (0, instances.schema) == (0, INSTANCES_SCHEMA)
    assert (empty_images.num_rows, empty_images.schema) == (0, images.schema) == (0, IMAGES_SCHEMA)


def test_instances_are_sorted_by_category_then_by_score() -> None:
    results = [
        image_result(PlannedImage("a", "/a"), (0.9, 0.2), category="dog"),
        image_result(PlannedImage("b", "/b"), (0.7,), category="cat"),
        image_result(PlannedImage("c", "/c"), (0.9,), category="dog"),
    ]
    _, instances = to_tables(results, shard=3, run_id="run")
    names = ("category", "image_id", "instance")
    assert list(zip(*(instances[name].to_pylist() for name in names))) == [
        ("cat", "b", 0),
        ("dog", "a", 0),
        ("dog", "c", 0),
        ("dog", "a", 1),
    ]
    assert set(instances["run_id"].to_pylist()) == {"run"}


def test_a_table_comes_back_from_parquet_with_checksums_and_metadata() -> None:
    images, _ = to_tables([image_result(PlannedImage("a", "/a"))], shard=0, run_id="run")
    data = to_parquet(images, {"maskfleet.run_id": "run"})
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    assert file.read().equals(images) and file.schema_arrow.metadata[b"maskfleet.run_id"] == b"run"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.metadata.row_group(0).column(0).statistics.min == "a"
    assert data == to_parquet(images, {"maskfleet.run_id": "run"}), "equal tables give equal bytes"


def test_impossible_sizes_and_names_that_are_not_utf8_fit_into_rows() -> None:
    odd = os.fsdecode(b"caf\xe9")
    results = [
        ImageResult(PlannedImage("a", "/a"), "corrupt", "cut short", height=2_600_468_528, width=2**31 - 1),
        ImageResult(PlannedImage("b", "/b"), "unreadable", f"{odd} is not a regular file", height=-3, width=0),
        ImageResult(PlannedImage("c", "/c"), "not_found"),
    ]
    images, instances = to_tables(results, shard=0, run_id="run")
    assert images["height"].to_pylist() == [None, None, None]
    assert images["width"].to_pylist() == [2**31 - 1, 0, None]
    assert images["error"].to_pylist() == ["cut short", "caf\\udce9 is not a regular file", None]
    assert instances.num_rows == 0


def many_instances() -> tuple[pa.Table, pa.Table]:
    """Tables of 300 images with 9,000 instances."""
    scores = tuple(1 - rank / 100 for rank in range(30))
    results = [image_result(PlannedImage(f"{n}", f"/{n}"), scores, category=f"c{n % 7}") for n in range(300)]
    return to_tables(results, shard=0, run_id="run")


DICTIONARIES = ("category", "run_id", "image_id", "status")


def test_ordinary_tables_are_written_as_pyarrow_writes_them_whole() -> None:
    for table in (*many_instances(), *to_tables([], shard=0, run_id="run")):
        expected = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata({"a": "b"}),
            expected,
            compression="zstd",
            row_group_size=2048,
            write_page_checksum=True,
            write_page_index=True,
            use_dictionary=[
                name for name in ("category", "run_id", "image_id", "status") if name in table.column_names
            ],
        )
        assert to_parquet(table, {"a": "b"}) == expected.getvalue()


def test_a_table_that_is_too_large_for_strings_has_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    (images, expected), data = many_instances(), to_parquet(many_instances()[1], {})
    monkeypatch.setattr(encode, "MAX_STRING_BYTES", 100_000)
    _, large = many_instances()
    assert large.schema.field("rle_counts").type == pa.large_string()
    file = pq.ParquetFile(io.BytesIO(to_parquet(large, {})))
    assert file.read().equals(expected) and file.schema_arrow.equals(INSTANCES_SCHEMA)
    assert file.num_row_groups > 5 == pq.ParquetFile(io.BytesIO(data)).num_row_groups
    nothing = to_tables([], shard=0, run_id="run")
    merged = merge_tables((images, expected), nothing)[1]
    assert pq.read_table(io.BytesIO(to_parquet(merged, {}))).equals(expected)


@pytest.mark.slow
def test_masks_of_more_than_two_gibibytes_in_a_shard() -> None:
    count, rle = 2_100, "0" * (1 << 20)
    result = image_result(PlannedImage("a", "/a"), tuple(1 - rank / count for rank in range(count)))
    result.instances["rle_counts"] = [rle] * count
    images, instances = to_tables([result], shard=0, run_id="run")
    data = to_parquet(instances, {})
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.num_rows == count and file.num_row_groups > 2
    back = read_parquet(data)
    assert back.schema.equals(INSTANCES_SCHEMA)
    assert back["instance"].to_pylist() == list(range(count))
    assert all(
        pc.equal(pc.binary_length(chunk), len(rle)).true_count == len(chunk) for chunk in back["rle_counts"].chunks
    )
    merged = merge_tables((images, back), to_tables([], shard=0, run_id="run"))[1]
    assert read_parquet(to_parquet(merged, {})).equals(back)
