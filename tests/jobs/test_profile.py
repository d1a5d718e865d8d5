"""`--profile`: the table of stages, and the advice that follows from it."""

from __future__ import annotations

import pytest

from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.profile import describe_profile
from pipeline.bulk.progress import Progress


def config_of(*words: str) -> SegmentConfig:
    return load_config(SegmentConfig, None, ["model.checkpoint=m", "input.uri=i", "output.uri=o", *words])


def profile_of(*words: str, **stages_s: float) -> str:
    progress = Progress(100, 0, {"ok": 90, "corrupt": 10}, 5, elapsed_s=50.0, stages_s=stages_s)
    return describe_profile(progress, config_of(*words))


def test_each_stage_has_its_time_and_share() -> None:
    text = profile_of(
        wait_for_images=1.0, predict=18.0, wait_for_encoding=1.0, write=1.0, fetch=2.0, decode=9.0, encode=0.5
    )
    assert "100 images in 50.0 s, 20.0 s of workers at work" in text
    rows = {line.split()[0]: line.split()[1:4] for line in text.splitlines() if line.startswith("  ")}
    assert rows["predict"] == ["18.00", "90%", "180.00"]
    assert rows["decode"] == ["9.00", "beside", "90.00"]
    assert rows["write"] == ["1.00", "beside", "10.00"]
    assert "the predictor is the bottleneck, as it should be; it works 90% of the time" in text


@pytest.mark.parametrize(
    ("stages_s", "sentence"),
    [
        ({"predict": 10.0, "wait_for_images": 9.0, "decode": 36.0}, "segment.decode_children=5 would keep it busy"),
        ({"predict": 10.0, "wait_for_images": 9.0, "decode": 3.0, "fetch": 40.0}, "waits for files to be read"),
        ({"predict": 10.0, "wait_for_images": 2.0, "decode": 3.0}, "waits at the beginning of each shard"),
        ({"predict": 10.0, "decode": 3.0}, "1 of 4 decode children are enough"),
        ({"predict": 10.0, "write": 3.0}, "a larger corpus.shard_size writes fewer files"),
        ({"wait_for_images": 2.0}, "no image reached the network"),
    ],
)
def test_advice(stages_s: dict[str, float], sentence: str) -> None:
    assert sentence in profile_of("segment.decode_children=4", **stages_s)


def test_the_ratio_of_cores_to_gpus() -> None:
    text = profile_of("segment.gpus_per_worker=1", predict=10.0, wait_for_images=8.0, decode=60.0)
    assert "the GPU waits for decoding" in text
    assert "for each GPU 8 cores decode and one does the rest" in text
    assert "segment.decode_children=8 segment.cpus_per_worker=9" in text


def test_a_call_that_found_nothing_to_do() -> None:
    assert describe_profile(Progress(9, 9, {}, 0, 1.0), config_of()) == "profile: this call has segmented nothing"
