"""The settings of what comes after a run: verify, evaluate, compare, history, report, export; and of annotations."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from jobs.config.base import ClusterSection, OutputSection, Section, StorageSection
from pipeline.dataset.types import FORMATS as ANNOTATION_FORMATS
from pipeline.results.export import FORMATS as EXPORT_FORMATS
from pipeline.results.history import FIGURES
from pipeline.schema import IMAGES_SCHEMA

AnnotationFormat = Literal[("auto", *ANNOTATION_FORMATS)]  # type: ignore[valid-type]


class RunSection(Section):
    """A bulk run."""

    uri: str = Field(min_length=1, description="The output.uri it was segmented into.")


class GroundTruthSection(Section):
    """The truth a run is measured against."""

    uri: str = Field(min_length=1, description="COCO JSON, or a folder with annotations.")
    format: AnnotationFormat = Field("auto", description="Form of the annotations.")
    image_root: str | None = Field(None, description="Folder of the photos; null looks beside the annotations.")
    default_category: str = Field("object", min_length=1, description="Name of the one class of VIA without classes.")


class FoundSection(Section):
    """What counts as found."""

    score_threshold: float = Field(
        0.5, ge=0, le=1, description="Score from which precision, recall and mean IoU count an instance; AP uses all."
    )
    iou_threshold: float = Field(0.5, gt=0, le=1, description="IoU from which an instance counts as found.")


class EvaluateSection(FoundSection):
    """What is measured, and what counts as found."""

    iou_types: tuple[Literal["bbox", "segm", "keypoints"], ...] = Field(
        ("bbox", "segm"), min_length=1, description="Kinds of overlap."
    )
    backend: Literal["auto", "compiled", "pycocotools"] = Field(
        "auto", description="Evaluator; auto takes the faster one where both give the same digits."
    )
    also: tuple[Literal["voc", "cityscapes", "confusion"], ...] = Field(
        (), description="Further figures: VOC's AP (area and 11 points), Cityscapes' AP of masks, the confusion matrix."
    )
    slices: tuple[Literal[("size", "crowding", "overlap", *IMAGES_SCHEMA.names)], ...] = Field(  # type: ignore[valid-type]
        (),
        description="Figures by size of the object, by crowding and overlap of the image, by any column of images/.",
    )
    num_shares: int = Field(
        1, ge=1, le=10_000, description="Parts of the run measured on Ray, a core each; 1 measures here, without Ray."
    )

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if "cityscapes" in self.also and "segm" not in self.iou_types:
            raise ValueError(
                f"evaluate.also has 'cityscapes', which measures masks; evaluate.iou_types is {list(self.iou_types)} "
                "and must have 'segm'"
            )
        if (self.also or self.slices) and self.iou_types == ("keypoints",):
            raise ValueError(
                "evaluate.also and evaluate.slices look at boxes or masks; evaluate.iou_types is ['keypoints'] and "
                "must have 'bbox' or 'segm'"
            )
        whole = [name for name in self.also if name != "confusion"] + [f"slices {name}" for name in self.slices]
        whole += ["backend pycocotools"] if self.backend == "pycocotools" else []
        if self.num_shares > 1 and whole:
            raise ValueError(f"evaluate.num_shares is {self.num_shares}; allowed is 1 with {', '.join(whole)}")
        return self


class GateSection(Section):
    """What a run has to reach; else the command ends with exit code 4."""

    min_ap: float | None = Field(None, ge=0, le=1, description="Least AP; of segm, or in compare of compare.iou_type.")
    max_drop: float | None = Field(None, ge=0, le=1, description="compare: most that AP may lie below the first run's.")


class HistorySection(Section):
    """Where every evaluation is kept."""

    uri: str | None = Field(None, description="Folder that each evaluation adds a small file to; null keeps none.")
    label: str | None = Field(None, description="A word of yours for this evaluation.")


class OptionalOutputSection(Section):
    """Where a command writes."""

    uri: str | None = Field(None, description="Folder or file to write; null is beside the run, named after it.")


class VerifyConfig(Section):
    """`maskfleet verify`."""

    run: RunSection
    storage: StorageSection = Field(default_factory=StorageSection)


class EvaluateConfig(Section):
    """`maskfleet evaluate`."""

    run: RunSection
    ground_truth: GroundTruthSection
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    gate: GateSection = Field(default_factory=GateSection)
    history: HistorySection = Field(default_factory=HistorySection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class CompareSection(Section):
    """How two runs are compared."""

    iou_type: Literal["segm", "bbox"] = Field("segm", description="Kind of overlap.")
    num_resamples: int = Field(300, ge=0, le=100_000, description="Bootstrap samples of the images; 0: no interval.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Of the interval.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the resampling.")
    min_score: float = Field(0.05, ge=0, le=1, description="Without ground truth: instances below are left out.")


class OptionalGroundTruthSection(Section):
    """The truth two runs are measured against; without it their outputs' drift is reported."""

    uri: str | None = Field(None, description="COCO JSON, or a folder with annotations; null compares without labels.")
    format: AnnotationFormat = Field("auto", description="Form of the annotations.")
    image_root: str | None = Field(None, description="Folder of the photos; null looks beside the annotations.")
    default_category: str = Field("object", min_length=1, description="Name of the one class of VIA without classes.")


class CompareConfig(Section):
    """`maskfleet compare`."""

    run_a: RunSection
    run_b: RunSection
    ground_truth: OptionalGroundTruthSection = Field(default_factory=OptionalGroundTruthSection)
    evaluate: FoundSection = Field(default_factory=FoundSection)
    compare: CompareSection = Field(default_factory=CompareSection)
    gate: GateSection = Field(default_factory=GateSection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class KeptHistorySection(Section):
    """A history of evaluations."""

    uri: str = Field(min_length=1, description="Folder that evaluations were kept in.")
    figures: tuple[str, ...] = Field(
        FIGURES, min_length=1, description="What is shown of each: kind of IoU and metric, such as 'segm recall'."
    )


class HistoryConfig(Section):
    """`maskfleet history`."""

    history: KeptHistorySection
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class ReportSection(Section):
    """What the report shows."""

    num_images: int = Field(120, ge=1, le=2000, description="Photos in the gallery at most.")
    evaluation: str | None = Field(None, description="Folder of an evaluation; null takes RUN.evaluation if there.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the choice of photos.")


class ReportConfig(Section):
    """`maskfleet report`."""

    run: RunSection
    report: ReportSection = Field(default_factory=ReportSection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class ExportSection(Section):
    """What is exported, and how."""

    to: Literal[EXPORT_FORMATS] = Field("coco", description="Form of the files.")  # type: ignore[valid-type]
    min_score: float = Field(0.0, ge=0, le=1, description="Instances below are left out.")
    tolerance_px: float = Field(0.0, ge=0, description="Polygons may lie this far beside the mask's outline.")


class ExportConfig(Section):
    """`maskfleet export`."""

    run: RunSection
    export: ExportSection = Field(default_factory=ExportSection)
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class AnnotationsSection(Section):
    """Annotated photos."""

    uri: str = Field(min_length=1, description="COCO JSON, or a folder with annotations.")
    format: AnnotationFormat = Field("auto", description="Form of the annotations.")
    image_root: str | None = Field(None, description="Folder of the photos; null looks beside the annotations.")
    default_category: str = Field("object", min_length=1, description="Name of the one class of VIA without classes.")


class CheckedDataSection(AnnotationsSection):
    """Annotated photos as a training would take them."""

    in_channels: int = Field(3, ge=1, le=64, description="Channels of the network (model.spec.in_channels).")
    extra_channels: str | None = Field(
        None, description="File with the last channels of a photo, such as {folder}/../depth/{stem}.png, if there is."
    )


class CheckDataConfig(Section):
    """`maskfleet check-data`."""

    data: CheckedDataSection
    output: OptionalOutputSection = Field(default_factory=OptionalOutputSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class ConvertSection(Section):
    """How annotations are converted."""

    to: Literal[ANNOTATION_FORMATS] = Field("coco", description="Form to write.")  # type: ignore[valid-type]
    copy_photos: bool = Field(True, description="Copy the photos; false refers to them where they are.")
    overlap: Literal["refuse", "smaller_on_top"] = Field(
        "refuse", description="VOC and Cityscapes: objects that share pixels are refused, or the smaller has them."
    )
    unknown: Literal["refuse", "ignore", "drop"] = Field(
        "refuse",
        description="Objects of a category that the source does not declare: refuse, keep as regions to be "
        "ignored, or leave out.",
    )


class ConvertConfig(Section):
    """`maskfleet convert`."""

    data: AnnotationsSection
    convert: ConvertSection = Field(default_factory=ConvertSection)
    output: OutputSection
    storage: StorageSection = Field(default_factory=StorageSection)
