"""Programs for the tests from Debian's packages: fetched once into a cache folder and unpacked there, not installed."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

# Taken when the tests are collected: some of them give their processes a cache folder of their own.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskfleet" / "debian"
TRIPLET = f"{platform.machine()}-linux-gnu"


class Unavailable(Exception):
    """A program is not here and cannot be had; the message says why."""


def unpacked(name: str, *packages: str) -> Path:
    """The folder `name` of the cache, which holds the packages and what they need and is not installed, unpacked.

    Raises:
        Unavailable: They are neither there nor can they be fetched.
    """
    root = CACHE / name
    if root.exists():
        return root
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{', '.join(packages)}: {tool}, which would fetch them, is not here")
    plan = ["apt-get", "install", "--simulate", "--no-install-recommends", *packages]
    try:
        planned = _output(plan)
    except Unavailable:  # a fresh machine has no lists yet
        _output(["apt-get", "update"])
        planned = _output(plan)
    names = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        _output(["apt-get", "download", *names], cwd=Path(folder))
        whole = Path(folder) / "root"
        for package in sorted(Path(folder).glob("*.deb")):
            _output(["dpkg", "-x", str(package), str(whole)])
        with contextlib.suppress(FileExistsError):  # another process was faster
            whole.rename(root)
    return root


def library_folders(root: Path) -> list[Path]:
    """The folders of an unpacked root with shared libraries, for LD_LIBRARY_PATH."""
    folders = [root / "usr/lib" / TRIPLET, root / "usr/lib", root / "lib" / TRIPLET]
    # Some packages keep libraries of their own in a folder below, which an installed program finds by itself.
    return folders + sorted({path.parent for path in folders[0].glob("*/*.so*")})


def _output(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"`{' '.join(command[:3])} ...` failed: {done.stderr.strip()[-300:]}")
    return done.stdout
