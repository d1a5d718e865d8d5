"""Runs on disks that are full or read-only, or that hold files which a killed writer left half written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.base import StorageError
from tests.chaos.runs import check_exact, commits_of, segment_here

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB in memory; skips where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


@pytest.mark.long
def test_a_full_disk_ends_the_run_and_a_larger_one_finishes_it(
    small_disk: Path, tiny_checkpoint: Path, photos: Path, undisturbed: Path
) -> None:
    out = small_disk / "run"
    with pytest.raises(Exception, match="No space left on device"):
        segment_here(tiny_checkpoint, photos, out)
    survived = {path: path.read_bytes() for path in commits_of(out)}
    remount(small_disk, "size=20m")
    segment_here(tiny_checkpoint, photos, out)
    assert {path: path.read_bytes() for path in survived} == survived
    check_exact(out, undisturbed)


def test_a_read_only_disk_is_refused_before_anything_starts(
    small_disk: Path, tiny_checkpoint: Path, photos: Path
) -> None:
    remount(small_disk, "ro")
    with pytest.raises(StorageError, match=r"a first object cannot be written there: .*Read-only file system"):
        segment_here(tiny_checkpoint, photos, small_disk / "run")


@pytest.mark.long
def test_torn_files_are_not_counted_and_not_kept(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Leftovers of writers that died at any line: half files under temporary names, tables without a commit."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for name in ("manifest.parquet", "final.json", "commits/000000/000000004.json"):
        (out / name).unlink()
    whole = next(out.glob("instances/000000/000000004-*.parquet"))
    for torn in (
        "commits/000000/.000000004.json.0123456789ab.tmp",
        "instances/000000/.000000004-dead.parquet.0123456789ab.tmp",
        "instances/000000/000000004-dead.parquet",
        "images/000000/000000004-dead.parquet",
        "plan/part-000000-dead.parquet",
        ".manifest.parquet.0123456789ab.tmp",
    ):
        (out / torn).write_bytes(whole.read_bytes()[: os.stat(whole).st_size // 2])
    segment_here(tiny_checkpoint, photos, out)
    check_exact(out, undisturbed)
