"""Dataclasses of settings check the ranges that their fields state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Oven(Settings):
    """Settings with each kind of limit."""

    trays: tuple[int, ...] = setting((1,), "Trays.", min_length=1)
    degrees: float = setting(description="Heat.", ge=0, le=250)
    share: float | None = setting(None, "Share.", gt=0, lt=1)


@pytest.mark.parametrize("values", [{"degrees": 0}, {"degrees": 250, "share": 0.5}, {"degrees": 1, "trays": (1, 2)}])
def test_values_up_to_the_limits_are_taken(values: dict) -> None:
    oven = Oven(**values)
    assert all(getattr(oven, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"degrees": -0.1}, "degrees is -0.1; it must be at least 0"),
        ({"degrees": 251}, "degrees is 251; it must be at most 250"),
        ({"degrees": float("nan")}, "degrees is nan; it must be at least 0"),
        ({"degrees": 1, "share": 0}, "share is 0; it must be greater than 0"),
        ({"degrees": 1, "share": 1}, "share is 1; it must be less than 1"),
        ({"degrees": 1, "trays": ()}, r"trays is \(\); it must be at least 1 long"),
    ],
)
def test_values_beyond_them_are_refused(values: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Oven(**values)


def test_a_setting_without_a_default_has_to_be_given() -> None:
    with pytest.raises(TypeError, match="degrees"):
        Oven()
