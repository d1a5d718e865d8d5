"""Settings of verify, evaluate, compare, history, report and export, and of check-data and convert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from jobs.config.base import ClusterSection, OutputSection, Section
from pipeline.dataset.source import AnnotationSource, OptionalSource, UnknownCategories
from pipeline.dataset.types import FORMATS as ANNOTATION_FORMATS
from pipeline.evaluation.settings import BootstrapSettings, CountSettings, EvaluationSettings
from pipeline.results import EXPORT_FORMATS, FIGURES
from pipeline.settings import setting
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import Uri


class RunSection(Section):
    """A bulk run."""

    uri: Uri = Field(min_length=1, description="output.uri of the run.")


@dataclass(frozen=True, kw_only=True)
class EvaluateSection(EvaluationSettings):
    """What is measured, from which thresholds a detection counts as a true positive, and on how many cores."""

    num_shares: int = setting(
        1,
        "Parts of the run that are measured in parallel on Ray, one core each; 1 measures in this process, without "
        "Ray.",
        ge=1,
        le=10_000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unsharded = [name for name in self.also if name != "confusion"] + [f"slices {name}" for name in self.slices]
        unsharded += ["backend pycocotools"] if self.backend == "pycocotools" else []
        if self.num_shares > 1 and unsharded:
            raise ValueError(f"evaluate.num_shares is {self.num_shares}; allowed is 1 with {', '.join(unsharded)}")


class GateSection(Section):
    """Thresholds that a run must reach; otherwise the command ends with exit code 4."""

    min_ap: float | None = Field(
        None, ge=0, le=1, description="Least AP of segm; in compare, of compare.iou_type. Null checks nothing."
    )
    max_drop: float | None = Field(
        None, ge=0, le=1, description="compare: most that AP of run_b may lie below that of run_a. Null checks nothing."
    )


class HistorySection(Section):
    """The history of evaluations that this one is added to."""

    uri: Uri | None = Field(
        None, description="Folder to which each evaluation adds a small file; null keeps no history."
    )
    label: str | None = Field(None, description="Free text that names this evaluation in the history.")


class OptionalOutputSection(Section):
    """Where a command writes; by default beside what it reads."""

    uri: Uri | None = Field(
        None,
        description="Folder or file to write; null writes beside the run, under its name (check-data and history then "
        "write nothing).",
    )


class VerifyConfig(Section):
    """All settings of `maskfleet verify`."""

    run: RunSection
    storage: StorageSettings = Field(default_factory=StorageSettings)


class EvaluateConfig(Section):
    """All settings of `maskfleet evaluate`."""

    run: RunSection
    ground_truth: AnnotationSource
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    gate: GateSection = Field(default_factory=GateSection)
    history: HistorySection = Field(default_factory=HistorySection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)


@dataclass(frozen=True, kw_only=True)
class CompareSection(BootstrapSettings):
    """How two runs are compared, with ground truth or without."""

    min_score: float = setting(
        0.05, "Without ground truth: least score of the instances that are compared.", ge=0, le=1
    )


class CompareConfig(Section):
    """All settings of `maskfleet compare`."""

    run_a: RunSection
    run_b: RunSection
    ground_truth: OptionalSource = Field(default_factory=OptionalSource)
    evaluate: CountSettings = Field(default_factory=CountSettings)
    compare: CompareSection = Field(default_factory=CompareSection)
    gate: GateSection = Field(default_factory=GateSection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)


class KeptHistorySection(Section):
    """The history of evaluations that is shown."""

    uri: Uri = Field(min_length=1, description="Folder of the history, as history.uri of `maskfleet evaluate`.")
    figures: tuple[str, ...] = Field(
        FIGURES,
        min_length=1,
        description="Figures that are shown of each evaluation: kind of IoU and metric, such as 'segm recall'.",
    )


class HistoryConfig(Section):
    """All settings of `maskfleet history`."""

    history: KeptHistorySection
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)


class ReportSection(Section):
    """What the HTML report shows."""

    num_images: int = Field(120, ge=1, le=2000, description="Most images in the gallery.")
    evaluation: Uri | None = Field(
        None, description="Folder of an evaluation of the run; null takes RUN.evaluation where it exists."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choice of images.")


class ReportConfig(Section):
    """All settings of `maskfleet report`."""

    run: RunSection
    report: ReportSection = Field(default_factory=ReportSection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)


class ExportSection(Section):
    """Format and contents of the export."""

    to: Literal[EXPORT_FORMATS] = Field("coco", description="Format to write.")  # type: ignore[valid-type]
    min_score: float = Field(0.0, ge=0, le=1, description="Least score of the instances that are exported.")
    tolerance_px: float = Field(
        0.0,
        ge=0,
        description="Largest distance in pixels between a polygon and the mask's outline; 0 follows the outline "
        "exactly.",
    )


class ExportConfig(Section):
    """All settings of `maskfleet export`."""

    run: RunSection
    export: ExportSection = Field(default_factory=ExportSection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)


@dataclass(frozen=True, kw_only=True)
class CheckedDataSection(AnnotationSource):
    """An annotated data set, checked for a training on it."""

    in_channels: int = setting(3, "Channels that the network takes (model.spec.in_channels).", ge=1, le=64)
    extra_channels: Uri | None = setting(
        None,
        "Pattern of a second file for each image with its further channels, such as {folder}/../depth/{stem}.png; null "
        "is none.",
    )


class CheckDataConfig(Section):
    """All settings of `maskfleet check-data`."""

    data: CheckedDataSection
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)


class ConvertSection(Section):
    """How annotations are converted."""

    to: Literal[ANNOTATION_FORMATS] = Field("coco", description="Format to write.")  # type: ignore[valid-type]
    copy_photos: bool = Field(True, description="Copy the images; false refers to them where they are.")
    overlap: Literal["refuse", "smaller_on_top"] = Field(
        "refuse",
        description="To VOC or Cityscapes, objects that share pixels: 'refuse' them, or give the pixels to the "
        "smaller object.",
    )
    unknown: UnknownCategories = Field(
        "refuse",
        description="Objects of a category that the source does not declare: 'refuse' the set, 'ignore' them (keep "
        "them as ignored regions), or 'drop' them.",
    )


class ConvertConfig(Section):
    """All settings of `maskfleet convert`."""

    data: AnnotationSource
    convert: ConvertSection = Field(default_factory=ConvertSection)
    output: OutputSection
    storage: StorageSettings = Field(default_factory=StorageSettings)
