"""`RunSpec`: what a bulk run is, as run.json holds it; everything in it can change a row, and its hash is the run's id.

Batch size, number of workers and hardware are not part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Slicing:
    """How images with a longer side are cut.

    Attributes:
        size: side of a slice, in pixels of the original; an image with a longer side is cut.
        overlap: pixels that neighbouring slices share, at least; at most half of `size`.
        merge_iou: mask IoU, inside the window that both slices show, from which two detections are one instance.
    """

    size: int
    overlap: int
    merge_iou: float

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.size // 2:
            raise ValueError(f"overlap is {self.overlap}; allowed is 0 to half of size={self.size}")


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
class RunModel:
    """The model that predicts.

    Attributes:
        sha256: hash of its weights.
        spec: its `ModelSpec` as JSON.
        categories: its class map: label = index + 1.
    """

    sha256: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    categories: tuple[RunCategory, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """What is kept of what the model predicts, and how it computes.

    Attributes:
        mode: 'exact' or 'fast'.
        precision: 'float32' or 'bfloat16'.
        score_threshold: detections with a lower score are dropped; None in run files that do not say.
        max_detections: detections of one image, at most.
        mask_threshold: probability from which a pixel belongs to a mask.
        slice: how large images are cut; None cuts none.
    """

    mode: str = "exact"
    precision: str = "float32"
    score_threshold: float | None = None
    max_detections: int = 100
    mask_threshold: float = 0.5
    slice: Slicing | None = None


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
        """The specification as JSON values; `pipeline.manifest.to_json` of it is run.json."""
        return _to_plain(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSpec:
        """The specification that run.json holds. A field that an older run lacks takes its default.

        Raises:
            ValueError: a section is no mapping, or holds a field that this version does not know.
        """
        sections = {name: values.get(name) or {} for name in ("input", "model", "segment", "decode")}
        for name, section in sections.items():
            if not isinstance(section, Mapping):
                raise ValueError(f"{name} is {type(section).__name__}; it must be a mapping")
        model, segment, decode = (dict(sections[name]) for name in ("model", "segment", "decode"))
        if "categories" in model:
            model["categories"] = tuple(RunCategory(**category) for category in model["categories"])
        if segment.get("slice") is not None:
            segment["slice"] = Slicing(**segment["slice"])
        if "formats" in decode:
            decode["formats"] = tuple(decode["formats"])
        try:
            return cls(
                schema_version=values.get("schema_version", 1),
                input=InputSpec(**sections["input"]),
                model=RunModel(**model),
                segment=SegmentSpec(**segment),
                decode=DecodeSpec(**decode),
            )
        except TypeError as error:
            raise ValueError(f"it holds what this version does not know: {error}") from error


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _to_plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, tuple | list) else value
