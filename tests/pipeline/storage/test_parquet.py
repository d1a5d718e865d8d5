"""Parquet of files in memory: what was written is read, damage is an error, and a program that reads can end."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.parquet import iter_parquet, open_parquet, read_parquet
from tests.paths import ROOT

TABLE = pa.table({"id": list(range(1000)), "name": [f"{i:05d}" for i in range(1000)], "score": [0.5] * 1000})


def content_of(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=300, **options)
    return file.getvalue()


def test_rows_columns_and_metadata_are_those_that_were_written() -> None:
    data = content_of(TABLE.replace_schema_metadata({"a": "b"}))
    for source in (data, io.BytesIO(data)):
        assert read_parquet(source).equals(TABLE)
        assert read_parquet(source, ["score", "id"]).equals(TABLE.select(["score", "id"]))
        assert pa.Table.from_batches(iter_parquet(source, ["name"])).equals(TABLE.select(["name"]))
        file = open_parquet(source)
        assert file.schema_arrow.metadata == {b"a": b"b"} and file.metadata.num_rows == 1000
    assert read_parquet(content_of(TABLE[:0])).equals(TABLE[:0]) and list(iter_parquet(content_of(TABLE[:0]))) == []


def test_damage_is_an_error() -> None:
    data = content_of(TABLE, write_page_checksum=True, compression="none", use_dictionary=False)
    at = data.index(b"00500")
    changed = data[:at] + b"00501" + data[at + 5 :]
    assert read_parquet(changed)["name"][500].as_py() == "00501"
    with pytest.raises(OSError, match="page"):
        read_parquet(changed, verify_pages=True)
    for broken in (b"", b"PAR1", data[:-20]):
        with pytest.raises(pa.ArrowException):
            read_parquet(broken)


PROGRAMS = {
    "bytes": "from pipeline.storage.parquet import read_parquet; read_parquet(open(FILE, 'rb').read()).to_pylist()",
    "file": "from pipeline.storage.parquet import read_parquet; read_parquet(open(FILE, 'rb')).to_pylist()",
    "batches": "from pipeline.storage.parquet import iter_parquet; rows = list(iter_parquet(open(FILE, 'rb')))",
}


@pytest.mark.long
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_reads_and_ends_at_once_ends_with_0(kind: str, tmp_path: Path) -> None:
    """Sixty times, four side by side: on busy cores Arrow's threads are late. With them, a third to a half aborted."""
    (tmp_path / "t.parquet").write_bytes(content_of(TABLE))
    program = f"FILE = {str(tmp_path / 't.parquet')!r}\n{PROGRAMS[kind]}"

    def run(_: int) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stderr[-300:]

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(run, range(60))) == {(0, "")}
