"""Listings of a corpus: each kind of input as one sorted stream that names every image once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bulk import listing
from pipeline.bulk.corpus import plan_corpus
from pipeline.bulk.fetch import fetch_bytes, read_planned
from pipeline.bulk.listing import (
    CorpusError,
    PlannedImage,
    UnsortedListing,
    count_images,
    iter_corpus,
    new_or_changed,
    sort_images,
    tell_kind,
)
from pipeline.images.decode_pool import DecodeLimits
from pipeline.notes import NoteList
from pipeline.run_spec import InputSpec
from pipeline.storage.base import ObjectInfo
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
        ("s3://b/00001.tar.gz", "tars"),
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
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith("gz") else text.encode())
    images = list(iter_corpus(str(path), kind="list", uri_column="url"))
    assert [image.image_id for image in images] == sorted(set(photo_uris))
    assert [fetch_bytes(DecodeLimits(), image) for image in images] == [b"aaa", b"bbb", b"ccc"]
    with pytest.raises(CorpusError, match=r"has no column 'uri'.*url"):
        list(iter_corpus(str(path), kind="list"))


def test_relative_paths_of_a_list_are_relative_to_its_folder(photo_uris: list[str], tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("\ufeffuri\np/a.jpg\n")  # with a byte-order mark, as from a spreadsheet
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
        (tmp_path / "d").write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
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
        ("CSV", "Bucket, Key", gzip.compress(b'b,"a.jpg\n', mtime=0)),
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


def test_a_row_that_names_no_image_is_a_row_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "l.csv").write_text("n,uri\n1,a.jpg\n2\n3,\n")
    (tmp_path / "l.jsonl").write_text('{"uri": "a.jpg"}\n{"uri": nu\n{"other": 1}\n[]\n' + "[" * 100_000 + "\n")
    pq.write_table(pa.table({"uri": ["a.jpg", None, ""]}), tmp_path / "l.parquet")
    for name, rows in (("l.csv", (2, 3)), ("l.jsonl", (2, 3, 4, 5)), ("l.parquet", (2, 3))):
        images = list(iter_corpus(str(tmp_path / name), kind="list"))
        assert [image.image_id for image in images] == ["a.jpg", *(f"{name}/row {row}" for row in rows)]
        assert [status_of(image) for image in images] == ["ok", *["not_found"] * len(rows)]
    (tmp_path / "d").write_bytes(gzip.compress(b'"b","a.jpg","large"\n"b"\n"b","","3"\n', mtime=0))
    manifest = {"sourceBucket": "b", "fileFormat": "CSV", "fileSchema": "Bucket, Key, Size", "files": [{"key": "d"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    listed = list(iter_corpus(str(tmp_path / "manifest.json"), kind="inventory"))
    assert listed[0] == PlannedImage("a.jpg", "s3://b/a.jpg") and len(listed) == 3, "an odd size is no size"


ODD_NAMES = (
    *("a\x00b.jpg", "s3://[x/a.jpg", "s3://", "s3:///a.jpg", "C:\\photos\\a.jpg", "\\\\server\\a.jpg", "p\\a.jpg"),
    *(
        "\\x",
        "\\xzz.jpg",
        "\\xff.jpg",
        "file://host/a.jpg",
        "file://",
        "http://host/a.jpg",
        "~nobody/a.jpg",
        " ",
        "..",
        "/",
    ),
    *("\ud800.jpg", "\udce9.jpg", "x" * 5000, "/".join("x" * 3000), "a#b?c%d.jpg", "s3://b@c/a.jpg", "://", "ü\\xe9"),
)


def test_no_name_of_a_list_ends_a_run(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"uri": name}) + "\n" for name in ("good.jpg", *ODD_NAMES)))
    (tmp_path / "good.jpg").write_bytes(b"x")
    images = list(iter_corpus(str(tmp_path / "l.jsonl"), kind="list"))
    assert len(images) == 1 + len(ODD_NAMES)
    assert [image.image_id for image in images] == sorted(image.image_id for image in images)
    assert list(sort_images(images)) == images, "they go through Arrow and back"
    statuses = {image.image_id: status_of(image) for image in images}
    assert statuses.pop("good.jpg") == "ok" and set(statuses.values()) <= {"not_found", "unreadable"}


def test_two_spellings_of_one_file_are_one_image(tmp_path: Path) -> None:
    """The first spelling in order of id stays; the others are counted and named."""
    folder = tmp_path / "real"
    (folder / "p").mkdir(parents=True)
    for name in "ab":
        (folder / "p" / f"{name}.jpg").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(folder)
    (folder / "p" / "link.jpg").symlink_to("a.jpg")
    of_a = ["p/./a.jpg", "p/a.jpg", "p//a.jpg", f"{folder}/p/a.jpg", f"file://{folder}/p/%61.jpg", "p/../p/a.jpg"]
    of_a += [f"{tmp_path}/linked/p/a.jpg", "p/link.jpg", "./p/a.jpg"]
    (folder / "l.csv").write_text("uri\n" + "\n".join([*of_a, "p/b.jpg", "p/b.jpg", "p/./a.jpg"]) + "\n")
    notes = NoteList()
    images = list(iter_corpus(str(folder / "l.csv"), kind="list", notes=notes))
    assert [image.image_id for image in images] == ["./p/a.jpg", "p/b.jpg"]
    assert [status_of(image) for image in images] == ["ok", "ok"]
    ((note, count),) = notes.to_dict().items()
    assert count == len(of_a) - 1 and all(text in note for text in of_a[:-1])
    matching = iter_corpus(str(folder / "l.csv"), kind="list", pattern="*/linked/*")
    assert [image.image_id for image in matching] == [f"{tmp_path}/linked/p/a.jpg"], "of those that match"


def test_keys_of_a_bucket_are_one_object_only_where_the_store_says_so(tmp_path: Path) -> None:
    keys = ["a.jpg", "/a.jpg", "./a.jpg", "a.jpg/", "p/../a.jpg", "A.jpg", "a%2ejpg"]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"uri": f"s3://bucket/{key}"}) + "\n" for key in keys))
    notes = NoteList()
    assert len(list(iter_corpus(str(tmp_path / "l.jsonl"), kind="list", notes=notes))) == len(keys)
    assert notes.to_dict() == {}
    with (tmp_path / "l.jsonl").open("a") as file:
        file.write('{"uri": "S3://bucket/a.jpg"}\n')
    assert len(list(iter_corpus(str(tmp_path / "l.jsonl"), kind="list", notes=notes))) == len(keys)
    assert list(notes.to_dict().values()) == [1] and "s3://bucket/a.jpg" in str(notes.to_dict())


def test_names_that_are_not_utf8_lead_to_their_files(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"latin")
    (tmp_path / "caf\\xe9.jpg").write_bytes(b"backslash")
    (tmp_path / "l.csv").write_bytes(b"uri\ncaf\xe9.jpg\n")
    (image,) = iter_corpus(str(tmp_path / "l.csv"), kind="list")
    assert fetch_bytes(DecodeLimits(), image) == b"latin"
    files = [image for image in iter_corpus(str(tmp_path)) if image.image_id.endswith("jpg")]
    assert [image.image_id for image in files] == ["caf\\x5cxe9.jpg", "caf\\xe9.jpg"]
    assert [fetch_bytes(DecodeLimits(), image) for image in files] == [b"backslash", b"latin"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.csv", b'uri\na.jpg\n"b.jpg\nc.jpg\nd.jpg\n'),
        ("l.csv", b"uri\n" + b"x" * 200_000 + b"\n"),
        ("l.csv.gz", gzip.compress(b"uri\na.jpg\n", mtime=0)[:-4]),
        ("l.csv.gz", gzip.compress(b"uri\na.jpg\n", mtime=0)[:-8] + bytes(8)),
        ("l.csv.gz", gzip.compress(b"uri\na.jpg\n", mtime=0) + b"and something else"),
    ],
)
def test_a_list_is_read_to_its_proven_end_or_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=rf"{name}: after \d+ rows: not readable"):
        list(iter_corpus(str(tmp_path / name), kind="list"))


def test_a_column_without_names_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": [1, 2]}), tmp_path / "l.parquet")
    with pytest.raises(CorpusError, match="column 'uri' holds int64; allowed are URIs and paths"):
        list(iter_corpus(str(tmp_path / "l.parquet"), kind="list"))
    pq.write_table(pa.table({"uri": pa.array([b"a.jpg"])}), tmp_path / "l.parquet")
    assert [image.image_id for image in iter_corpus(str(tmp_path / "l.parquet"), kind="list")] == ["a.jpg"]


def status_of(image: PlannedImage) -> str:
    read = fetch_bytes(DecodeLimits(), image)
    return "ok" if isinstance(read, bytes) else read.status


def tar_of(members: dict[str, bytes | tuple[bytes, str]]) -> bytes:
    """A tar file of these members: bytes are a file's content, (type, name) is a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


TEN = tar_of({f"{number}.jpg": b"x" * 700 for number in range(10)})  # of 1536 bytes each
SECOND = tar_of({"later.jpg": b"y"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TEN[: 5 * 1536], "at byte 7,680: it ends there without an end mark"),
        (TEN[: 5 * 1536 + 100], "at byte 7,680: it ends there without an end mark"),
        (TEN[: 5 * 1536 + 600], "unexpected end of data"),
        (TEN[: 4 * 1536] + b"?" + TEN[4 * 1536 + 1 :], "at byte 6,144: the header is damaged"),
        (TEN[: 4 * 1536] + bytes(512) + TEN[4 * 1536 + 512 :], "at byte 6,656"),
        (TEN + b"something that is no tar" + bytes(1000), "at byte 20,480"),
        (gzip.compress(TEN, mtime=0), "not readable as an uncompressed tar"),
        (b"", "not readable as an uncompressed tar"),
    ],
    ids=["between", "in header", "in data", "damaged", "zeroed", "garbage behind", "gzip", "empty"],
)
def test_a_tar_that_is_not_whole_is_refused_with_the_place(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(CorpusError, match=rf"a\.tar: .*{words}"):
        list(iter_corpus(str(tmp_path / "a.tar"), kind="tars"))


def test_tars_behind_each_other_in_one_file_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(TEN + SECOND + tar_of({}) + SECOND)
    images = list(iter_corpus(str(tmp_path / "a.tar"), kind="tars"))
    assert len(images) == 12 and len({image.image_id for image in images}) == 12
    later = [image for image in images if "later" in image.image_id]
    assert [fetch_bytes(DecodeLimits(), image) for image in later] == [b"y", b"y"], "one name twice is two images"


def test_linked_members_are_what_they_lead_to(tmp_path: Path) -> None:
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    members: dict[str, bytes | tuple[bytes, str]] = {
        "d/early.jpg": (soft, "../real.jpg"),
        "real.jpg": b"the photo",
        "hard.jpg": (hard, "./real.jpg"),
        "d/twice.jpg": (soft, "early.jpg"),
        "circle.jpg": (soft, "circle2.jpg"),
        "circle2.jpg": (soft, "circle.jpg"),
        "outside.jpg": (soft, "/etc/passwd"),
    }
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    images = {image.image_id: image for image in iter_corpus(str(tmp_path / "a.tar"), kind="tars")}
    assert len(images) == 7
    for name in ("real.jpg", "hard.jpg", "d/early.jpg", "d/twice.jpg"):
        assert fetch_bytes(DecodeLimits(), images[f"a.tar/{name}"]) == b"the photo"
    for name in ("circle.jpg", "circle2.jpg", "outside.jpg"):
        assert status_of(images[f"a.tar/{name}"]) == "not_found"


def test_a_compressed_tar_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(TEN)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(TEN, mtime=0))
    for uri in (tmp_path, tmp_path / "b.tar.gz"):
        with pytest.raises(CorpusError, match=r"b\.tar\.gz: members of a compressed tar cannot be read"):
            list(iter_corpus(str(uri), kind="tars"))


class OddListing(LocalStorage):
    """A store that lists the keys it is given, in that order."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__("/odd")
        self.keys = keys

    def iter_objects(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        return (ObjectInfo(key, 1, "") for key in self.keys if key > after)


def test_ids_are_unique_and_sorted_whatever_the_store_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing, "open_storage", lambda uri, settings: OddListing(["a", "b", "b", "c"]))
    images = list(iter_corpus("/odd"))
    assert [image.image_id for image in images] == ["a", "b", "c"]
    assert images[0].etag is None, "a store without ETags"
    monkeypatch.setattr(listing, "open_storage", lambda uri, settings: OddListing(["b", "d", "a", "d", "c"]))
    with pytest.raises(UnsortedListing):
        list(iter_corpus("/odd"))
    plan = plan_corpus(LocalStorage(tmp_path), InputSpec(uri="/odd"), shard_size=2, num_workers=1)
    assert [image.image_id for image in plan.iter_images()] == ["a", "b", "c", "d"]
    assert len(list(LocalStorage(tmp_path).iter_objects("plan/"))) == 1


def test_images_are_counted_up_to_a_limit_and_no_further(tmp_path: Path) -> None:
    def count(name: str, kind: str, limit: int, pattern: str = "*") -> int:
        return count_images(str(tmp_path / name), kind=kind, pattern=pattern, uri_column="uri", limit=limit)

    (tmp_path / "a.tar").write_bytes(TEN[: 2 * 1536])
    assert count("a.tar", "tars", limit=1) == 1, "its end is not read"
    assert [count("", "folder", limit=9, pattern=pattern) for pattern in ("*.jpg", "*.tar")] == [0, 1]
    (tmp_path / "list.csv").write_text("uri\na.jpg\nb.jpg\nb.jpg\nc.jpg\n")
    assert [count("list.csv", "list", limit=limit) for limit in (2, 9)] == [2, 3], "each image once"


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
