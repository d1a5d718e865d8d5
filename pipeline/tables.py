"""Tables of one or several runs as pandas data frames: load, stream, filter and count rows, and decode their masks.

Only the rows and columns asked for are read, and only files that the runs' commits name.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.manifest import Run, RunError
from pipeline.masks.rle import decode_rle
from pipeline.runs import AnyRun, RunPart, Runs, RunSource, open_runs
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
_FILES_AT_ONCE = 4  # of a run, while its rows are streamed
_VERIFY = "(maskfleet verify names every broken file of a run)"
# Columns of several runs read as one, behind those of a table that has them not: where a row is from.
_RUN_COLUMNS = (pa.field("run_id", pa.string()), pa.field("run_uri", pa.string()))


def load_instances(
    uri: RunSource, columns: Sequence[str] | None = None, filters: Filters = None, *, chain: bool = False
) -> pd.DataFrame:
    """The instances of a run, or of several, one row each.

    Row groups whose statistics exclude a match with the filters are not read.

    Args:
        uri: a run, sealed or not, of which only files that its commits name are read; or a folder or file of Parquet
            with the same columns. An open `Run` is taken, too. A list of runs, oldest first, is read as one table: on
            each image the last run that planned it decides.
        columns: names of INSTANCES_SCHEMA, in the order wanted; None means all. Of several runs there is `run_uri`,
            too, where it is asked for.
        filters: see `Filters`; may use columns that are not loaded.
        chain: reads the run and those before it, by their `since_run`, as one table; see `pipeline.runs.open_runs`.

    Returns:
        The columns asked for, rows in order of shard, within a shard by category, then best score first; the oldest
        run's first. Without a match: the same columns and no row.

    Raises:
        RunError: there is neither a run nor Parquet at the URI, or a file of a table is missing or broken; or see
            `open_runs` and `Runs.parts`.
        ValueError: a column that the table does not have.
    """
    return load_table("instances", uri, columns, filters, chain=chain).to_pandas()


def load_images(
    uri: RunSource, columns: Sequence[str] | None = None, filters: Filters = None, *, chain: bool = False
) -> pd.DataFrame:
    """The images of a run, or of several, one row for each planned image, with any status.

    Otherwise as `load_instances`. The table of several runs has the column `run_id`, too.
    """
    return load_table("images", uri, columns, filters, chain=chain).to_pandas()


def iter_instances(
    uri: RunSource,
    columns: Sequence[str] | None = None,
    filters: Filters = None,
    *,
    batch_rows: int = 65_536,
    chain: bool = False,
) -> Iterator[pd.DataFrame]:
    """The rows of `load_instances` in frames of at most `batch_rows` rows, so that memory does not grow with the runs.

    No frame is empty: a run without a match yields nothing.
    """
    schema, names, expression = _checked("instances", uri, columns, filters, chain)
    for files in _files("instances", uri, chain):
        # Of a data set Arrow reads ahead while its rows take less than a gigabyte, and keeps what its files say of
        # themselves; so it is made of a few files at a time.
        rows = _all_of(files.rows, expression)
        for start in range(0, len(files.keys), _FILES_AT_ONCE):
            part = replace(files, keys=files.keys[start : start + _FILES_AT_ONCE])
            scanner = part.dataset(schema).scanner(columns=names, filter=rows, batch_size=batch_rows)
            with _told_by_the_store([part]):
                for batch in scanner.to_batches():
                    if batch.num_rows:
                        yield batch.to_pandas()


def iter_shards(run: str | AnyRun, filters: Filters = None) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """For each committed shard in turn, its images and its instances; `filters` apply to the instances only."""
    opened = open_runs(run)
    expression = to_expression(filters, INSTANCES_SCHEMA)
    for part in opened.parts if isinstance(opened, Runs) else [RunPart(opened, None)]:
        for images, instances in zip(part.run.images_files(), part.run.instances_files(), strict=True):
            storage, rows = part.run.storage, _all_of(part.rows, expression)
            yield (
                _read([_Files(storage, [images.key])], IMAGES_SCHEMA, filter=part.rows).to_pandas(),
                _read(
                    [_Files(storage, [instances.key] if instances.rows else [])], INSTANCES_SCHEMA, filter=rows
                ).to_pandas(),
            )


def load_table(
    table: str,
    uri: RunSource,
    columns: Sequence[str] | None = None,
    filters: Filters = None,
    *,
    chain: bool = False,
) -> pa.Table:
    """The Arrow table behind `load_instances` ("instances") and `load_images` ("images")."""
    schema, names, expression = _checked(table, uri, columns, filters, chain)
    files = _files(table, uri, chain)
    # For tables of some hundred MB, Arrow's own allocator takes twice as long as the system's, and keeps their memory.
    return _read(files, schema, columns=names, filter=expression, memory_pool=pa.system_memory_pool())


def instances_dataset(uri: RunSource, *, chain: bool = False) -> ds.Dataset:
    """The instances as a lazy `pyarrow.dataset`, which DuckDB and polars can query; of several runs with `run_uri`.

    In a bucket it keeps the credentials of this moment: open it again when they have expired.
    """
    return _dataset(_files("instances", uri, chain), _checked("instances", uri, None, None, chain)[0])


def categories_of(run: AnyRun) -> dict[int, str]:
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


def _checked(
    table: str, uri: RunSource, columns: Sequence[str] | None, filters: Filters, chain: bool
) -> tuple[pa.Schema, list[str] | None, ds.Expression | None]:
    """The schema of a table, the columns wanted (None: all of them), and the filters as an expression."""
    schema = _SCHEMAS[table]
    if has_run_columns := chain or not isinstance(uri, str | os.PathLike | Run):
        for field in _RUN_COLUMNS:
            schema = schema if field.name in schema.names else schema.append(field)
    if columns is not None:
        if isinstance(columns, str):
            raise ValueError(f"columns must be a list of names, not the text {columns!r}")
        if unknown := [name for name in columns if name not in schema.names]:
            raise ValueError(f"{table} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
    elif has_run_columns:
        columns = [name for name in schema.names if name != "run_uri"]
    return schema, None if columns is None else list(columns), to_expression(filters, schema)


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


def _read(files: Sequence[_Files], schema: pa.Schema, **options: Any) -> pa.Table:
    """The rows that count; `options` are those of `Dataset.scanner`."""
    scanner = _dataset(files, schema).scanner(**options)  # a filter that does not fit the columns is refused here
    with _told_by_the_store(files):
        return scanner.to_table()


@contextlib.contextmanager
def _told_by_the_store(files: Sequence[_Files]) -> Iterator[None]:
    """Where Arrow cannot read, reads file by file, so that the store says why in its own words, or the file is named.

    Raises:
        RunError: a file is missing or broken.
    """
    try:
        yield
    except (OSError, pa.ArrowException):
        for each in files:
            for key in each.keys:
                where = f"{each.storage.uri}: {key}"
                try:
                    content = each.storage.read_bytes(key)
                except FileNotFoundError as error:
                    raise RunError(f"{where}: the file is missing {_VERIFY}") from error
                try:
                    read_parquet(content, verify_pages=True)
                except (OSError, pa.ArrowException) as error:
                    raise RunError(f"{where}: the file is broken: {error} {_VERIFY}") from error
        raise


def _dataset(files: Sequence[_Files], schema: pa.Schema) -> ds.Dataset:
    """The rows that count as one data set."""
    if "run_uri" not in schema.names:
        return files[0].dataset(schema)
    dataset = ds.UnionDataset(schema, [each.dataset(schema) for each in files])
    # Arrow knows each file's `run_uri`, and looks at a condition for files of its run only.
    condition = _all_of(
        *(~each.known | each.rows for each in files if each.known is not None and each.rows is not None)
    )
    return dataset if condition is None else dataset.filter(condition)


@dataclass(frozen=True)
class _Files:
    """Parquet files of one storage.

    Attributes:
        known: of several runs, what the columns of _RUN_COLUMNS are in these files; None: no such columns.
        rows: which of their rows count; None: all.
    """

    storage: Storage
    keys: list[str]
    known: ds.Expression | None = None
    rows: ds.Expression | None = None

    def dataset(self, schema: pa.Schema) -> ds.FileSystemDataset:
        """The files as a data set of all their rows, which Arrow reads by itself.

        Its threads hold nothing of Python's: letting go of that while the program ends would abort it.
        """
        files: pafs.FileSystem
        # Bytes that changed on the disk are an error and no other figures; it takes a tenth of the time of reading.
        form = ds.ParquetFileFormat(
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        )
        if isinstance(self.storage, LocalStorage):
            paths, files = [str(self.storage.path(key)) for key in self.keys], pafs.LocalFileSystem()
        else:
            from pipeline.storage.s3 import S3Storage  # as in `open_storage`: s3fs takes a second

            assert isinstance(self.storage, S3Storage)
            paths = [self.storage.arrow_path(key) for key in self.keys]
            if any("//" in path for path in paths):  # Arrow takes these for mistakes
                whole = [_in_memory(self.storage.read_bytes(key)) for key in self.keys]
                parts = [form.make_fragment(each, partition_expression=self.known) for each in whole]
                return ds.FileSystemDataset(parts, schema, form)
            files = self.storage.arrow_file_system()
        known = None if self.known is None else [self.known] * len(paths)
        return ds.FileSystemDataset.from_paths(paths, schema=schema, format=form, filesystem=files, partitions=known)


def _in_memory(data: bytes) -> pa.BufferReader:
    """A file of Arrow's own in memory."""
    copy = pa.BufferOutputStream()
    copy.write(data)
    return pa.BufferReader(copy.getvalue())


def _files(table: str, uri: RunSource, chain: bool) -> list[_Files]:
    """The files of each run, oldest first; at least one entry."""
    source = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
    try:
        opened = open_runs(source, chain=chain)
    except RunError as error:
        if not isinstance(source, str) or chain:
            raise
        return [_parquet_files(source, error)]
    if isinstance(opened, Run):
        return [_Files(opened.storage, _keys(table, opened))]
    return [
        _Files(
            part.run.storage,
            _keys(table, part.run),
            (ds.field("run_id") == part.run.run_id) & (ds.field("run_uri") == part.run.storage.uri),
            part.rows,
        )
        for part in opened.parts
    ]


def _keys(table: str, run: Run) -> list[str]:
    """The files of a table; without those that have no rows, of which a run of many small shards may have many."""
    files = run.instances_files() if table == "instances" else run.images_files()
    return [file.key for file in files if file.rows]


def _all_of(*conditions: ds.Expression | None) -> ds.Expression | None:
    given = [each for each in conditions if each is not None]
    return functools.reduce(operator.and_, given) if given else None


def _parquet_files(uri: str, error: RunError) -> _Files:
    """A Parquet file, or all Parquet files below a folder; raises `error` where a folder has none."""
    if uri.endswith(".parquet"):
        storage, name = open_file(uri)
        if storage.exists(name):
            return _Files(storage, [name])
        raise RunError(f"there is no file {uri}") from error
    storage = open_storage(uri)
    keys = [info.key for info in storage.iter_objects() if info.key.endswith(".parquet")]
    if not keys:
        raise error
    return _Files(storage, keys)


def _field(row: Any, name: str) -> Any:
    is_series = hasattr(row, "index") and hasattr(row, "dtype")
    try:
        return row[name] if isinstance(row, Mapping) or is_series else getattr(row, name)
    except (KeyError, AttributeError):
        raise ValueError(f"the row has no {name!r}; load the instances with that column") from None


def _check_columns(frame: pd.DataFrame, *columns: str) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"the instances lack the column {missing[0]!r}; load them with it")
