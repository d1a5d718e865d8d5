"""The settings of `maskfleet sweep`: what every trial shares, and what they differ in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.config.base import ClusterSection, OutputSection, Section, StorageSection, flatten

Figure = Literal["segm_AP", "segm_AP50", "segm_AP75", "bbox_AP", "bbox_AP50", "bbox_AP75", "mean_iou"]


class EffectSection(Section):
    """A difference between two cases that was published."""

    of: str = Field(min_length=1, description="The case that is said to be better, or worse.")
    over: str = Field(min_length=1, description="The case it is compared with.")
    figure: Figure = Field("segm_AP", description="The figure that is compared.")
    published: float = Field(description="The published difference, in points (0.01 of AP).")
    source: str = Field(min_length=1, description="Where it was published.")


class SweepSection(Section):
    """The trials: every case with every combination of the grid and every seed."""

    base: str | None = Field(None, description="Configuration of `maskfleet train` that every trial starts from.")
    fixed: dict[str, Any] = Field(default_factory=dict, description="Overrides of the base, the same in every trial.")
    cases: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Overrides that go together, by name; an axis of its own."
    )
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="Values to try, by key.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Values of train.seed, for the spread.")
    effects: tuple[EffectSection, ...] = Field((), description="Published differences to compare with.")
    trials_at_once: int | None = Field(
        None, ge=1, description="Trials that run at a time; null is as many as the cluster has room for."
    )
    max_failures: int = Field(2, ge=0, description="Times that a trial whose own process was lost is started again.")

    @field_validator("fixed", "grid", mode="before")
    @classmethod
    def _dotted(cls, values: Any) -> Any:
        return flatten(values) if values else values

    @field_validator("cases", mode="before")
    @classmethod
    def _dotted_cases(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: flatten(case) if case else {} for name, case in values.items()}

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {key} has no values; allowed is a list of at least one")
        for key in [*self.fixed, *self.grid, *(key for case in self.cases.values() for key in case)]:
            if key.split(".")[0] not in ("model", "data", "train") or key == "train.seed":
                raise ValueError(
                    f"{key} is not allowed in fixed, cases or grid; allowed are keys of model, data and train, "
                    "and sweep.seeds for train.seed"
                )
        for name, case in self.cases.items():
            if both := sorted(case.keys() & self.grid.keys()):
                raise ValueError(f"{both[0]} is in case {name!r} and in the grid; allowed is one of them")
        for effect in self.effects:
            for side in (effect.of, effect.over):
                if side not in self.cases:
                    raise ValueError(
                        f"effects: {side!r} is no case; allowed are {', '.join(self.cases) or 'none without cases'}"
                    )
        return self


class DrawSection(Section):
    """Drawn shapes as training and validation set."""

    num_train: int = Field(400, ge=1, description="Training images.")
    num_val: int = Field(60, ge=1, description="Validation images.")
    image_size: tuple[int, int] = Field((128, 160), description="Height, width in pixels; they vary by an eighth.")
    max_shapes: int = Field(4, ge=1, le=100, description="Shapes on an image, at most.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the drawings.")


class SweepConfig(Section):
    """`maskfleet sweep`."""

    sweep: SweepSection
    draw: DrawSection | None = Field(None, description="Draw the data rather than take data.train and data.val.")
    output: OutputSection
    storage: StorageSection = Field(default_factory=StorageSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
