"""The settings of augmentation: a flip by default, every range checked."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from pipeline.dataset.transforms.settings import RESIZES, Augmentation, Resize


def test_images_are_only_flipped_by_default() -> None:
    changed = {name: value for name, value in dataclasses.asdict(Augmentation()).items() if value}
    assert changed == {
        "horizontal_flip": 0.5,
        "resize": "none",
        "resize_size": (512, 512),
        "short_sides": (800,),
        "max_size": 1333,
        "jitter_scales": (0.1, 2.0),
    }
    assert get_args(Resize) == RESIZES


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vertical_flip": 1.1}, "vertical_flip is 1.1; it must be at most 1"),
        ({"hue": 0.6}, "hue is 0.6; it must be at most 0.5"),
        ({"rotation_degrees": -1}, "rotation_degrees is -1; it must be at least 0"),
        ({"short_sides": ()}, "short_sides"),
        ({"max_size": 0}, "max_size is 0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augmentation(**values)
