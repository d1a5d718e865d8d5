"""Peak memory of the program that asks."""

from __future__ import annotations

from pathlib import Path


def peak_mib() -> float:
    """Largest resident size so far, in MiB, of this program alone; getrusage would also count what its parent held."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
