"""A run's tables as pandas data frames: only the rows and columns asked for, and only what the run's commits name."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.manifest import Run, RunError, open_run
from pipeline.masks.rle import decode_rle
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import base_name, parent_uri

if TYPE_CHECKING:
    import pandas as pd

Filters: TypeAlias = Sequence[Any] | ds.Expression | None
"""As `pandas.read_parquet` takes them: [("category", "==", "person"), ("score", ">", 0.8)] means both; a list of such
lists means any of them; or a `pyarrow.dataset` expression."""

_SCHEMAS = {"instances": INSTANCES_SCHEMA, "images": IMAGES_SCHEMA}


def load_instances(uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None) -> pd.DataFrame:
    """One row for each instance of a run.

    Filters are pushed down: row groups whose statistics exclude a match are never read.

    Args:
        uri: a run (then only files that its commits name are read, sealed or not), or a folder or file of Parquet
            with the same columns. A `Run` that is open already saves opening it.
        columns: names of INSTANCES_SCHEMA, in the order wanted; None means all.
        filters: see `Filters`; may use columns that are not loaded.

    Returns:
        Columns as in INSTANCES_SCHEMA, in order of shard, within a shard by category, then best score first. With no
        match: the same columns and no row.

    Raises:
        RunError: there is neither a run nor Parquet.
        ValueError: a column that the table does not have.
    """
    return _load("instances", uri, columns, filters)


def load_images(uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None) -> pd.DataFrame:
    """One row for each planned image of a run, whatever became of it; otherwise as `load_instances`."""
    return _load("images", uri, columns, filters)


def iter_instances(
    uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None, *, batch_rows: int = 65_536
) -> Iterator[pd.DataFrame]:
    """The rows of `load_instances` in frames of at most `batch_rows` rows: memory does not grow with the run.

    Frames without rows are left out, so a run without a match yields nothing.
    """
    dataset, expression, names = _scan("instances", uri, columns, filters)
    for batch in dataset.to_batches(columns=names, filter=expression, batch_size=batch_rows):
        if batch.num_rows:
            yield batch.to_pandas()


def iter_shards(run: str | Run, filters: Filters = None) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The images and the instances of one committed shard after the other; `filters` are those of the instances."""
    run = open_run(run) if isinstance(run, str) else run
    expression = to_expression(filters, INSTANCES_SCHEMA)
    for images, instances in zip(run.images_files(), run.instances_files(), strict=True):
        rows = _files_dataset(run.storage, [instances.key] if instances.rows else [], INSTANCES_SCHEMA)
        yield (
            _files_dataset(run.storage, [images.key], IMAGES_SCHEMA).to_table().to_pandas(),
            rows.to_table(filter=expression).to_pandas(),
        )


def load_table(table: str, uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None) -> pa.Table:
    """The Arrow table behind `load_instances` ("instances") and `load_images` ("images")."""
    dataset, expression, names = _scan(table, uri, columns, filters)
    # Arrow's own allocator takes twice the system's time for tables of some hundred MB, and keeps their memory.
    return dataset.to_table(columns=names, filter=expression, memory_pool=pa.system_memory_pool())


def instances_dataset(uri: str | Run) -> ds.Dataset:
    """The instances as a lazy `pyarrow.dataset`, which DuckDB and polars query in place."""
    return _scan("instances", uri, None, None)[0]


def decode_mask(row: Any) -> np.ndarray:
    """The mask of one instance: uint8 [image_height, image_width] of 0 and 1, in original pixels.

    Args:
        row: a row of the instances table (a Series, a named tuple or a mapping) with `rle_counts`, `image_height`
            and `image_width`.

    Raises:
        ValueError: a needed column is missing, or the run lengths do not fit the size.
    """
    return decode_rle(*(_field(row, name) for name in ("rle_counts", "image_height", "image_width")))


def decode_masks(instances: pd.DataFrame) -> list[np.ndarray]:
    """The masks of all rows, in order: a list of uint8 [H, W], as images differ in size; empty for no rows.

    Raises:
        ValueError: a needed column is missing, or run lengths do not fit a size.
    """
    _need(instances, "rle_counts", "image_height", "image_width")
    rows = zip(instances["rle_counts"], instances["image_height"], instances["image_width"], strict=True)
    return [decode_rle(counts, int(height), int(width)) for counts, height, width in rows]


def counts(instances: pd.DataFrame, by: str | Sequence[str] = "category", *, min_score: float = 0.0) -> pd.DataFrame:
    """How many instances and images, and which scores and areas, for each value of a column or several.

    Returns:
        One row a group, most instances first: the columns of `by`, `instances`, `images`, `mean_score`,
        `median_area_px`. No row for no instance.
    """
    keys = [by] if isinstance(by, str) else list(by)
    _need(instances, *keys, "image_id", "score", "area_px")
    kept = instances[instances["score"] >= min_score]
    grouped = kept.groupby(keys, sort=True, observed=True).agg(
        instances=("score", "size"),
        images=("image_id", "nunique"),
        mean_score=("score", "mean"),
        median_area_px=("area_px", "median"),
    )
    return grouped.reset_index().sort_values("instances", ascending=False, kind="stable", ignore_index=True)


def _load(table: str, uri: str | Run, columns: Sequence[str] | None, filters: Filters) -> pd.DataFrame:
    return load_table(table, uri, columns, filters).to_pandas()


def _scan(
    table: str, uri: str | Run, columns: Sequence[str] | None, filters: Filters
) -> tuple[ds.Dataset, ds.Expression | None, list[str] | None]:
    schema = _SCHEMAS[table]
    if columns is not None:
        if isinstance(columns, str):
            raise ValueError(f"columns must be a list of names, not the text {columns!r}")
        if unknown := [name for name in columns if name not in schema.names]:
            raise ValueError(f"{table} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
    return _dataset(table, uri, schema), to_expression(filters, schema), None if columns is None else list(columns)


def to_expression(filters: Filters, schema: pa.Schema) -> ds.Expression | None:
    """Filters as one Arrow expression; None for no filter.

    Raises:
        ValueError: filters that are not understood, or on a column that the table does not have.
    """
    if filters is None or isinstance(filters, ds.Expression):
        return filters
    if not len(filters):
        return None
    groups = [filters] if isinstance(filters[0], tuple) else filters
    for column, *_ in (condition for group in groups for condition in group):
        if column not in schema.names:
            raise ValueError(f"filters: there is no column {column!r}; there are {', '.join(schema.names)}")
    return pq.filters_to_expression(list(filters))


def _dataset(table: str, uri: str | Run, schema: pa.Schema) -> ds.Dataset:
    if isinstance(uri, Run):
        run = uri
    else:
        try:
            run = open_run(str(uri))
        except RunError as error:
            return _loose_dataset(str(uri), schema, error)
    data_files = run.instances_files() if table == "instances" else run.images_files()
    # A file without rows has nothing to read, and a run of many small shards has many of them.
    return _files_dataset(run.storage, [file.key for file in data_files if file.rows], schema)


def _loose_dataset(uri: str, schema: pa.Schema, error: RunError) -> ds.Dataset:
    if uri.endswith(".parquet"):
        storage, name = open_storage(parent_uri(uri)), base_name(uri)
        if storage.exists(name):
            return _files_dataset(storage, [name], schema)
        raise RunError(f"there is no file {uri}") from error
    storage = open_storage(uri)
    keys = [info.key for info in storage.iter_objects() if info.key.endswith(".parquet")]
    if not keys:
        raise error
    return _files_dataset(storage, keys, schema)


def _files_dataset(storage: Storage, keys: list[str], schema: pa.Schema) -> ds.Dataset:
    if isinstance(storage, LocalStorage):
        paths = [str(storage.path(key)) for key in keys]
        return ds.FileSystemDataset.from_paths(
            paths, schema=schema, format=ds.ParquetFileFormat(), filesystem=pafs.LocalFileSystem()
        )
    return ds.FileSystemDataset.from_paths(
        keys, schema=schema, format=ds.ParquetFileFormat(), filesystem=pafs.PyFileSystem(_StorageFiles(storage))
    )


class _StorageFiles(pafs.FileSystemHandler):
    """Any `Storage`, read-only, as Arrow's scanner wants it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def get_type_name(self) -> str:
        return "maskfleet"

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        try:
            size = self.storage.stat(path).size_bytes
        except FileNotFoundError:
            return pafs.FileInfo(path, pafs.FileType.NotFound)
        return pafs.FileInfo(path, pafs.FileType.File, size=size)

    def open_input_file(self, path: str) -> pa.PythonFile:
        return pa.PythonFile(self.storage.open_input(path), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        raise io.UnsupportedOperation("files are named by the run's commits, never listed")

    def _read_only(self, *_: Any, **__: Any) -> Any:
        raise io.UnsupportedOperation("a run is read here, not written")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _read_only
    move = copy_file = open_output_stream = open_append_stream = _read_only


def _field(row: Any, name: str) -> Any:
    try:
        return (
            row[name]
            if isinstance(row, Mapping) or (hasattr(row, "index") and hasattr(row, "dtype"))
            else getattr(row, name)
        )
    except (KeyError, AttributeError):
        raise ValueError(f"the row has no {name!r}; load the instances with that column") from None


def _need(frame: pd.DataFrame, *columns: str) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"the instances lack the column {missing[0]!r}; load them with it")
