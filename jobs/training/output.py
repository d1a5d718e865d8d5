"""Output of a training: checkpoints, metrics and configuration, on a local disk or in a bucket.

OUT/config.yaml                       the settings, written at each start
OUT/annotations.json                  hash of the annotations, written at each start
OUT/metrics.parquet                   one row for each log_every_steps steps or checkpoint, and each validation
OUT/checkpoints/step-00000400/        immutable; its marker is written last
OUT/best.json                         step and figures of the best checkpoint, where there is validation
OUT/finished.json                     written when the training has ended
OUT/tensorboard/                      the same figures for TensorBoard
OUT/curves.png, OUT/summary.html      the report
OUT/set_aside/step-00000400-1/        a checkpoint that could not be read (local disks only)
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError
from pipeline.storage.base import StorageSettings
from pipeline.storage.parquet import read_parquet
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import is_local

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

CHECKPOINTS = "checkpoints"
SET_ASIDE = "set_aside"
CONFIG = "config.yaml"
ANNOTATIONS = "annotations.json"
METRICS = "metrics.parquet"
BEST = "best.json"
FINISHED = "finished.json"
_STEP = re.compile(r"^step-(\d{8,})$")
# Columns that every row has; those of loss terms and AP are added where rows have them.
_METRIC_TYPES = {"step": pa.int64(), "epoch": pa.float64()}


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint; names sort like steps up to 99,999,999."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Finished:
    """How a training ended: its last step, whether it stopped before the step it was to end at, its settings' hash."""

    step: int
    stopped_early: bool
    config_hash: str


class TrainingOutput:
    """The output folder or prefix of one training."""

    def __init__(self, uri: str, settings: StorageSettings | None = None) -> None:
        self.storage = open_storage(uri, settings)
        self.local_root = Path(self.storage.uri) if is_local(self.storage.uri) else None

    @property
    def uri(self) -> str:
        """Where it is: an absolute path or an s3:// prefix."""
        return self.storage.uri

    def is_absent(self) -> bool:
        """Whether the folder does not exist, or the bucket has no object under the prefix."""
        if self.local_root is not None:
            return not self.local_root.exists()
        return next(self.storage.iter_objects(), None) is None

    # -- configuration

    def read_config(self) -> dict[str, Any] | None:
        """The settings of the training as plain values; None when no training was started here.

        Raises:
            ValueError: config.yaml is no YAML mapping.
        """
        try:
            content = self.storage.read_bytes(CONFIG)
        except FileNotFoundError:
            return None
        try:
            values = yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise ValueError(f"{self.storage.uri_of(CONFIG)} is no valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{self.storage.uri_of(CONFIG)} holds {type(values).__name__}, not a mapping of settings")
        return values

    def write_config(self, values: Mapping[str, object]) -> None:
        """Writes the settings, replacing earlier ones. Atomic."""
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)
        self.storage.write_bytes(CONFIG, text.encode())

    # -- small JSON files

    def write_best(self, values: Mapping[str, object]) -> None:
        """Writes best.json: step and figures of the best checkpoint so far."""
        self.storage.write_bytes(BEST, _to_json(values))

    def read_annotations(self) -> dict[str, str]:
        """Hash of the annotations trained on last, by setting; {} where none was written."""
        try:
            return json.loads(self.storage.read_bytes(ANNOTATIONS))
        except FileNotFoundError:
            return {}

    def write_annotations(self, hashes: Mapping[str, str]) -> None:
        """Writes annotations.json: the hash of the annotations, by setting."""
        self.storage.write_bytes(ANNOTATIONS, _to_json(hashes))

    def read_finished(self) -> Finished | None:
        """The contents of finished.json; None while the training is not finished."""
        try:
            values = json.loads(self.storage.read_bytes(FINISHED))
        except FileNotFoundError:
            return None
        return Finished(values["step"], bool(values.get("stopped_early")), values.get("config_hash", ""))

    def write_finished(self, finished: Finished) -> None:
        """Writes finished.json, which marks the training as finished."""
        self.storage.write_bytes(FINISHED, _to_json(asdict(finished)))

    def write_file(self, name: str, data: bytes) -> str:
        """Writes any other file of the output, replacing an earlier one, and returns its URI."""
        self.storage.write_bytes(name, data)
        return self.storage.uri_of(name)

    # -- checkpoints

    def steps(self) -> list[int]:
        """Steps that have a checkpoint with a marker, ascending; the checkpoints are not read."""
        steps = []
        for name in self._folder_names():
            match = _STEP.match(name)
            if match and self.storage.exists(f"{CHECKPOINTS}/{name}/{CHECKPOINT_MARKER}"):
                steps.append(int(match.group(1)))
        return sorted(steps)

    def torn_names(self) -> list[str]:
        """Names of checkpoint folders without a marker: their writer was cut off."""
        complete = {checkpoint_name(step) for step in self.steps()}
        return sorted(name for name in self._folder_names() if name not in complete)

    def checkpoint_uri(self, step: int) -> str:
        """URI of a step's checkpoint folder."""
        return self.storage.uri_of(f"{CHECKPOINTS}/{checkpoint_name(step)}")

    def load(self, step: int) -> Checkpoint:
        """Reads a step's checkpoint.

        Raises:
            CheckpointError: It is incomplete or altered.
        """
        from model.checkpoint import load_checkpoint  # torch, which reports of metrics do not need

        name = checkpoint_name(step)
        if self.local_root is not None:
            return load_checkpoint(self.local_root / CHECKPOINTS / name)
        with tempfile.TemporaryDirectory(prefix="maskfleet-") as folder:
            prefix = f"{CHECKPOINTS}/{name}/"
            for info in self.storage.iter_objects(prefix):
                Path(folder, info.key.removeprefix(prefix)).write_bytes(self.storage.read_bytes(info.key))
            try:
                return load_checkpoint(folder)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(folder, self.checkpoint_uri(step))) from error

    def load_newest(self, *, on_bad: Callable[[str], None] | None = None) -> tuple[int, Checkpoint] | None:
        """The newest checkpoint that can be read, as (step, checkpoint); None when there is none.

        Args:
            on_bad: Called with one sentence for each checkpoint that cannot be used, which is also moved to set_aside/
                (on a local disk only). None changes nothing.
        """
        if on_bad is not None:
            for name in self.torn_names():
                on_bad(f"checkpoint {name} is incomplete (no {CHECKPOINT_MARKER}); {self._set_aside(name)}")
        for step in reversed(self.steps()):
            try:
                return step, self.load(step)
            except CheckpointError as error:
                if on_bad is not None:
                    on_bad(f"{error}; {self._set_aside(checkpoint_name(step))}")
        return None

    def save(self, step: int, write: Callable[[Path], object]) -> str:
        """Lets `write` fill a folder and keeps that as the step's checkpoint; returns its URI.

        A complete checkpoint of that step is kept, and `write` not called. On a local disk `write` itself writes the
        marker last; to a bucket the marker is uploaded last.
        """
        name = checkpoint_name(step)
        if self.storage.exists(f"{CHECKPOINTS}/{name}/{CHECKPOINT_MARKER}"):
            return self.checkpoint_uri(step)
        if self.local_root is not None:
            folder = self.local_root / CHECKPOINTS / name
            if folder.exists():
                shutil.rmtree(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            write(folder)
            return self.checkpoint_uri(step)
        with tempfile.TemporaryDirectory(prefix="maskfleet-") as temporary:
            folder = Path(temporary) / name
            write(folder)
            files = sorted(folder.iterdir(), key=lambda file: file.name == CHECKPOINT_MARKER)
            for file in files:
                self.storage.write_bytes(f"{CHECKPOINTS}/{name}/{file.name}", file.read_bytes())
        return self.checkpoint_uri(step)

    def prune(self, num_to_keep: int | None, *, keep: Iterable[int] = ()) -> list[int]:
        """Removes all checkpoints but the newest `num_to_keep` (None: all) and `keep`; returns the removed steps."""
        if num_to_keep is None:
            return []
        kept = set(keep)
        removed = [step for step in self.steps()[:-num_to_keep] if step not in kept]
        for step in removed:
            prefix = f"{CHECKPOINTS}/{checkpoint_name(step)}/"
            # The marker goes first: a removal that is cut off leaves a folder without a marker, which is never read.
            self.storage.delete(prefix + CHECKPOINT_MARKER)
            for info in list(self.storage.iter_objects(prefix)):
                self.storage.delete(info.key)
            if self.local_root is not None:
                shutil.rmtree(self.local_root / CHECKPOINTS / checkpoint_name(step), ignore_errors=True)
        return removed

    def _folder_names(self) -> set[str]:
        """Names of all folders of checkpoints, with or without a marker."""
        if self.local_root is not None:
            folder = self.local_root / CHECKPOINTS
            return {entry.name for entry in os.scandir(folder) if entry.is_dir()} if folder.is_dir() else set()
        prefix = f"{CHECKPOINTS}/"
        return {info.key.removeprefix(prefix).split("/")[0] for info in self.storage.iter_objects(prefix)}

    def _set_aside(self, name: str) -> str:
        """Moves a checkpoint folder to set_aside/, on a local disk; returns words that say so."""
        if self.local_root is None:
            return "left where it is and not used"
        target_root = self.local_root / SET_ASIDE
        target_root.mkdir(parents=True, exist_ok=True)
        number = 1
        while (target := target_root / f"{name}-{number}").exists():
            number += 1
        os.rename(self.local_root / CHECKPOINTS / name, target)
        return f"set aside as {SET_ASIDE}/{target.name}"

    # -- metrics

    def read_metrics(self) -> list[dict[str, float]]:
        """Rows of metrics.parquet, in order of step; empty when there is none or it cannot be read."""
        try:
            rows = read_parquet(self.storage.read_bytes(METRICS)).to_pylist()
        except (FileNotFoundError, pa.ArrowInvalid):
            return []
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Replaces metrics.parquet, atomically. Whole numbers become int64, others float64; missing values are null."""
        names = list(dict.fromkeys([*_METRIC_TYPES, *(name for row in rows for name in row)]))
        columns = {}
        for name in names:
            values = [row.get(name) for row in rows]
            is_whole = all(isinstance(value, int) for value in values if value is not None)
            kind = _METRIC_TYPES.get(name, pa.int64() if is_whole else pa.float64())
            columns[name] = pa.array(
                [None if v is None else (int(v) if pa.types.is_integer(kind) else float(v)) for v in values], kind
            )
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer, compression="zstd", write_page_checksum=True)
        self.storage.write_bytes(METRICS, buffer.getvalue())


def _to_json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(dict(values), indent=2) + "\n").encode()
