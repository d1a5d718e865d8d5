"""The pool of a bulk run's actors on a real Ray: their environment, and the counts that Prometheus reads."""

from __future__ import annotations

import dataclasses
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

from jobs.segment import bulk_job, prepare_segment, run_segment
from pipeline.bulk.progress import Progress
from pipeline.bulk.run import segment_corpus
from tests.pipeline.bulk.faulty_predictors import DemandingPredictor
from tests.pipeline.bulk.segmenting import config_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.long
def test_actors_start_with_the_malloc_settings(tiny_checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    plan = prepare_segment(config_of(tiny_checkpoint, photos, tmp_path / "run", "segment.num_workers=[1, 1]"))
    totals = segment_corpus(dataclasses.replace(bulk_job(plan), predictor=DemandingPredictor))
    assert totals.statuses["ok"] == 40


@pytest.mark.long
def test_prometheus_reads_the_counts_of_a_run(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this, one worker may have done every shard before the other is there.
    monkeypatch.setattr(DataContext.get_current(), "wait_for_min_actors_s", 120)
    progress_seen: list[Progress] = []
    spread = ["segment.num_workers=[2, 2]", "corpus.shard_size=4"]
    plan = prepare_segment(config_of(tiny_checkpoint, photos, tmp_path / "run", *spread))
    totals = run_segment(plan, progress_seen.append)
    last = progress_seen[-1]
    assert last.num_done == 43 and last.num_instances == totals.num_instances
    assert last.num_workers == 2 and 0 < last.busy_share < 1
    expected = {f'images_total status="{status}"': count for status, count in totals.statuses.items()}
    expected |= {"instances_total ": totals.num_instances, "planned_images ": 43}
    deadline_s = time.monotonic() + 60
    while (counts := metrics_of(plan.run_id)) != expected and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert counts == expected


def metrics_of(run_id: str) -> dict[str, float]:
    """What this node tells Prometheus of a run, except for the seconds of its stages."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = [line for line in response.read().decode().splitlines() if run_id in line and "_seconds" not in line]
    names = [name for line in lines for name in re.findall(r"maskfleet_(\w+)", line)[:1]]
    tags = ["".join(re.findall(r'status="\w+"', line)) for line in lines]
    return {f"{name} {tag}": float(line.split()[-1]) for name, tag, line in zip(names, tags, lines, strict=True)}
