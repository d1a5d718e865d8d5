"""Settings of `maskfleet sweep`: the trials (cases, grid, seeds), published effects, and drawn data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.config.base import ClusterSection, OutputSection, Section, flatten
from jobs.config.places import OverridesOf
from jobs.config.tracking import TrainTrackingSection
from jobs.config.train import TrainConfig
from pipeline.storage.base import StorageSettings

Figure = Literal["segm_AP", "segm_AP50", "segm_AP75", "bbox_AP", "bbox_AP50", "bbox_AP75", "mean_iou"]


class EffectSection(Section):
    """A published difference between two cases, to compare the sweep's own with."""

    of: str = Field(min_length=1, description="Case that is said to be better or worse.")
    over: str = Field(min_length=1, description="The case it is compared with.")
    figure: Figure = Field("segm_AP", description="Name of the figure.")
    published: float = Field(description="Published figure of `of` minus that of `over`, in points (0.01 of AP).")
    source: str = Field(min_length=1, description="Where it was published.")


class SweepSection(Section):
    """The trials: every case, with every combination of the grid, with every seed."""

    base: str | None = Field(
        None,
        description="Configuration file of `maskfleet train` that every trial starts from; may name one that ships "
        "with the program.",
    )
    fixed: Annotated[dict[str, Any], OverridesOf(TrainConfig)] = Field(
        default_factory=dict, description="Overrides of the base that all trials share, by dotted key."
    )
    cases: dict[str, Annotated[dict[str, Any], OverridesOf(TrainConfig)]] = Field(
        default_factory=dict, description="Named groups of overrides; each case is one value of an axis of its own."
    )
    grid: Annotated[dict[str, list[Any]], OverridesOf(TrainConfig)] = Field(
        default_factory=dict, description="Lists of values to try, by dotted key; every combination is a trial."
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="Values of train.seed; the results are means and standard deviations over them."
    )
    effects: tuple[EffectSection, ...] = Field(
        (), description="Published differences between cases, shown beside those of the sweep."
    )
    trials_at_once: int | None = Field(
        None, ge=1, description="Trials that run at a time; null runs as many as the cluster has resources for."
    )
    max_failures: int = Field(
        2, ge=0, description="Times that a trial is started again after its own process was lost."
    )

    @field_validator("fixed", "grid", mode="before")
    @classmethod
    def _flatten(cls, values: Any) -> Any:
        return flatten(values) if values else values

    @field_validator("cases", mode="before")
    @classmethod
    def _flatten_cases(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: flatten(case) if case else {} for name, case in values.items()}

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
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
            if shared := sorted(case.keys() & self.grid.keys()):
                raise ValueError(f"{shared[0]} is in case {name!r} and in the grid; allowed is one of them")
        for effect in self.effects:
            for side in (effect.of, effect.over):
                if side not in self.cases:
                    raise ValueError(
                        f"effects: {side!r} is no case; allowed are {', '.join(self.cases) or 'none without cases'}"
                    )
        return self


class DrawSection(Section):
    """Drawn shapes, made by the sweep as its training and validation set."""

    num_train: int = Field(400, ge=1, description="Training images.")
    num_val: int = Field(60, ge=1, description="Validation images.")
    image_size: tuple[int, int] = Field(
        (128, 160), description="Mean height, width in pixels; each image differs by up to an eighth."
    )
    max_shapes: int = Field(4, ge=1, le=100, description="Most shapes in one image.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the drawn images.")


class SweepConfig(Section):
    """All settings of `maskfleet sweep`."""

    sweep: SweepSection
    draw: DrawSection | None = Field(
        None, description="Draw the data instead of reading data.train and data.val; null reads them."
    )
    output: OutputSection
    tracking: TrainTrackingSection = Field(default_factory=TrainTrackingSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
