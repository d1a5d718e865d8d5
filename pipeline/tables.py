"""Tables of a run as pandas data frames: load, stream, filter and count rows, and decode their masks.

Only the rows and columns asked for are read, and only files that the run's commits name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.manifest import Run, RunError, open_run
from pipeline.masks.rle import decode_rle
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.parquet import read_parquet
from pipeline.storage.stores import open_file, open_storage

if TYPE_CHECKING:
    import pandas as pd

Filters: TypeAlias = Sequence[Any] | ds.Expression | None
"""Filters as `pandas.read_parquet` takes them, or a `pyarrow.dataset` expression. A list of conditions, such as
[("category", "==", "person"), ("score", ">", 0.8)], takes rows that meet all of them; a list of such lists takes rows
that meet any of the lists."""

_SCHEMAS = {"instances": INSTANCES_SCHEMA, "images": IMAGES_SCHEMA}


def load_instances(uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None) -> pd.DataFrame:
    """The instances of a run, one row each.

    Row groups whose statistics exclude a match with the filters are not read.

    Args:
        uri: a run, sealed or not, of which only files that its commits name are read; or a folder or file of Parquet
            with the same columns. An open `Run` is taken, too.
        columns: names of INSTANCES_SCHEMA, in the order wanted; None means all.
        filters: see `Filters`; may use columns that are not loaded.

    Returns:
        The columns asked for, rows in order of shard, within a shard by category, then best score first. Without a
        match: the same columns and no row.

    Raises:
        RunError: there is neither a run nor Parquet at the URI.
        ValueError: a column that the table does not have.
    """
    return _load("instances", uri, columns, filters)


def load_images(uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None) -> pd.DataFrame:
    """The images of a run, one row for each planned image, with any status; otherwise as `load_instances`."""
    return _load("images", uri, columns, filters)


def iter_instances(
    uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None, *, batch_rows: int = 65_536
) -> Iterator[pd.DataFrame]:
    """The rows of `load_instances` in frames of at most `batch_rows` rows, so that memory does not grow with the run.

    No frame is empty: a run without a match yields nothing.
    """
    files, expression, names = _scan("instances", uri, columns, filters)
    with files.errors_of_the_store():
        for batch in files.dataset().to_batches(columns=names, filter=expression, batch_size=batch_rows):
            if batch.num_rows:
                yield batch.to_pandas()


def iter_shards(run: str | Run, filters: Filters = None) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """For each committed shard in turn, its images and its instances; `filters` apply to the instances only."""
    run = open_run(run) if isinstance(run, str) else run
    expression = to_expression(filters, INSTANCES_SCHEMA)
    for images, instances in zip(run.images_files(), run.instances_files(), strict=True):
        images_file = _Files(run.storage, [images.key], IMAGES_SCHEMA)
        instances_file = _Files(run.storage, [instances.key] if instances.rows else [], INSTANCES_SCHEMA)
        yield images_file.read().to_pandas(), instances_file.read(filter=expression).to_pandas()


def load_table(table: str, uri: str | Run, columns: Sequence[str] | None = None, filters: Filters = None) -> pa.Table:
    """The Arrow table behind `load_instances` ("instances") and `load_images` ("images")."""
    files, expression, names = _scan(table, uri, columns, filters)
    # For tables of some hundred MB, Arrow's own allocator takes twice as long as the system's, and keeps their memory.
    return files.read(columns=names, filter=expression, memory_pool=pa.system_memory_pool())


def instances_dataset(uri: str | Run) -> ds.Dataset:
    """The instances as a lazy `pyarrow.dataset`, which DuckDB and polars can query.

    In a bucket it keeps the credentials of this moment: open it again when they have expired.
    """
    return _scan("instances", uri, None, None)[0].dataset()


def categories_of(run: Run) -> dict[int, str]:
    """Category names by id, from the run's class map, or from its instances where it has none."""
    class_map = run.spec.model.categories
    if class_map:
        return {category.id: category.name for category in class_map}
    pairs = load_instances(run, ["category_id", "category"]).drop_duplicates().sort_values("category_id")
    return dict(zip(pairs["category_id"].tolist(), pairs["category"], strict=True))


def decode_mask(row: Any) -> NDArray[np.uint8]:
    """The mask of one instance: uint8 [image_height, image_width] of 0 and 1, in original pixels.

    Args:
        row: a row of the instances table (a Series, a named tuple or a mapping) with `rle_counts`, `image_height`
            and `image_width`.

    Raises:
        ValueError: a needed column is missing, or the run lengths do not fit the size.
    """
    return decode_rle(*(_field(row, name) for name in ("rle_counts", "image_height", "image_width")))


def decode_masks(instances: pd.DataFrame) -> list[NDArray[np.uint8]]:
    """The masks of all rows, in order: a list, since images differ in size, of uint8 [H, W]; empty for no rows.

    Raises:
        ValueError: a needed column is missing, or run lengths do not fit a size.
    """
    _check_columns(instances, "rle_counts", "image_height", "image_width")
    rows = zip(instances["rle_counts"], instances["image_height"], instances["image_width"], strict=True)
    return [decode_rle(counts, int(height), int(width)) for counts, height, width in rows]


def counts(instances: pd.DataFrame, by: str | Sequence[str] = "category", *, min_score: float = 0.0) -> pd.DataFrame:
    """Counts instances and images for each value of one or several columns.

    Args:
        instances: as `load_instances` gives them, with the columns of `by`, image_id, score and area_px.
        by: the columns to group by.
        min_score: leaves out instances with a lower score.

    Returns:
        One row for each group, most instances first: the columns of `by`, `instances`, `images`, `mean_score`,
        `median_area_px`. No row without an instance.

    Raises:
        ValueError: a needed column is missing.
    """
    keys = [by] if isinstance(by, str) else list(by)
    _check_columns(instances, *keys, "image_id", "score", "area_px")
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
) -> tuple[_Files, ds.Expression | None, list[str] | None]:
    schema = _SCHEMAS[table]
    if columns is not None:
        if isinstance(columns, str):
            raise ValueError(f"columns must be a list of names, not the text {columns!r}")
        if unknown := [name for name in columns if name not in schema.names]:
            raise ValueError(f"{table} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
    return _files_of(table, uri, schema), to_expression(filters, schema), None if columns is None else list(columns)


def to_expression(filters: Filters, schema: pa.Schema) -> ds.Expression | None:
    """Filters as one Arrow expression; None for no filter.

    Raises:
        ValueError: malformed filters, or a column that the table does not have.
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


def _files_of(table: str, uri: str | Run, schema: pa.Schema) -> _Files:
    if isinstance(uri, Run):
        run = uri
    else:
        try:
            run = open_run(str(uri))
        except RunError as error:
            return _parquet_files(str(uri), schema, error)
    data_files = run.instances_files() if table == "instances" else run.images_files()
    # Files without rows are left out, because a run of many small shards may have many of them.
    return _Files(run.storage, [file.key for file in data_files if file.rows], schema)


def _parquet_files(uri: str, schema: pa.Schema, error: RunError) -> _Files:
    """A Parquet file, or all Parquet files below a folder; raises `error` where a folder has none."""
    if uri.endswith(".parquet"):
        storage, name = open_file(uri)
        if storage.exists(name):
            return _Files(storage, [name], schema)
        raise RunError(f"there is no file {uri}") from error
    storage = open_storage(uri)
    keys = [info.key for info in storage.iter_objects() if info.key.endswith(".parquet")]
    if not keys:
        raise error
    return _Files(storage, keys, schema)


@dataclass(frozen=True)
class _Files:
    """Parquet files of a store, as one table."""

    storage: Storage
    keys: list[str]
    schema: pa.Schema

    def dataset(self) -> ds.Dataset:
        """The files as a data set that Arrow reads by itself.

        Its threads hold nothing of Python's: letting go of that while the program ends would abort it.
        """
        files: pafs.FileSystem
        if isinstance(self.storage, LocalStorage):
            paths, files = [str(self.storage.path(key)) for key in self.keys], pafs.LocalFileSystem()
        else:
            from pipeline.storage.s3 import S3Storage  # as in `open_storage`: s3fs takes a second

            assert isinstance(self.storage, S3Storage)
            paths = [self.storage.arrow_path(key) for key in self.keys]
            if any("//" in path for path in paths):  # Arrow takes these for mistakes
                tables = [self.schema.empty_table(), *(read_parquet(self.storage.read_bytes(key)) for key in self.keys)]
                return ds.dataset(pa.concat_tables(tables, promote_options="default").select(self.schema.names))
            files = self.storage.arrow_file_system()
        return ds.FileSystemDataset.from_paths(
            paths, schema=self.schema, format=ds.ParquetFileFormat(), filesystem=files
        )

    def read(self, **options: Any) -> pa.Table:
        """The rows; `options` are those of `Dataset.to_table`."""
        with self.errors_of_the_store():
            return self.dataset().to_table(**options)

    @contextlib.contextmanager
    def errors_of_the_store(self) -> Iterator[None]:
        """Where Arrow cannot read, asks the store by itself, which says why in its own words, if it fails again."""
        try:
            yield
        except OSError:
            for key in self.keys:
                self.storage.read_object(key, 0, 1)
            raise


def _field(row: Any, name: str) -> Any:
    is_series = hasattr(row, "index") and hasattr(row, "dtype")
    try:
        return row[name] if isinstance(row, Mapping) or is_series else getattr(row, name)
    except (KeyError, AttributeError):
        raise ValueError(f"the row has no {name!r}; load the instances with that column") from None


def _check_columns(frame: pd.DataFrame, *columns: str) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"the instances lack the column {missing[0]!r}; load them with it")
