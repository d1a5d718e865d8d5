"""A run's layout: what its files are called, what a commit says, and what readers see.

    run.json                                     the specification; its hash is the run id
    plan/part-<n>-<attempt>.parquet, plan.json   the images, sealed
    attempts/<shard>/<attempt>.json              what was tried
    images/<block>/<shard>-<attempt>.parquet     one row an image
    instances/<block>/<shard>-<attempt>.parquet  one row an instance
    commits/<block>/<shard>.json                 THE commit of a shard
    manifest.parquet, final.json                 written when every shard is committed
    repairs/<n>/                                 the shards that `maskfleet retry` went over again, laid out likewise

A file counts only when a commit names it. Readers ask `open_run`, which knows the manifest of a sealed run with its
repairs, and the commits of one that is still going.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.base import Storage
from pipeline.storage.stores import open_storage

RUN_KEY = "run.json"
PLAN_KEY = "plan.json"
MANIFEST_KEY = "manifest.parquet"
FINAL_KEY = "final.json"
TABLES = ("images", "instances")
FILE_FIELDS = ("key", "rows", "bytes", "sha256")
SHARDS_PER_BLOCK = 1000  # a folder never holds more than this many shards' files

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("attempt", pa.string(), nullable=False),
        *(
            pa.field(f"{table}_{name}", kind, nullable=False)
            for table in TABLES
            for name, kind in zip(FILE_FIELDS, (pa.string(), pa.int64(), pa.int64(), pa.string()))
        ),
    ]
)


class RunError(ValueError):
    """A URI that holds no run, or a run whose own files contradict each other. The message is for the user."""


def block_of(shard: int) -> str:
    """The folder a shard's files lie in."""
    return f"{shard // SHARDS_PER_BLOCK:06d}"


def table_key(table: str, shard: int, attempt: str) -> str:
    """The key of a shard's table ('images' or 'instances') as one attempt writes it."""
    return f"{table}/{block_of(shard)}/{shard:09d}-{attempt}.parquet"


def commit_key(shard: int) -> str:
    """The key of a shard's commit: there is one, whoever writes it."""
    return f"commits/{block_of(shard)}/{shard:09d}.json"


def attempt_key(shard: int, attempt: str) -> str:
    """The key of the note that an attempt at a shard was begun."""
    return f"attempts/{shard:09d}/{attempt}.json"


def plan_part_key(part: int, attempt: str) -> str:
    """The key of one part of the plan as one planner writes it."""
    return f"plan/part-{part:06d}-{attempt}.parquet"


def repair_prefix(number: int) -> str:
    """The folder of a run's n-th repair, counted from 1."""
    return f"repairs/{number:04d}/"


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, so that equal values give equal bytes; readable, so that people can look."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def to_sealed_json(value: dict[str, Any]) -> bytes:
    """Canonical JSON that carries its own hash (under 'sha256'), so that one flipped bit shows."""
    return to_json({**value, "sha256": sha256_of(to_json(value))})


def from_sealed_json(data: bytes) -> dict[str, Any]:
    """What `to_sealed_json` wrote, without the hash.

    Raises:
        RunError: no JSON, or not what was written.
    """
    try:
        value = json.loads(data)
        sealed = value.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"no sealed JSON: {error}") from error
    if sha256_of(to_json(value)) != sealed:
        raise RunError("its content is not what was written (sha256)")
    return value


def sha256_of(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def run_id_of(spec: dict[str, Any]) -> str:
    """A run's name: the hash of its specification (16 hexadecimal digits)."""
    return sha256_of(to_json(spec))[:16]


@dataclass(frozen=True)
class DataFile:
    """A file that a commit vouches for: key, number of rows, size in bytes, SHA-256."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """What was decided about a shard: which attempt's files count, what is in them, seconds each stage took."""

    run_id: str
    shard: int
    attempt: str
    images: DataFile
    instances: DataFile
    statuses: dict[str, int]
    timings_s: dict[str, float]

    def to_json(self) -> bytes:
        """The commit as bytes that carry their own hash."""
        return to_sealed_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Commit:
        """Raises RunError when the bytes are no commit."""
        fields: dict[str, Any] = from_sealed_json(data)
        try:
            files: dict[str, Any] = {table: DataFile(**fields.pop(table)) for table in TABLES}
            return cls(**fields, **files)
        except (TypeError, KeyError) as error:
            raise RunError(f"no commit: {error}") from error


class Run:
    """A run as readers see it: its specification and the files its commits name."""

    def __init__(self, storage: Storage, spec: dict[str, Any]) -> None:
        self.storage = storage
        self.spec = spec
        self.run_id = run_id_of(spec)

    @cached_property
    def sealed(self) -> bool:
        """Whether every shard is committed and the manifest is written."""
        return self.storage.exists(MANIFEST_KEY)

    @cached_property
    def final(self) -> dict[str, Any] | None:
        """The run's totals (final.json), or None while it is not finished."""
        try:
            return from_sealed_json(self.storage.read_bytes(FINAL_KEY))
        except FileNotFoundError:
            return None

    def iter_commits(self) -> Iterator[Commit]:
        """Every commit there is, in order of shard."""
        keys = [info.key for info in self.storage.iter_objects("commits/")]
        for key, data in zip(keys, self.storage.read_many(keys)):
            try:
                yield Commit.from_json(data)
            except RunError as error:
                raise RunError(f"{self.storage.uri_of(key)}: {error}") from error

    @cached_property
    def files(self) -> list[dict[str, Any]]:
        """The manifest's rows (MANIFEST_SCHEMA), from the commits themselves while the run is not sealed."""
        if not self.sealed:
            return [manifest_row(commit) for commit in self.iter_commits()]
        rows = {row["shard"]: row for row in self.read_manifest(MANIFEST_KEY)}
        for number in range(1, self.num_repairs + 1):
            prefix = repair_prefix(number)
            for row in self.read_manifest(prefix + MANIFEST_KEY):
                rows[row["shard"]] = row | {f"{table}_key": prefix + row[f"{table}_key"] for table in TABLES}
        return list(rows.values())

    def only(self, files: Sequence[dict[str, Any]]) -> Run:
        """The same run as if it had these files (rows of `files`) alone; nothing is read for it."""
        part = Run(self.storage, self.spec)
        part.files = list(files)  # in the place of what would be read
        return part

    @cached_property
    def num_repairs(self) -> int:
        """How many repairs are finished; each one's files take the place of the earlier ones' of the same shards."""
        number = 0
        while self.storage.exists(repair_prefix(number + 1) + MANIFEST_KEY):
            number += 1
        return number

    def read_manifest(self, key: str) -> list[dict[str, Any]]:
        """The rows of one manifest as it stands in the store (MANIFEST_SCHEMA)."""
        return pq.read_table(io.BytesIO(self.storage.read_bytes(key))).to_pylist()

    def images_files(self) -> list[DataFile]:
        """The files of the images table, in order of shard."""
        return self._table_files("images")

    def instances_files(self) -> list[DataFile]:
        """The files of the instances table, in order of shard."""
        return self._table_files("instances")

    def _table_files(self, table: str) -> list[DataFile]:
        return [DataFile(*(row[f"{table}_{name}"] for name in FILE_FIELDS)) for row in self.files]


def manifest_row(commit: Commit) -> dict[str, Any]:
    """One row of manifest.parquet."""
    row: dict[str, Any] = {"shard": commit.shard, "attempt": commit.attempt}
    for table in TABLES:
        row.update({f"{table}_{name}": value for name, value in asdict(getattr(commit, table)).items()})
    return row


def open_run(uri: str | Storage) -> Run:
    """The run at a URI.

    Raises:
        RunError: there is no run there.
        StorageError: the URI itself cannot be used.
    """
    storage = open_storage(uri) if isinstance(uri, str) else uri
    try:
        spec = json.loads(storage.read_bytes(RUN_KEY))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{storage.uri} holds no run: it has no {RUN_KEY}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{storage.uri}: {RUN_KEY} is unreadable: {error}") from error
    return Run(storage, spec)
