"""Peak resident memory of the calling process, for benchmarks."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """Largest resident size of this program so far, in MiB; getrusage would also count its parent's before `exec`."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
