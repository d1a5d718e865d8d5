"""glibc's malloc keeps memory under our settings, and returns it when told to."""

import os
import platform
import subprocess
import sys

import pytest

from pipeline import malloc
from tests.paths import ROOT

NO_GLIBC = (
    "needs glibc, and Python runs with another C library (musl, macOS): GLIBC_TUNABLES and malloc_trim, which are "
    "measured here, do not exist in it; that give_back_holes then does nothing is tested by "
    "test_giving_back_is_harmless_everywhere, which runs with any C library"
)
PROGRAM = """
from pathlib import Path
import numpy as np
from pipeline import malloc

def resident_mib():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) >> 10

before = resident_mib()
blocks = [np.ones(1 << 19) for _ in range(64)]  # 4 MiB each
top = np.ones(1 << 16)  # nothing below it can be given back by making the heap smaller
del blocks
kept = resident_mib() - before
malloc.give_back_holes()
print(kept, resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason=NO_GLIBC)
def test_memory_is_kept_until_it_is_given_back() -> None:
    environment = os.environ | malloc.ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    kept_mib, remaining_mib = map(int, done.stdout.split())
    assert kept_mib >= 256 and remaining_mib < 16, done.stdout


def test_giving_back_is_harmless_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    malloc.give_back_holes()
    monkeypatch.setattr(malloc, "_trim", None)
    malloc.give_back_holes()


def test_giving_back_waits_for_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    now = [1000.0]
    monkeypatch.setattr(malloc, "_trim", calls.append)
    monkeypatch.setattr(malloc, "_given_back_at", 0.0)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for now[0] in (1000.0, 1004.9, 1005.0, 1009.0):
        malloc.give_back_holes(every_s=5.0)
    assert len(calls) == 2
    malloc.give_back_holes()
    assert len(calls) == 3
