"""`RunSpec`: what a bulk run is, as run.json holds it; everything in it can change a row, and its hash is the run's id.

Batch size, number of workers and hardware are not part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.settings import Settings, setting

_DEFAULT_ENGINE = "torch"


@dataclass(frozen=True)
class Slicing(Settings):
    """Sliced prediction of large images: overlapping slices are predicted one by one and their instances merged."""

    size: int = setting(
        description="Side of a slice in pixels; images with a longer side are sliced.", ge=64, le=16_384
    )
    overlap: int = setting(128, "Least overlap of neighbouring slices, in pixels; at most half of size.", ge=0)
    merge_iou: float = setting(
        0.5,
        "Mask IoU within the overlap of two slices from which two detections are merged into one instance.",
        gt=0,
        le=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap > self.size // 2:
            raise ValueError(f"overlap is {self.overlap}; allowed is at most half of size, {self.size // 2}")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Where the images are.

    Attributes:
        uri: the folder, list, inventory or tar files, absolute.
        kind: one of `pipeline.bulk.listing.KINDS`.
        pattern: glob that names in a folder must match.
        uri_column: column of a list that holds the URIs.
        extra_channels: pattern of the file whose bands follow the photo's, see `pipeline.storage.uri.aligned_uri`.
        since_run: URI of an earlier run whose images are left out; None leaves out none.
    """

    uri: str = ""
    kind: str = "folder"
    pattern: str = "*"
    uri_column: str = "uri"
    extra_channels: str | None = None
    since_run: str | None = None


@dataclass(frozen=True)
class RunCategory:
    """A class of the model: the data set's own id, and its name."""

    id: int
    name: str


@dataclass(frozen=True, kw_only=True)
class PredictorSpec:
    """A predictor of the user's own, see `pipeline.predictors.contract`.

    Attributes:
        name: "package.module:Class".
        settings: what the class is called with, JSON values by name.
        code_sha256: hash of the files of its folder, or of its installed package.
        identity: what it says of itself, such as the hash of its weights; "" where it says nothing.
        in_channels: channels of the images that it takes.
    """

    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    code_sha256: str = ""
    identity: str = ""
    in_channels: int = 3


@dataclass(frozen=True, kw_only=True)
class RunModel:
    """The model that predicts: Mask R-CNN, or a predictor of the user's own.

    Attributes:
        sha256: hash of its weights; of a user's predictor, of all that it is.
        spec: its `ModelSpec` as JSON; {} of a user's predictor.
        categories: its class map: label = index + 1.
        predictor: the user's predictor; None is Mask R-CNN, and is not written to run.json.
    """

    sha256: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    categories: tuple[RunCategory, ...] = ()
    predictor: PredictorSpec | None = None

    @property
    def in_channels(self) -> int:
        """Channels of the images that it takes."""
        return self.spec["in_channels"] if self.predictor is None else self.predictor.in_channels


@dataclass(frozen=True, kw_only=True)
class RefineSpec:
    """The network that makes the masks anew from the boxes.

    Attributes:
        kind: 'sam' or 'sam2'.
        name: OWNER/NAME on the Hugging Face hub; "" of a folder, whose place does not matter.
        revision: the hub's commit; "" of a folder.
        sha256: hash of its weights and configuration.
    """

    kind: str = "sam"
    name: str = ""
    revision: str = ""
    sha256: str = ""

    @property
    def title(self) -> str:
        """The network in a few words: "SAM facebook/sam-vit-base 0123456789ab"; of a folder its hash alone."""
        name = {"sam": "SAM", "sam2": "SAM 2"}.get(self.kind, self.kind)
        return " ".join(word for word in (name, self.name, self.sha256[:12]) if word)


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """What is kept of what the model predicts, and how it computes.

    Attributes:
        mode: 'exact', 'fast' or 'int8'.
        precision: 'float32', 'bfloat16' or 'int8'.
        engine: what runs the network's dense parts, one of `model.inference.predictor.ENGINES`. run.json leaves torch
            out, as the runs did that were begun when there was no other.
        score_threshold: detections with a lower score are dropped; None in run files that do not say.
        score_thresholds: those of some classes, by name; they take the place of score_threshold.
        max_detections: detections of one image, at most.
        mask_threshold: probability from which a pixel belongs to a mask.
        slice: how large images are cut; None cuts none.
        refine: the network that makes the masks anew from the boxes; None leaves them as they are, and is not written
            to run.json.
    """

    mode: str = "exact"
    precision: str = "float32"
    score_threshold: float | None = None
    max_detections: int = 100
    mask_threshold: float = 0.5
    slice: Slicing | None = None
    score_thresholds: Mapping[str, float] = field(default_factory=dict)
    refine: RefineSpec | None = None
    engine: str = _DEFAULT_ENGINE


@dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """Which files are decoded, and how.

    Attributes:
        max_bytes: largest file.
        max_pixels: largest image.
        max_frames: most frames of an animation.
        formats: formats that are decoded, sorted.
        scaled: whether JPEGs are decoded at a half, a quarter or an eighth where the network shrinks them further.
    """

    max_bytes: int = 0
    max_pixels: int = 0
    max_frames: int = 0
    formats: tuple[str, ...] = ()
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run is: the images, the model, what is kept, how files are decoded."""

    schema_version: int
    input: InputSpec = field(default_factory=InputSpec)
    model: RunModel = field(default_factory=RunModel)
    segment: SegmentSpec = field(default_factory=SegmentSpec)
    decode: DecodeSpec = field(default_factory=DecodeSpec)

    def to_json(self) -> dict[str, Any]:
        """The specification as JSON values; `pipeline.manifest.to_json` of it is run.json.

        What came later than the first runs is left out at its default, so that their documents and ids stay.
        """
        document: dict[str, Any] = _to_plain(self)
        if not self.segment.score_thresholds:
            del document["segment"]["score_thresholds"]
        if self.segment.engine == _DEFAULT_ENGINE:
            del document["segment"]["engine"]
        if self.segment.refine is None:
            del document["segment"]["refine"]
        if self.model.predictor is None:
            del document["model"]["predictor"]
        return document

    @property
    def highest_score_threshold(self) -> float | None:
        """The highest of the classes' score thresholds; None where run.json does not say."""
        if self.segment.score_threshold is None:
            return None
        by_name = self.segment.score_thresholds
        thresholds = [by_name.get(category.name, self.segment.score_threshold) for category in self.model.categories]
        return max(thresholds, default=self.segment.score_threshold)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunSpec:
        """The specification that run.json holds.

        A field that an older run lacks takes its default; one that a newer run has beside ours is left out. Whether a
        run may be resumed is not asked of this: `pipeline.bulk.commit.check_run` compares whole documents.

        Raises:
            ValueError: a section or an entry is of another form.
        """
        model, segment, decode = (_section(document, name) for name in ("model", "segment", "decode"))
        try:
            categories = tuple(RunCategory(**_known(RunCategory, each)) for each in model.pop("categories", ()))
            slice_values, predictor = segment.pop("slice", None), model.pop("predictor", None)
            refine = segment.pop("refine", None)
            return cls(
                schema_version=document.get("schema_version", 1),
                input=InputSpec(**_known(InputSpec, _section(document, "input"))),
                model=RunModel(
                    categories=categories,
                    predictor=None if predictor is None else PredictorSpec(**_known(PredictorSpec, predictor)),
                    **_known(RunModel, model),
                ),
                segment=SegmentSpec(
                    slice=None if slice_values is None else Slicing(**_known(Slicing, slice_values)),
                    refine=None if refine is None else RefineSpec(**_known(RefineSpec, refine)),
                    **_known(SegmentSpec, segment),
                ),
                decode=DecodeSpec(formats=tuple(decode.pop("formats", ())), **_known(DecodeSpec, decode)),
            )
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a section is not of its form: {error}") from error


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of one section of the document; empty where there is none."""
    values = document.get(name, {})
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is {type(values).__name__}; it must be a mapping")
    return dict(values)


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are fields of a dataclass."""
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _to_plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, tuple | list) else value
