"""Layout of a run: the keys of its files, commits, the manifest, and `open_run`, through which readers find its files.

    run.json                                     the specification; its hash is the run id
    plan/part-<n>-<attempt>.parquet, plan.json   the images, sealed
    attempts/<shard>/<attempt>.json              a note that this attempt was begun
    images/<block>/<shard>-<attempt>.parquet     one row for each image
    instances/<block>/<shard>-<attempt>.parquet  one row for each instance
    commits/<block>/<shard>.json                 the one commit of a shard: which attempt's files count
    manifest.parquet, final.json                 written when every shard is committed: the run is sealed
    repairs/<n>/                                 the shards that `maskfleet retry` processed again, in the same layout

A file counts only when a commit names it. `open_run` reads the manifests of a sealed run and of its repairs, and the
commits of a run that is still going.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.run_spec import RunSpec
from pipeline.schema import OK
from pipeline.storage.base import Storage, StorageSettings
from pipeline.storage.parquet import read_parquet
from pipeline.storage.stores import open_storage

RUN_KEY = "run.json"
MODEL_FOLDER = "model"  # holds the checkpoint where the run was begun with published weights
PLAN_KEY = "plan.json"
MANIFEST_KEY = "manifest.parquet"
FINAL_KEY = "final.json"
TABLES = ("images", "instances")
FILE_FIELDS = ("key", "rows", "bytes", "sha256")
SHARDS_PER_BLOCK = 1000  # so no folder has the files of more shards than this

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
    """There is no run at a URI, or a run's files are broken or contradict each other. The message is for the user."""


def block_of(shard: int) -> str:
    """The name of the folder that holds a shard's files."""
    return f"{shard // SHARDS_PER_BLOCK:06d}"


def table_key(table: str, shard: int, attempt: str) -> str:
    """The key of a shard's table ('images' or 'instances') as one attempt writes it."""
    return f"{table}/{block_of(shard)}/{shard:09d}-{attempt}.parquet"


def commit_key(shard: int) -> str:
    """The key of a shard's commit, the same for all attempts: only one of them can write it."""
    return f"commits/{block_of(shard)}/{shard:09d}.json"


def attempt_key(shard: int, attempt: str) -> str:
    """The key of the note that an attempt at a shard writes before it begins."""
    return f"attempts/{shard:09d}/{attempt}.json"


def plan_part_key(part: int, attempt: str) -> str:
    """The key of one part of the plan as one planner writes it."""
    return f"plan/part-{part:06d}-{attempt}.parquet"


def repair_prefix(number: int) -> str:
    """The folder of a run's n-th repair, counted from 1."""
    return f"repairs/{number:04d}/"


def to_json(value: Any) -> bytes:
    """Canonical JSON, indented for people. Keys are sorted, so equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def to_sealed_json(value: Mapping[str, object]) -> bytes:
    """Canonical JSON with its own hash under 'sha256', so that a changed bit is detected."""
    return to_json({**value, "sha256": sha256_of(to_json(value))})


def from_sealed_json(data: bytes) -> dict[str, Any]:
    """The value that `to_sealed_json` wrote, without its hash.

    Raises:
        RunError: the data is no sealed JSON, or its hash does not match.
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
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def run_id_of(document: Mapping[str, object]) -> str:
    """The id of a run: the first 16 hexadecimal digits of the SHA-256 of run.json."""
    return sha256_of(to_json(document))[:16]


@dataclass(frozen=True)
class DataFile:
    """A file that a commit names: key, number of rows, size in bytes, SHA-256."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardFiles:
    """The two files of a committed shard and the attempt that wrote them: a row of manifest.parquet."""

    shard: int
    attempt: str
    images: DataFile
    instances: DataFile

    def to_row(self) -> dict[str, object]:
        """The row, as MANIFEST_SCHEMA has it."""
        files = {f"{table}_{name}": getattr(getattr(self, table), name) for table in TABLES for name in FILE_FIELDS}
        return {"shard": self.shard, "attempt": self.attempt, **files}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], prefix: str = "") -> ShardFiles:
        """The files of a row of MANIFEST_SCHEMA; `prefix` is put before their keys."""
        images, instances = (DataFile(*(row[f"{table}_{name}"] for name in FILE_FIELDS)) for table in TABLES)
        images, instances = (replace(file, key=prefix + file.key) for file in (images, instances))
        return cls(row["shard"], row["attempt"], images, instances)


@dataclass(frozen=True)
class Commit:
    """The commit of a shard: the attempt whose files count, those files, images by status, seconds of each stage."""

    run_id: str
    shard: int
    attempt: str
    images: DataFile
    instances: DataFile
    statuses: dict[str, int]
    timings_s: dict[str, float]

    @property
    def files(self) -> ShardFiles:
        """Its row of the manifest."""
        return ShardFiles(self.shard, self.attempt, self.images, self.instances)

    def to_json(self) -> bytes:
        """The commit as sealed JSON."""
        return to_sealed_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Commit:
        """The commit that `to_json` wrote. Raises RunError when the bytes are no commit."""
        fields = from_sealed_json(data)
        try:
            images, instances = (DataFile(**fields.pop(table)) for table in TABLES)
            return cls(images=images, instances=instances, **fields)
        except (TypeError, KeyError) as error:
            raise RunError(f"no commit: {error}") from error


@dataclass(frozen=True, kw_only=True)
class RunTotals:
    """The totals of a finished run, final.json.

    Attributes:
        run_id: the run.
        num_images, num_shards: size of its plan.
        num_instances: instances of all images.
        statuses: images by status.
        worker_seconds: the workers' seconds by stage.
        manifest_sha256: hash of manifest.parquet.
        plan: the parts of the plan.
        elapsed_s: wall time of the call that finished the run.
    """

    run_id: str
    num_images: int
    num_shards: int
    num_instances: int
    statuses: dict[str, int]
    worker_seconds: dict[str, float]
    manifest_sha256: str
    plan: tuple[DataFile, ...]
    elapsed_s: float = 0.0

    @property
    def failed_fraction(self) -> float:
        """The fraction (0..1) of images whose status is not ok; 0 for a run without images."""
        failed = sum(count for status, count in self.statuses.items() if status != OK)
        return failed / self.num_images if self.num_images else 0.0

    def to_json(self) -> bytes:
        """The totals as sealed JSON."""
        return to_sealed_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> RunTotals:
        """The totals that `to_json` wrote. Raises RunError when the bytes are none."""
        document = from_sealed_json(data)
        try:
            parts = tuple(DataFile(**part) for part in document.pop("plan"))
            return cls(plan=parts, **document)
        except (TypeError, KeyError) as error:
            raise RunError(f"no totals of a run: {error}") from error


class Run:
    """A run for readers: its specification and the files that its commits name.

    Args:
        storage: the run's root.
        document: run.json as it stands there; the run id is the hash of these very values.
    """

    def __init__(self, storage: Storage, document: dict[str, Any]) -> None:
        self.storage = storage
        self.document = document
        self.run_id = run_id_of(document)

    @cached_property
    def spec(self) -> RunSpec:
        """What the run is.

        Raises:
            RunError: run.json was written by another version, or by hand.
        """
        try:
            return RunSpec.from_json(self.document)
        except ValueError as error:
            raise RunError(f"{self.storage.uri}: {RUN_KEY} cannot be used: {error}") from error

    @cached_property
    def sealed(self) -> bool:
        """Whether every shard is committed and the manifest is written."""
        return self.storage.exists(MANIFEST_KEY)

    @cached_property
    def final(self) -> RunTotals | None:
        """The run's totals, or None while it is not finished."""
        try:
            return RunTotals.from_json(self.storage.read_bytes(FINAL_KEY))
        except FileNotFoundError:
            return None

    def iter_commits(self) -> Iterator[Commit]:
        """Every commit, in order of shard. Raises RunError at one that is broken."""
        keys = [info.key for info in self.storage.iter_objects("commits/")]
        for key, data in zip(keys, self.storage.read_many(keys)):
            try:
                yield Commit.from_json(data)
            except RunError as error:
                raise RunError(f"{self.storage.uri_of(key)}: {error}") from error

    @cached_property
    def files(self) -> list[ShardFiles]:
        """The files of each committed shard: from the manifests, or from the commits of an unsealed run."""
        if not self.sealed:
            return [commit.files for commit in self.iter_commits()]
        files = {each.shard: each for each in self.read_manifest()}
        for number in range(1, self.num_repairs + 1):
            files.update((each.shard, each) for each in self.read_manifest(repair_prefix(number)))
        return list(files.values())

    def only(self, files: Sequence[ShardFiles]) -> Run:
        """The same run, restricted to some of `files`. Reads nothing."""
        part = Run(self.storage, self.document)
        part.files = list(files)  # takes the place of the cached property's value
        return part

    @cached_property
    def num_repairs(self) -> int:
        """The number of finished repairs. The files of a repair replace earlier files of the same shards."""
        number = 0
        while self.storage.exists(repair_prefix(number + 1) + MANIFEST_KEY):
            number += 1
        return number

    def read_manifest(self, prefix: str = "") -> list[ShardFiles]:
        """The manifest of the run, or of the repair in the folder `prefix`; keys are relative to the run."""
        return manifest_files(self.storage.read_bytes(prefix + MANIFEST_KEY), prefix)

    def images_files(self) -> list[DataFile]:
        """The files of the images table, in order of shard."""
        return [each.images for each in self.files]

    def instances_files(self) -> list[DataFile]:
        """The files of the instances table, in order of shard."""
        return [each.instances for each in self.files]


def manifest_files(data: bytes, prefix: str = "") -> list[ShardFiles]:
    """The files that a manifest.parquet names, in order of shard; `prefix` is put before their keys."""
    return [ShardFiles.from_row(row, prefix) for row in read_parquet(data).to_pylist()]


def open_run(uri: str | Storage, settings: StorageSettings | None = None) -> Run:
    """The run at a URI, reached with these settings, or in a storage. Reads its specification only.

    Raises:
        RunError: there is no run there, or its specification is unreadable.
        StorageError: the URI itself cannot be used.
    """
    storage = open_storage(uri, settings) if isinstance(uri, str) else uri
    try:
        document = json.loads(storage.read_bytes(RUN_KEY))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{storage.uri} holds no run: it has no {RUN_KEY}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{storage.uri}: {RUN_KEY} is unreadable: {error}") from error
    if not isinstance(document, dict):
        raise RunError(f"{storage.uri}: {RUN_KEY} holds {type(document).__name__}, not a run's specification")
    return Run(storage, document)
