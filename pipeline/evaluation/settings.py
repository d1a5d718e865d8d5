"""Settings of an evaluation and of a comparison of two runs; the configuration's sections are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.coco import BACKENDS, MAX_DETECTIONS
from pipeline.evaluation.iou import IOU_TYPES
from pipeline.schema import IMAGES_SCHEMA
from pipeline.settings import Settings, setting

ALSO = ("voc", "cityscapes", "confusion")


@dataclass(frozen=True, kw_only=True)
class CountSettings(Settings):
    """Which detections and classes count."""

    score_threshold: float = setting(
        0.5,
        "Least score of the instances that precision, recall and mean IoU count; AP uses all instances.",
        ge=0,
        le=1,
    )
    iou_threshold: float = setting(
        0.5,
        "Least IoU with an annotated object for a true positive in precision, recall and mean IoU.",
        gt=0,
        le=1,
    )
    max_detections: int = setting(
        MAX_DETECTIONS,
        "Detections of an image and class that AP counts at most, best scores first; precision and recall count all.",
        ge=1,
        le=1_000_000,
    )
    classes: tuple[str, ...] | None = setting(
        None, "Names of the classes that are measured; null measures all of the ground truth.", min_length=1
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(CountSettings):
    """What is measured, and from which thresholds a detection counts as a true positive.

    Raises:
        ValueError: a value that is not allowed, or figures that need boxes or masks where they are not measured.
    """

    iou_types: tuple[Literal["bbox", "segm", "keypoints"], ...] = setting(
        ("bbox", "segm"),
        "What the IoU is of: bounding boxes (bbox), masks (segm), or object keypoint similarity (keypoints).",
        min_length=1,
    )
    backend: Literal["auto", "compiled", "pycocotools"] = setting(
        "auto", "Evaluator: compiled, or pycocotools for COCO's own; auto is compiled. All give identical figures."
    )
    also: tuple[Literal["voc", "cityscapes", "confusion"], ...] = setting(
        (), "Further figures: VOC's AP (area and 11 points), Cityscapes' AP of masks, the confusion matrix."
    )
    slices: tuple[Literal[("size", "crowding", "overlap", *IMAGES_SCHEMA.names)], ...] = setting(  # type: ignore[valid-type]
        (),
        "Break figures down by object size, by crowding and overlap of the image, or by any column of images/.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = (("iou_types", self.iou_types, IOU_TYPES), ("also", self.also, ALSO))
        for name, values, allowed in (*choices, ("backend", (self.backend,), BACKENDS)):
            if unknown := [value for value in values if value not in allowed]:
                raise ValueError(f"{name} is {unknown[0]!r}; allowed are {', '.join(allowed)}")
        if "cityscapes" in self.also and "segm" not in self.iou_types:
            raise ValueError(
                f"also has 'cityscapes', which measures masks; iou_types is {list(self.iou_types)} and must have 'segm'"
            )
        if (self.also or self.slices) and not {"bbox", "segm"} & set(self.iou_types):
            raise ValueError(
                f"also and slices look at boxes or masks; iou_types is {list(self.iou_types)} and must have 'bbox' or "
                "'segm'"
            )

    @property
    def breakdown_type(self) -> Literal["segm", "bbox"]:
        """The kind of IoU of slices and confusion matrix."""
        return "segm" if "segm" in self.iou_types else "bbox"


@dataclass(frozen=True, kw_only=True)
class BootstrapSettings(Settings):
    """How two runs are compared."""

    iou_type: Literal["segm", "bbox"] = setting("segm", "What the IoU is of: masks (segm) or boxes (bbox).")
    num_resamples: int = setting(
        300, "Bootstrap samples of the images for the confidence interval; 0 computes none.", ge=0, le=100_000
    )
    confidence: float = setting(0.95, "Confidence level of the interval.", gt=0, lt=1)
    seed: int = setting(0, "Seed of the resampling.", ge=0, lt=2**31)
    only_common: bool = setting(
        True,
        "Compare on the images that both runs have; false takes all of the ground truth, where objects on images that "
        "a run does not have count as missed.",
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(BootstrapSettings, CountSettings):
    """How two runs are compared, and which detections and classes count."""
