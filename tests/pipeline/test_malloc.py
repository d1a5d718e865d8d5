"""glibc's malloc keeps memory under our settings, and returns it when told to."""

import os
import platform
import subprocess
import sys

import pytest

from pipeline import malloc
from tests.paths import ROOT

NO_GLIBC = "needs glibc: another C library (musl, macOS) has neither GLIBC_TUNABLES nor malloc_trim, measured here"
PROGRAM = """
from pathlib import Path
import numpy as np
from pipeline import malloc

def resident_mib():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) >> 10

def make_holes():
    blocks = [np.ones(1 << 19) for _ in range(64)]  # 4 MiB each
    return np.ones(1 << 16)  # nothing below it can be given back by making the heap smaller

before = resident_mib()
top = make_holes()
kept = resident_mib() - before
malloc.give_back_holes()
remaining = resident_mib() - before
top = make_holes()
malloc.give_back_holes(every_s=1000)  # was done just now
print(kept, remaining, resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason=NO_GLIBC)
def test_memory_is_kept_until_it_is_given_back_which_waits_for_its_interval() -> None:
    environment = os.environ | malloc.ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    kept_mib, remaining_mib, too_early_mib = map(int, done.stdout.split())
    assert kept_mib >= 250 and remaining_mib < 16 and too_early_mib >= 250, done.stdout  # of 256
