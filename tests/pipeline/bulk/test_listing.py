"""Listings of a corpus: each kind of input as one sorted stream that names every image once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bulk.fetch import fetch_bytes, read_planned
from pipeline.bulk.listing import (
    CorpusError,
    PlannedImage,
    iter_corpus,
    new_or_changed,
    sort_images,
    tell_kind,
)
from pipeline.images.decode_pool import DecodeLimits
from pipeline.storage.local import LocalStorage


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("photos", "folder"),
        ("s3://b/photos/", "folder"),
        ("l/urls.parquet", "list"),
        ("urls.CSV", "list"),
        ("urls.jsonl.gz", "list"),
        ("inv/2026/manifest.json", "inventory"),
        ("s3://b/00001.tar", "tars"),
    ],
)
def test_the_ending_of_a_uri_tells_its_kind(uri: str, kind: str) -> None:
    assert tell_kind(uri) == kind


@pytest.fixture
def photo_uris(tmp_path: Path) -> list[str]:
    """Three photos' URIs, not in order, the first one twice."""
    (tmp_path / "p").mkdir()
    for name in "cab":
        (tmp_path / "p" / f"{name}.jpg").write_bytes(name.encode() * 3)
    return [str(tmp_path / "p" / f"{name}.jpg") for name in "cabc"]


@pytest.mark.parametrize("name", ["l.parquet", "l.csv", "l.csv.gz", "l.jsonl"])
def test_lists_are_sorted_and_name_each_image_once(photo_uris: list[str], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"url": photo_uris, "n": range(4)}), path)
    elif name.endswith("jsonl"):
        path.write_text("\n".join(json.dumps({"url": uri}) for uri in photo_uris) + "\n\n")
    else:
        text = "n,url\n" + "".join(f'{i},"{uri}"\n' for i, uri in enumerate(photo_uris))
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    images = list(iter_corpus(str(path), kind="list", uri_column="url"))
    assert [image.image_id for image in images] == sorted(set(photo_uris))
    assert [fetch_bytes(DecodeLimits(), image) for image in images] == [b"aaa", b"bbb", b"ccc"]
    with pytest.raises(CorpusError, match=r"has no column 'uri'.*url"):
        list(iter_corpus(str(path), kind="list"))


def test_relative_paths_of_a_list_are_relative_to_its_folder(photo_uris: list[str], tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("uri\np/a.jpg\n")
    (image,) = iter_corpus(str(tmp_path / "l.csv"), kind="list")
    assert image.image_id == "p/a.jpg" and read_planned(image)[0] == b"aaa"


CUT_SHORT = gzip.compress(b"uri\n" + b"".join(b"photos/%d.jpg\n" % number for number in range(2000)))[:-3000]


@pytest.mark.parametrize(
    ("name", "data"),
    [("l.parquet", b"PAR0"), ("l.csv.gz", b"plain"), ("l.csv.gz", CUT_SHORT), ("l.jsonl", b"{")],
)
def test_a_file_that_is_no_list_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=name):
        list(iter_corpus(str(tmp_path / name), kind="list"))


@pytest.mark.parametrize("file_format", ["CSV", "Parquet"])
def test_inventories_give_keys_sizes_and_etags(tmp_path: Path, file_format: str) -> None:
    rows = [("b", "z z/ü.jpg", 5, "e1"), ("b", "a.jpg", 7, "e2")]
    names = ["Bucket", "Key", "Size", "ETag"]
    if file_format == "CSV":
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("b", "z+z/%C3%BC.jpg", 5, "e1"), rows[1]])
        (tmp_path / "d").write_bytes(gzip.compress(text.getvalue().encode()))
    else:
        columns = dict(zip(("bucket", "key", "size", "e_tag"), zip(*rows)))
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "d")
    manifest = {"sourceBucket": "b", "fileFormat": file_format, "fileSchema": ", ".join(names), "files": [{"key": "d"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert list(iter_corpus(str(tmp_path / "manifest.json"), kind="inventory")) == [
        PlannedImage("a.jpg", "s3://b/a.jpg", "e2", 7),
        PlannedImage("z z/ü.jpg", "s3://b/z z/ü.jpg", "e1", 5),
    ]


@pytest.mark.parametrize(
    ("file_format", "schema", "data"),
    [
        ("CSV", "Bucket, Key", b"not gzip"),
        ("CSV", "Bucket, Key", CUT_SHORT),
        ("CSV", "Bucket, Name", gzip.compress(b"b,a.jpg\n", mtime=0)),
        ("CSV", "Bucket, Key", gzip.compress(b"b\n", mtime=0)),
        ("CSV", "Bucket, Key, Size", gzip.compress(b"b,a.jpg,large\n", mtime=0)),
        ("Parquet", "", b"PAR0"),
        ("ORC", "", b"ORC"),
        ("CSV", "Bucket, Key", None),
    ],
)
def test_an_unreadable_inventory_file_is_named(
    tmp_path: Path, file_format: str, schema: str, data: bytes | None
) -> None:
    manifest = {"sourceBucket": "b", "fileFormat": file_format, "fileSchema": schema, "files": [{"key": "data-1"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    if data is not None:
        (tmp_path / "data-1").write_bytes(data)
    with pytest.raises(CorpusError, match="data-1"):
        list(iter_corpus(str(tmp_path / "manifest.json"), kind="inventory"))


def test_a_tar_member_whose_name_is_not_utf8_is_listed_as_a_file_of_that_name_is(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "folder" / name, name)
    (file,) = iter_corpus(str(tmp_path / "folder"))
    (member,) = iter_corpus(str(tmp_path / "a.tar"), kind="tars")
    assert member.image_id == f"a.tar/{file.image_id}" and fetch_bytes(DecodeLimits(), member) == b"x"


def test_tar_members_are_read_in_place(tmp_path: Path) -> None:
    for shard in ("00001.tar", "00000.tar"):
        with tarfile.open(tmp_path / shard, "w") as archive:
            for name in ("b.jpg", "a.jpg", "a.json"):
                data = f"{shard}/{name}".encode()
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    images = list(iter_corpus(str(tmp_path), kind="tars", pattern="*.jpg"))
    assert [image.image_id for image in images] == [f"0000{i}.tar/{name}.jpg" for i in (0, 1) for name in "ab"]
    for image in images:
        assert fetch_bytes(DecodeLimits(), image) == image.image_id.encode()
    (tmp_path / "broken.tar").write_bytes(b"x" * 2000)
    with pytest.raises(CorpusError, match=r"broken\.tar"):
        list(iter_corpus(str(tmp_path / "broken.tar"), kind="tars"))


def test_sorting_spills_and_merges() -> None:
    names = [f"{(i * 7919) % 1000:04d}" for i in range(1000)] + ["0003", "0500"]
    images = [PlannedImage(name, name, offset=i) for i, name in enumerate(names)]
    merged = list(sort_images(images, chunk=64))
    assert [image.image_id for image in merged] == sorted(set(names))
    assert merged == list(sort_images(images))


def test_new_and_changed_images_are_those_that_differ_from_the_earlier_listing() -> None:
    old = [PlannedImage(name, name, "e", 1) for name in ("a", "b", "c", "e")]
    new = [PlannedImage("a", "a", "e", 1), PlannedImage("b", "b", "E", 1), PlannedImage("c", "c", "e", 2)]
    new += [PlannedImage("d", "d", "e", 1), PlannedImage("f", "f", "e", 1)]
    assert [image.image_id for image in new_or_changed(new, old)] == ["b", "c", "d", "f"]
    assert list(new_or_changed(new, [])) == new


def test_every_file_is_listed_whatever_it_is(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for key in ("b/z.txt", "a.jpg", "b/a.png", ".hidden"):
        storage.write_bytes(key, b"x")
    assert [image.image_id for image in iter_corpus(storage.uri)] == [".hidden", "a.jpg", "b/a.png", "b/z.txt"]
    assert [image.image_id for image in iter_corpus(storage.uri, pattern="b/*.png")] == ["b/a.png"]
    assert next(iter_corpus(storage.uri, pattern="a.jpg")).uri == str(tmp_path / "a.jpg")
