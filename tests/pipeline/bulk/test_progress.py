"""Counts of many workers, some of which die: no image counts twice, and memory does not grow with the shards."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from ray.data import DataContext

from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.progress import describe
from jobs.segment import prepare_segment, run_segment
from pipeline.bulk.encode import ImageResult
from pipeline.bulk.listing import PlannedImage
from pipeline.bulk.progress import Progress, ShardCounter, StageClock, Tally, report_of
from pipeline.manifest import Commit, DataFile

OK = ImageResult(PlannedImage("a", "a"), "ok", instances={"score": [0.5, 0.4]})
BROKEN = ImageResult(PlannedImage("b", "b"), "corrupt")


def test_a_shard_begun_anew_counts_once_and_so_does_one_that_is_found_committed() -> None:
    tally = Tally()
    dies = ShardCounter("dies", tally.take, 7, StageClock())
    dies.add(OK)
    dies.flush()
    assert tally.counts()["statuses"] == {"ok": 1}
    other = ShardCounter("other", tally.take, 7, StageClock())
    other.add(OK)
    other.add(BROKEN)
    other.flush(committed=True)
    assert tally.counts()["statuses"] == {"ok": 1, "corrupt": 1} and tally.counts()["num_instances"] == 2
    empty = DataFile("k", 2, 0, "")
    tally.take(report_of("other", Commit("run", 7, "other", empty, empty, {"ok": 1, "corrupt": 1}, {})))
    timings_s = {"predict": 3.0, "wait_for_images": 1.0, "write": 9.0}
    tally.take(report_of("other", Commit("run", 8, "other", empty, empty, {"ok": 2}, timings_s)))
    counts = tally.counts()
    assert counts["statuses"] == {"ok": 3, "corrupt": 1} and counts["num_instances"] == 4
    assert counts["busy_share"] == 0.75 and counts["num_workers"] == 2 and tally.open == {}


def test_the_line_says_what_a_user_wants_to_know() -> None:
    progress = Progress(100, 10, {"ok": 40, "corrupt": 5}, 99, 9.0, num_workers=2, busy_share=0.8)
    assert describe(progress) == (
        "55/100 images  10 from before  5.0 images/s  99 instances  ETA 0:09  failed 5 (corrupt 5)  2 workers 80% busy"
    )


@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_reads_the_counts_of_a_run(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this, one worker may have done every shard before the other is there.
    monkeypatch.setattr(DataContext.get_current(), "wait_for_min_actors_s", 120)
    words = [f"model.checkpoint={tiny_checkpoint}", f"input.uri={photos}", f"output.uri={tmp_path / 'run'}"]
    seen: list[Progress] = []
    spread = ["segment.cpus_per_worker=1", "segment.num_workers=[2, 2]", "corpus.shard_size=4"]
    plan = prepare_segment(load_config(SegmentConfig, None, [*spread, *words]))
    totals = run_segment(plan, seen.append)
    assert seen[-1].num_done == 43 and seen[-1].num_instances == totals["num_instances"]
    assert seen[-1].num_workers == 2 and 0 < seen[-1].busy_share < 1
    expected = {f'images_total status="{status}"': count for status, count in totals["statuses"].items()}
    expected |= {"instances_total ": totals["num_instances"], "planned_images ": 43}
    deadline_s = time.monotonic() + 60
    while (found := metrics_of(plan.run_id)) != expected and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert found == expected


def metrics_of(run_id: str) -> dict[str, float]:
    """What this node tells Prometheus of a run, times aside."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if run_id in line and "_seconds" not in line]
    names = [re.search(r"maskfleet_(\w+)", line).group(1) for line in lines]
    tags = ["".join(re.findall(r'status="\w+"', line)) for line in lines]
    return {f"{name} {tag}": float(line.split()[-1]) for name, tag, line in zip(names, tags, lines)}
