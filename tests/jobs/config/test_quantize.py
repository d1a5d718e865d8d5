"""Settings of quantize: a model, photos and a place are enough; what is out of range is named."""

from __future__ import annotations

import pytest

from jobs.config.load import ConfigError, load_config
from jobs.config.quantize import QuantizeConfig

WORDS = ["model.checkpoint=coco", "data.calibration=photos", "output.uri=out"]


def test_a_model_photos_and_a_place_are_enough() -> None:
    config = load_config(QuantizeConfig, None, WORDS)
    assert (config.quantize.num_photos, config.quantize.max_ap_drop, config.data.val) == (300, 1.0, None)
    assert config.data.calibration_places == ("photos",)
    several = load_config(QuantizeConfig, None, [*WORDS, "data.calibration=[a, b/*.jpg]"])
    assert several.data.calibration_places == ("a", "b/*.jpg")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.calibration=[]", r"data\.calibration"),
        ("quantize.num_photos=0", r"quantize\.num_photos: 0 is not allowed"),
        ("quantize.max_ap_drop=-1", r"quantize\.max_ap_drop: -1 is not allowed"),
        ("quantize.precision=int4", "there is no such key"),
    ],
)
def test_what_is_not_allowed_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(QuantizeConfig, None, [*WORDS, word])
