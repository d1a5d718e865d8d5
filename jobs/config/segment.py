"""The settings of `maskfleet segment` and `maskfleet retry`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from jobs.config.base import ClusterSection, OutputSection, Section, StorageSection
from pipeline.bulk.listing import KINDS
from pipeline.images.decode_pool import FORMATS, DecodeLimits
from pipeline.schema import RETRYABLE, STATUSES


class ModelSection(Section):
    """The trained model."""

    checkpoint: str = Field(
        min_length=1,
        description="A checkpoint folder, or a training output (then its newest complete checkpoint), here or in a "
        "bucket.",
    )


class InputSection(Section):
    """The images."""

    uri: str = Field(
        min_length=1,
        description="Folder or s3:// prefix (searched with all its subfolders) of images; or a list of URIs (Parquet, "
        "CSV, JSONL), a bucket inventory's manifest.json, a tar file or a folder of them (then say kind: tars).",
    )
    kind: Literal[KINDS] | None = Field(  # type: ignore[valid-type]
        None, description="What input.uri names; null tells it by its ending, a folder unless it looks otherwise."
    )
    uri_column: str = Field("uri", min_length=1, description="Column of a list that holds the URIs.")
    extra_channels: str | None = Field(
        None,
        description="File with the last channels of a photo, such as {folder}/../depth/{stem}.png, for a model of more "
        "than three; null where files hold all channels themselves. It must not change while the run goes on.",
    )
    since_run: str | None = Field(
        None, description="An earlier, finished run of the same corpus: segment only what is new or changed since."
    )
    pattern: str = Field(
        "*", min_length=1, description="Shell pattern that an image's key must match; '*' also crosses '/'."
    )


class CorpusSection(Section):
    """How the images are cut into shards."""

    shard_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Images a shard; null chooses by the size of the corpus. Fixed when the plan is sealed.",
    )


class SliceSection(Section):
    """How images that are larger than a slice are cut, predicted slice by slice and put together again."""

    size: int = Field(ge=64, le=16_384, description="Side of a slice in pixels; an image with a longer side is cut.")
    overlap: int = Field(
        128, ge=0, description="Pixels that neighbouring slices share, at least; at most half of size."
    )
    merge_iou: float = Field(
        0.5, gt=0, le=1, description="Mask IoU, within what two slices share, that makes two detections one instance."
    )

    @model_validator(mode="after")
    def _overlap_is_at_most_half(self) -> Self:
        if self.overlap > self.size // 2:
            raise ValueError(f"overlap is {self.overlap}; allowed is at most half of size, {self.size // 2}")
        return self


class SegmentSection(Section):
    """What is kept of the network's output, and how the work is spread."""

    score_threshold: float = Field(0.05, ge=0, le=1, description="Instances below this score are dropped.")
    max_detections: int = Field(100, ge=1, le=10_000, description="Instances an image, best first.")
    mask_threshold: float = Field(0.5, ge=0, le=1, description="Probability from which a pixel belongs to a mask.")
    mode: Literal["exact", "fast"] = Field(
        "exact",
        description="exact finds what torchvision's network finds; fast computes in bfloat16 and decodes JPEGs at the "
        "size the network needs, at the cost in AP that docs/speed.md states.",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="What the network computes in; null: float32 in exact mode, what this machine has in fast."
    )
    slice: SliceSection | None = Field(
        None, description="How huge images are cut; null cuts none. max_detections then counts for each slice."
    )
    batch_size: int = Field(4, ge=1, le=1024, description="Images a network call, at most; no result depends on it.")
    num_workers: tuple[int, int] | None = Field(
        None, description="Actors at least and at most; null: one for each GPU, or for every cpus_per_worker cores."
    )
    cpus_per_worker: int = Field(2, ge=1, le=1024, description="CPU cores an actor reserves.")
    gpus_per_worker: float = Field(0, ge=0, le=16, description="GPUs an actor reserves; a fraction shares one.")
    decode_children: int = Field(2, ge=1, le=256, description="Decoding processes beside each actor.")
    max_failed_fraction: float = Field(
        1.0, ge=0, le=1, description="Share of images that may fail before the command ends with exit code 3."
    )

    @model_validator(mode="after")
    def _exact_is_float32(self) -> Self:
        if self.mode == "exact" and self.precision == "bfloat16":
            raise ValueError("precision is bfloat16; allowed in mode exact is float32, or set mode: fast")
        return self

    @model_validator(mode="after")
    def _workers_in_order(self) -> Self:
        if self.num_workers is not None and not 1 <= self.num_workers[0] <= self.num_workers[1]:
            raise ValueError(f"num_workers is {list(self.num_workers)}; allowed is [min, max] with 1 <= min <= max")
        return self


_LIMITS = DecodeLimits()


class DecodeSection(Section):
    """What a file may cost before it is given up."""

    max_bytes: int = Field(_LIMITS.max_bytes, ge=1, description="Largest file that is read, in bytes.")
    max_pixels: int = Field(_LIMITS.max_pixels, ge=1, description="Largest image that is decoded, in pixels.")
    max_frames: int = Field(_LIMITS.max_frames, ge=1, description="Most frames of an animation (the first is used).")
    timeout_s: float = Field(_LIMITS.timeout_s, gt=0, description="Longest time one image may take to decode.")
    memory_bytes: int = Field(_LIMITS.memory_bytes, ge=2**26, description="Memory of one decoding process.")
    formats: tuple[Literal[FORMATS], ...] = Field(  # type: ignore[valid-type]
        _LIMITS.formats, min_length=1, description="Formats that are decoded, told by content and not by name."
    )
    scaled: bool | None = Field(
        None,
        description="Decode a JPEG at a half, a quarter or an eighth where the network shrinks it further anyway; "
        "null: in fast mode only.",
    )


class SegmentConfig(Section):
    """`maskfleet segment`."""

    model: ModelSection
    input: InputSection
    output: OutputSection
    corpus: CorpusSection = Field(default_factory=CorpusSection)
    segment: SegmentSection = Field(default_factory=SegmentSection)
    decode: DecodeSection = Field(default_factory=DecodeSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    storage: StorageSection = Field(default_factory=StorageSection)


class RetrySection(Section):
    """What is tried again."""

    statuses: tuple[Literal[tuple(STATUSES)], ...] = Field(  # type: ignore[valid-type]
        RETRYABLE, min_length=1, description="Images that ended with one of these are tried again."
    )


class RetryConfig(SegmentConfig):
    """`maskfleet retry`: the settings the run was segmented with, and what to try again."""

    retry: RetrySection = Field(default_factory=RetrySection)
