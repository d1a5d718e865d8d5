"""`maskfleet segment` within the test's own process, and the rows that it wrote."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.segment import prepare_segment, run_segment
from pipeline.manifest import RunTotals


def config_of(checkpoint: Path, photos: Path, out: Path, *overrides: str) -> SegmentConfig:
    """The configuration of a run of one-core workers."""
    uris = [f"model.checkpoint={checkpoint}", f"input.uri={photos}", f"output.uri={out}"]
    return load_config(SegmentConfig, None, ["segment.cpus_per_worker=1", *uris, *overrides])


def predictor_config(name: str, code: Path, photos: Path, out: Path, *overrides: str) -> SegmentConfig:
    """The configuration of a run of one-core workers with a predictor of the user's own."""
    words = [f"segment.predictor={name}", f"segment.predictor_path={code}", f"input.uri={photos}", f"output.uri={out}"]
    return load_config(SegmentConfig, None, ["segment.cpus_per_worker=1", *words, *overrides])


def segment(checkpoint: Path, photos: Path, out: Path, *overrides: str) -> RunTotals:
    """Segments on the Ray that this process has; returns the run's totals."""
    return run_segment(prepare_segment(config_of(checkpoint, photos, out, *overrides)))


def sorted_rows(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images and the instances of a sealed run, in an order that does not depend on how they were written."""
    images = pd.read_parquet(out / "images").sort_values("image_id", ignore_index=True)
    instances = pd.read_parquet(out / "instances").sort_values(["image_id", "instance"], ignore_index=True)
    return images, instances
