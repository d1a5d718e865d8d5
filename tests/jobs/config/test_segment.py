"""The settings of segment and retry: what contradicts itself is refused, and defaults are those of the pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.config.load import ConfigError, load_config, to_plain
from jobs.config.segment import DecodeSection, RetryConfig, SegmentConfig
from pipeline.images.decode_pool import DecodeLimits
from pipeline.schema import RETRYABLE

PLACES = ["model.checkpoint=m", "input.uri=in", "output.uri=out"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["segment.num_workers=[3, 2]"], "num_workers is [3, 2]; allowed is [min, max]"),
        (["segment.num_workers=[0, 2]"], "num_workers is [0, 2]; allowed is [min, max] with 1 <= min <= max"),
        (["segment.engine=openvino", "segment.gpus_per_worker=1"], "engine is openvino; allowed with gpus_per_worker"),
        (["segment.mode=int8", "segment.engine=torch"], "engine is torch; allowed in mode int8 is auto or openvino"),
        (["segment.precision=bfloat16"], "precision is bfloat16; allowed in mode exact is float32"),
        (["segment.slice.size=1000", "segment.slice.overlap=501"], "overlap is 501; allowed is at most half of size"),
        (["input.kind=zip"], "input.kind: 'zip' is not allowed"),
        (["corpus.shard_size=0"], "corpus.shard_size: 0 is not allowed"),
        (["segment.refine.batch_size=8"], "segment.refine.model"),
        (["segment.refine=o/sam"], "segment.refine: 'o/sam' is not allowed: it is a section, with the keys batch_size"),
        (["segment.refine.model=/sam", "segment.refine.batch_size=0"], "segment.refine.batch_size: 0 is not allowed"),
        (
            ["segment.refine.model=/sam", "segment.refine.revision=main"],
            "revision is 'main'; allowed with the name of a model on the hub only",
        ),
        (
            ["segment.refine.model=/sam", "decode.scaled=true"],
            "decode.scaled is true; not allowed with segment.refine, which gets whole images",
        ),
        (["segment.predictor=mine"], "segment.predictor: 'mine' is not allowed"),
        (["segment.predictor=a-b:C"], "segment.predictor: 'a-b:C' is not allowed"),
        (
            ["segment.predictor_path=code"],
            "segment.predictor_path is 'code'; allowed is none without segment.predictor",
        ),
        (["segment.predictor_settings.a=1"], "segment.predictor_settings is {'a': 1}; allowed is none without"),
        (["segment.predictor=mine:Mine"], "the settings of model are not allowed with segment.predictor"),
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SegmentConfig, None, [*PLACES, *words])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("words", "section"),
    [
        (["segment.num_workers=[2, 2]"], {"num_workers": [2, 2]}),
        (["segment.mode=fast", "segment.precision=bfloat16"], {"mode": "fast", "precision": "bfloat16"}),
        (["segment.slice.size=1000", "segment.slice.overlap=500"], {"slice": {"overlap": 500}}),
        (["segment.slice.size=256"], {"slice": {"overlap": 128}}),
    ],
)
def test_the_limits_themselves_are_allowed(words: list[str], section: dict[str, Any]) -> None:
    segment = to_plain(load_config(SegmentConfig, None, [*PLACES, *words]))["segment"]
    for key, value in section.items():
        assert segment[key] | value == segment[key] if isinstance(value, dict) else segment[key] == value


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["segment.mode=fast"], "segment.mode is fast; not allowed with segment.predictor, which knows its own"),
        (["segment.precision=float32"], "segment.precision is float32; not allowed with segment.predictor"),
        (["segment.engine=openvino"], "segment.engine is openvino; not allowed with segment.predictor"),
        (["decode.scaled=true"], "decode.scaled is true; not allowed with segment.predictor"),
        (["model.classes=[a]"], "the settings of model are not allowed with segment.predictor"),
        (["segment.predictor_settings.day=2024-01-01 10:00:00"], None),
        (["segment.predictor_settings={a: .nan}"], "predictor_settings.a is nan; allowed are text, finite numbers"),
        (["segment.predictor_settings={1: 2}"], None),
        (["segment.predictor_timeout_s=0"], "segment.predictor_timeout_s: 0 is not allowed"),
    ],
)
def test_a_predictor_of_the_users_own_takes_the_place_of_the_checkpoint(words: list[str], sentence: str | None) -> None:
    places = ["segment.predictor=mine.deep:Mine", "input.uri=in", "output.uri=out"]
    config = load_config(SegmentConfig, None, places)
    assert config.model.checkpoint == "mine.deep:Mine"
    assert load_config(RetryConfig, None, [], base=to_plain(config)).segment == config.segment
    if sentence is None:
        assert load_config(SegmentConfig, None, [*places, *words])
        return
    with pytest.raises(ConfigError) as caught:
        load_config(SegmentConfig, None, [*places, *words])
    assert sentence in str(caught.value)


def test_decoding_is_limited_as_the_pipeline_limits_it() -> None:
    limits = DecodeSection(scaled=True, max_pixels=5).limits()
    assert type(limits) is DecodeLimits and limits == DecodeLimits(max_pixels=5)


def test_retry_takes_the_settings_of_a_run_and_tries_what_may_succeed_later() -> None:
    run = to_plain(load_config(SegmentConfig, None, [*PLACES, "segment.batch_size=7"]))
    config = load_config(RetryConfig, None, [], base=run)
    assert config.segment.batch_size == 7 and config.retry.statuses == RETRYABLE
    with pytest.raises(ConfigError, match=r"retry\.statuses.*not allowed"):
        load_config(RetryConfig, None, ["retry.statuses=[broken]"], base=run)
