"""Tables of a run, on disk and in a bucket: exactly the rows that its commits name, and only the bytes needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.manifest import RunError, open_run
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.base import CredentialsError
from pipeline.storage.stores import open_storage
from pipeline.tables import (
    counts,
    decode_mask,
    decode_masks,
    iter_instances,
    iter_shards,
    load_images,
    load_instances,
)
from tests.chaos.fault_proxy import FaultProxy
from tests.paths import ROOT
from tests.pipeline.made_run import instance_row, parquet_bytes


def test_the_tables_come_back_whole_with_their_columns(drawn_run):
    instances, images = load_instances(drawn_run.uri), load_images(drawn_run.uri)
    assert list(instances.columns) == INSTANCES_SCHEMA.names
    assert list(images.columns) == IMAGES_SCHEMA.names
    assert len(images) == 8 and len(instances) == len(drawn_run.masks)
    assert images.set_index("image_id")["num_instances"].sum() == len(instances)
    assert instances["score"].dtype == np.float32


def test_pandas_alone_sees_the_same_rows(drawn_run):
    ours = load_instances(drawn_run.uri)
    plain = pd.read_parquet(f"{drawn_run.uri}/instances")
    key = ["image_id", "instance"]
    pd.testing.assert_frame_equal(
        ours.sort_values(key, ignore_index=True), plain.sort_values(key, ignore_index=True), check_dtype=False
    )


def missing(file: Path) -> None:
    file.unlink()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(("damage", "reason"), [(missing, "the file is missing"), (cut_off, "Parquet magic bytes")])
def test_a_table_file_that_is_missing_or_torn_is_named(damage, reason, drawn_run, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(drawn_run.uri, folder)
    file = next((folder / "instances").rglob("*.parquet"))
    damage(file)
    for read in (load_instances, lambda uri: list(iter_instances(uri)), lambda uri: list(iter_shards(uri))):
        with pytest.raises(RunError, match=rf"{file.name}.*{reason}.* \(maskfleet verify names every broken file"):
            read(str(folder))


def test_no_byte_of_a_table_changes_unseen(drawn_run, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(drawn_run.uri, folder)
    before = load_instances(str(folder))
    file = next((folder / "instances").rglob("*.parquet"))
    whole, refused = file.read_bytes(), 0
    for position in np.random.default_rng(0).integers(4, len(whole) // 2, 60).tolist():
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            pd.testing.assert_frame_equal(load_instances(str(folder)), before)  # what no reader looks at
        except RunError as error:
            assert file.name in str(error)
            refused += 1
    assert refused > 30


def test_a_file_that_no_commit_names_is_not_read(drawn_run, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(drawn_run.uri, folder)
    before = load_instances(str(folder))
    first = next((folder / "instances").rglob("*.parquet"))
    shutil.copy(first, first.with_name("000000000-loser.parquet"))
    pd.testing.assert_frame_equal(load_instances(str(folder)), before)
    assert len(pd.read_parquet(folder / "instances")) > len(before)


def test_filters_and_columns_agree_with_pandas(drawn_run):
    everything = load_instances(drawn_run.uri)
    filters = [("category", "==", "circle"), ("score", ">", 0.5)]
    loaded = load_instances(drawn_run.uri, ["score", "image_id"], filters)
    expected = everything[(everything["category"] == "circle") & (everything["score"] > 0.5)]
    assert 0 < len(expected) < len(everything)
    pd.testing.assert_frame_equal(loaded, expected[["score", "image_id"]].reset_index(drop=True))
    either = load_instances(drawn_run.uri, filters=[[("category", "==", "circle")], [("score", "<", 0.2)]])
    assert len(either) == ((everything["category"] == "circle") | (everything["score"] < 0.2)).sum()
    nothing = load_instances(drawn_run.uri, filters=[("score", ">", 2)])
    assert len(nothing) == 0 and list(nothing.columns) == INSTANCES_SCHEMA.names


def test_streaming_gives_the_same_rows(drawn_run):
    parts = list(iter_instances(drawn_run.uri, batch_rows=3))
    assert max(map(len, parts)) <= 3
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), load_instances(drawn_run.uri))
    assert list(iter_instances(drawn_run.uri, filters=[("score", ">", 2)])) == []


def test_masks_decode_from_any_kind_of_row(drawn_run):
    instances = load_instances(drawn_run.uri)
    masks = decode_masks(instances)
    for mask, row in zip(masks, instances.itertuples(), strict=True):
        expected = drawn_run.masks[row.image_id, row.instance]
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(decode_mask(row), expected)
    np.testing.assert_array_equal(decode_mask(instances.iloc[0]), masks[0])
    np.testing.assert_array_equal(decode_mask(instances.iloc[0].to_dict()), masks[0])
    assert masks[0].dtype == np.uint8
    assert decode_masks(instances.iloc[:0]) == []


def test_wrong_arguments_are_named(drawn_run, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no column 'sore'.*score"):
        load_instances(drawn_run.uri, ["sore"])
    with pytest.raises(ValueError, match="no column 'klass'"):
        load_instances(drawn_run.uri, filters=[("klass", "==", "a")])
    with pytest.raises(ValueError, match="a list of names"):
        load_instances(drawn_run.uri, "score")
    with pytest.raises(RunError, match="holds no run"):
        load_instances(str(tmp_path))
    with pytest.raises(ValueError, match="rle_counts"):
        decode_mask(load_instances(drawn_run.uri, ["score"]).iloc[0])


def test_an_open_run_and_a_folder_of_parquet_are_taken_too(drawn_run):
    expected = load_instances(drawn_run.uri)
    pd.testing.assert_frame_equal(load_instances(open_run(drawn_run.uri)), expected)
    assert len(load_instances(f"{drawn_run.uri}/instances")) == len(expected)


def test_a_file_is_taken_by_a_file_uri(drawn_run, tmp_path: Path):
    first = next(Path(drawn_run.uri, "instances").rglob("*.parquet"))
    shutil.copy(first, tmp_path / "two words.parquet")
    expected = pd.read_parquet(first)
    for uri in (f"{tmp_path}/two words.parquet", f"file://{tmp_path}/two%20words.parquet"):
        pd.testing.assert_frame_equal(load_instances(uri), expected, check_dtype=False)
    with pytest.raises(RunError, match="there is no file"):
        load_instances(f"{tmp_path}/none.parquet")


def test_counts_are_those_of_value_counts(drawn_run):
    instances = load_instances(drawn_run.uri)
    counted = counts(instances, min_score=0.3).set_index("category")["instances"]
    expected = instances[instances["score"] >= 0.3]["category"].value_counts()
    assert counted.to_dict() == expected.to_dict()
    assert list(counts(instances.iloc[:0]).columns) == [
        "category",
        "instances",
        "images",
        "mean_score",
        "median_area_px",
    ]


def copied(run: str, uri: str) -> str:
    """The URI of a bucket to which the files of a run were copied."""
    storage = open_storage(uri)
    for path in sorted(Path(run).rglob("*")):
        if path.is_file():
            storage.write_bytes(path.relative_to(run).as_posix(), path.read_bytes())
    return uri


@pytest.mark.parametrize("prefix", ["run", "a b/é #1?x=%20", "a//run"])
def test_a_run_in_a_bucket_answers_as_on_disk(bucket, drawn_run, prefix):
    run = copied(drawn_run.uri, f"{bucket}/{prefix}")
    pd.testing.assert_frame_equal(load_instances(run), load_instances(drawn_run.uri))
    pd.testing.assert_frame_equal(load_images(run), load_images(drawn_run.uri))
    filters = [("category", "==", "circle"), ("score", ">", 0.5)]
    filtered = load_instances(run, ["score", "rle_counts"], filters)
    pd.testing.assert_frame_equal(filtered, load_instances(drawn_run.uri, ["score", "rle_counts"], filters))
    assert len(filtered)


def test_a_fault_of_the_store_is_told_in_our_words(moto, bucket, drawn_run, monkeypatch):
    uri = copied(drawn_run.uri, f"{bucket}/run")
    with FaultProxy(moto, lambda method, path: "expired" if "/instances/" in path else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        for read in (load_instances, lambda uri: list(iter_instances(uri)), lambda uri: list(iter_shards(uri))):
            with pytest.raises(CredentialsError, match=r"ExpiredToken.*s3://.*/instances/"):
                read(uri)
        assert len(load_images(uri)) == 8


PROGRAMS = {
    "head": "print(instances_dataset(URI).head(1).num_rows)",
    "first rows": "print(len(next(iter_instances(URI, batch_rows=10))))",
    "duckdb": "import duckdb; d = instances_dataset(URI); print(duckdb.sql('select count(*) from d').fetchall())",
    "all": "print(len(load_instances(URI)), len(load_images(URI)))",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_queries_a_bucket_and_ends_at_once_ends_with_0(bucket, drawn_run, kind):
    """Eight times, four side by side. With files of Python's in Arrow's threads, every "head" aborted."""
    uri = copied(drawn_run.uri, f"{bucket}/run")
    program = f"from maskfleet import instances_dataset, iter_instances, load_images, load_instances\nURI = {uri!r}\n"

    def run(_: int) -> tuple[int, str]:
        command = [sys.executable, "-c", program + PROGRAMS[kind]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr[-300:]

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(run, range(8))) == {(0, "")}


def test_only_row_groups_that_can_match_are_fetched(moto, bucket, monkeypatch):
    rng = np.random.default_rng(0)
    mask = np.ones((4, 4), bool)
    kinds = [SimpleNamespace(id=n, name=f"class_{n}") for n in range(10)]
    row = instance_row("a.jpg", 0, kinds[0], 0.5, mask)
    rows = [
        {**row, "category_id": n % 10, "category": f"class_{n % 10}", "rle_counts": rng.bytes(150).hex()}
        for n in range(20_000)
    ]
    table = pa.Table.from_pylist(rows, schema=INSTANCES_SCHEMA).sort_by("category")
    data = parquet_bytes(table, 500)
    open_storage(f"{bucket}/rows").write_bytes("all.parquet", data)
    with FaultProxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        filtered = load_instances(f"{bucket}/rows", filters=[("category", "==", "class_7")])
        assert len(filtered) == 2_000 and set(filtered["category_id"]) == {7}
        assert 0.1 * len(data) < proxy.bytes_answered < 0.5 * len(data)
        proxy.bytes_answered = 0
        assert len(load_instances(f"{bucket}/rows")) == 20_000
        assert proxy.bytes_answered >= 0.9 * len(data)
