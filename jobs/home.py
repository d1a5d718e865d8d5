"""The program's version, the folder of its packages, and the configurations that come with it."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.2.0"
HOME = Path(__file__).resolve().parents[1]  # a checkout, site-packages, or the unpacked package of a job


def shipped_configs() -> Path:
    """The folder of the configurations: `configs` of a checkout, inside the public package where it is installed."""
    installed = HOME / "maskfleet" / "configs"
    return installed if installed.is_dir() else HOME / "configs"
