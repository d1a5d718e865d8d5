"""Parquet is read from bytes and Python files in one place, in the calling thread: Arrow's threads abort at the end."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDERS = ("maskfleet", "model", "pipeline", "jobs", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
READS = {"read_table", "read_pandas", "read_schema", "read_metadata", "read_parquet", "ParquetFile", "ParquetDataset"}
PYTHON_FILES = {"PythonFile", "PyFileSystem"}
# These read with Arrow's threads unless they are told not to.
THREADED = {"read_row_group", "read_row_groups"}
ALLOWED = {
    "pipeline/storage/parquet.py": {"ParquetFile"},
    "benchmarks/bench_query.py": {"read_parquet"},  # a folder on the disk, which pandas opens without a Python file
    "benchmarks/peer_segment.py": {"read_table"},  # likewise
}
OUR_OWN = {"read_parquet"}  # where it is called by its bare name


def faults_of(text: str) -> set[str]:
    """Names of Arrow's and pandas' readers of Parquet that a source calls, and calls that may start their threads."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        is_method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        if name in READS | PYTHON_FILES and (is_method or name not in OUR_OWN):
            found.add(name)
        if is_method and name in THREADED and "use_threads" not in {keyword.arg for keyword in call.keywords}:
            found.add(f"{name} without use_threads")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_parquet_is_read_in_one_place(path: Path) -> None:
    assert faults_of(path.read_text()) <= ALLOWED.get(path.relative_to(ROOT).as_posix(), set())


def test_the_rule_itself_sees_other_reads() -> None:
    text = "pq.read_table(io.BytesIO(x))\npd.read_parquet(f)\nfile.read_row_groups([0])\nread_parquet(data)\n"
    assert faults_of(text) == {"read_table", "read_parquet", "read_row_groups without use_threads"}
