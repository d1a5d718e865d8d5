"""Parquet readers for files in memory and Python files, which leave nothing to Arrow's threads.

Arrow's own threads may still hold a Python buffer or file when Python ends. Letting go of it then aborts the process
(exit code 134), after everything was done and said. So every read of this project from bytes, or from a file that is
a Python object, goes through here and is made by the calling thread alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(source: bytes | BinaryIO, *, buffer_size: int = 0, verify_pages: bool = False) -> pq.ParquetFile:
    """An open Parquet file. Rows are read from it with `use_threads=False`.

    Args:
        source: the content of the file, or a file that can seek.
        buffer_size: bytes that are read at a time; 0 reads a column of a row group at once.
        verify_pages: compares each page that is read with its checksum, where the file has them.

    Raises:
        pa.ArrowException: no Parquet file.
    """
    file = pa.BufferReader(source) if isinstance(source, bytes) else source
    return pq.ParquetFile(file, buffer_size=buffer_size, pre_buffer=False, page_checksum_verification=verify_pages)


def read_parquet(
    source: bytes | BinaryIO, columns: Sequence[str] | None = None, *, verify_pages: bool = False
) -> pa.Table:
    """All rows of a Parquet file, of these columns or of all; `source` and `verify_pages` as in `open_parquet`.

    Raises:
        pa.ArrowException: no Parquet file, or a broken one.
        OSError: a page does not have its checksum.
    """
    file = open_parquet(source, verify_pages=verify_pages)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def iter_parquet(source: bytes | BinaryIO, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in batches, in flat memory, which grows with the row groups for one `iter_batches`.

    Raises:
        pa.ArrowException: no Parquet file, or a broken one.
    """
    file = open_parquet(source, buffer_size=1 << 20)
    names = None if columns is None else list(columns)
    for group in range(file.num_row_groups):
        yield from file.iter_batches(10_000, row_groups=[group], columns=names, use_threads=False)
