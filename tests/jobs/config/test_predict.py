"""Settings of predict: photos are needed, the rest has defaults."""

from __future__ import annotations

import pytest

from jobs.config.load import ConfigError, load_config
from jobs.config.predict import PredictConfig


def test_a_model_and_photos_are_enough() -> None:
    config = load_config(PredictConfig, None, ["model.checkpoint=coco", "input.photos=[a.jpg]"])
    assert (config.output.uri, config.predict.score_threshold, config.predict.device) == ("predictions", 0.5, None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("input.photos=[]", r"input\.photos: .* at least 1 item"),
        ("predict.score_threshold=2", r"predict\.score_threshold: 2 is not allowed"),
        ("predict.device=tpu", r"predict\.device: 'tpu' is not allowed"),
        ("predict.treshold=0.5", "there is no such key"),
    ],
)
def test_what_is_not_allowed_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PredictConfig, None, ["model.checkpoint=coco", "input.photos=[a.jpg]", word])
