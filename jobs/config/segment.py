"""Settings of `maskfleet segment` and `maskfleet retry`: model, input, shards, prediction, decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.config.base import ClusterSection, OutputSection, Section
from model.weights.sam import is_hub_name
from pipeline.bulk.listing import KINDS
from pipeline.images.decode_pool import DecodeLimits
from pipeline.predictors.source import check_settings
from pipeline.run_spec import Slicing
from pipeline.schema import RETRYABLE, STATUSES
from pipeline.settings import setting
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import Place, Uri, is_local


class ModelSection(Section):
    """The trained model."""

    checkpoint: Uri = Field(
        min_length=1,
        description="A checkpoint folder, or the output of a training (its newest complete checkpoint is taken), local "
        "or in a bucket; or published weights: coco (torchvision's Mask R-CNN R50-FPN V2), torchvision:NAME, or a file "
        "of torchvision's (.pth) or detectron2's form (.pkl, .pth).",
    )
    network: str | None = Field(
        None,
        description="Published network that a file of weights belongs to, such as mask_rcnn_R_50_FPN_3x; null tells it "
        "by the file's tensors.",
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Classes of a file of weights, in the order of its labels; null is COCO's 80 with their own ids.",
    )


class InputSection(Section):
    """Which images are segmented, and how they are listed."""

    uri: Uri = Field(
        min_length=1,
        description="Folder or s3:// prefix of images, searched with all its subfolders; or a list of URIs (Parquet, "
        "CSV, JSONL), the manifest.json of a bucket inventory, a tar file, or a folder of tar files (with kind: tars).",
    )
    kind: Literal[KINDS] | None = Field(  # type: ignore[valid-type]
        None,
        description="What input.uri names; null tells it by the ending of the URI: list, inventory, tar file, "
        "otherwise a folder.",
    )
    uri_column: str = Field("uri", min_length=1, description="Column of the URIs in a list (Parquet, CSV, JSONL).")
    extra_channels: Uri | None = Field(
        None,
        description="Pattern of a second file for each image with its further channels, such as "
        "{folder}/../depth/{stem}.png, for a model of more than three; null where the images' own files hold all "
        "channels. These files must not change during the run.",
    )
    since_run: Uri | None = Field(
        None,
        description="output.uri of an earlier, finished run on the same input: segment only images that are new or "
        "changed since, or failed there with a status that may pass.",
    )
    allow_empty: bool = Field(False, description="Whether an input without any image is a run without rows.")
    pattern: str = Field(
        "*", min_length=1, description="Shell pattern that an image's key must match; '*' also matches '/'."
    )


class CorpusSection(Section):
    """How the images are cut into shards."""

    shard_size: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Images per shard; null chooses by the number of images. It cannot change once the run has "
        "started.",
    )


class KeptSection(Section):
    """What is kept of the network's output."""

    score_threshold: float = Field(0.05, ge=0, le=1, description="Instances below this score are dropped.")
    score_thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] | Uri = Field(
        default_factory=dict,
        description="Score thresholds of single classes by name, in place of score_threshold; or the thresholds.json "
        "that evaluate wrote (thresholds.for).",
    )
    max_detections: int = Field(
        100, ge=1, le=10_000, description="Most instances per image; those with the highest scores are kept."
    )
    mask_threshold: float = Field(0.5, ge=0, le=1, description="Probability from which a pixel belongs to a mask.")


class RefineSection(Section):
    """SAM, which makes the masks anew from the boxes (docs/refine.md). Needs the extra `maskfleet[transformers]`."""

    model: Annotated[str, Place(or_hub=True)] = Field(
        min_length=1,
        description="SAM or SAM 2 as transformers reads it: a folder, the same on every node, or OWNER/NAME on the "
        "Hugging Face hub, such as facebook/sam-vit-base, which each node fetches once. Weights are read as "
        "safetensors only.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Commit, tag or branch of a model on the hub; null is the newest commit as the run begins. "
        "run.json keeps the commit, and the run goes on with it.",
    )
    batch_size: int = Field(32, ge=1, le=4096, description="Most boxes in one pass of SAM's mask decoder.")

    @field_validator("model")
    @classmethod
    def _folder_or_name(cls, model: str) -> str:
        if not is_local(model):
            raise ValueError("a folder is meant, or OWNER/NAME on the Hugging Face hub, such as facebook/sam-vit-base")
        return model

    @model_validator(mode="after")
    def _revision_of_a_name(self) -> Self:
        if self.revision is not None and not is_hub_name(self.model):
            raise ValueError(f"revision is {self.revision!r}; allowed with the name of a model on the hub only")
        return self


class SegmentSection(KeptSection):
    """What is kept of the network's output, in which precision it computes, and how work is spread over actors."""

    mode: Literal["exact", "fast", "int8"] = Field(
        "exact",
        description="exact gives the results of torchvision's network; fast computes in bfloat16 and decodes JPEGs at "
        "the size the network needs, which costs the AP that docs/performance.md states; int8 computes in 8-bit "
        "integers, on CPUs, with a checkpoint that quantize has made.",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Arithmetic of the network; null is float32 in exact mode, and in fast mode bfloat16 where the "
        "hardware computes in it. Mode int8 has its own.",
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="What runs the network's layers. openvino computes on CPUs only; auto is the engine of the run "
        "that is resumed, and for a new run openvino in float32 on a CPU with AVX-512 where it is installed, else "
        "torch.",
    )
    predictor: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Predictor of your own in the place of Mask R-CNN, as package.module:Class (docs/predictors.md); "
        "model.checkpoint is then left out. Null is Mask R-CNN.",
    )
    predictor_settings: dict[str, Any] = Field(
        default_factory=dict,
        description="What segment.predictor is called with, by name. It is written to run.json: no credentials.",
    )
    predictor_path: str | None = Field(
        None,
        min_length=1,
        description="Local folder that holds the module of segment.predictor, and nothing but code; all of it is "
        "hashed and sent to the workers. Null for a module that is installed on every node.",
    )
    predictor_timeout_s: float = Field(
        300,
        gt=0,
        le=86_400,
        description="Seconds that a call of segment.predictor may take; an image that takes longer gets an error.",
    )
    slice: Slicing | None = Field(
        None,
        description="Sliced prediction of large images; null slices none. With slices, max_detections applies to each "
        "slice.",
    )
    refine: RefineSection | None = Field(
        None, description="SAM, which makes the masks anew from the boxes; null leaves them as they are."
    )
    batch_size: int = Field(
        4, ge=1, le=1024, description="Most images in one forward pass; results do not depend on it."
    )
    num_workers: tuple[int, int] | None = Field(
        None,
        description="[min, max] number of actors; null uses all GPUs where gpus_per_worker is above 0, else all CPU "
        "cores.",
    )
    cpus_per_worker: int = Field(2, ge=1, le=1024, description="CPU cores that each actor reserves.")
    gpus_per_worker: float = Field(
        0, ge=0, le=16, description="GPUs that each actor reserves; a fraction shares one GPU."
    )
    decode_children: int = Field(2, ge=1, le=256, description="Image decoding processes of each actor.")
    max_failed_fraction: float = Field(
        1.0, ge=0, le=1, description="Fraction of failed images above which the command ends with exit code 3."
    )

    @model_validator(mode="after")
    def _exact_is_float32(self) -> Self:
        if self.mode == "exact" and self.precision == "bfloat16":
            raise ValueError("precision is bfloat16; allowed in mode exact is float32, or set mode: fast")
        return self

    @field_validator("predictor_settings")
    @classmethod
    def _json(cls, settings: dict[str, Any]) -> dict[str, Any]:
        check_settings(settings)
        return settings

    @model_validator(mode="after")
    def _predictor_as_a_whole(self) -> Self:
        if self.predictor is None:
            for name in ("predictor_path", "predictor_settings"):
                if value := getattr(self, name):
                    raise ValueError(f"{name} is {value!r}; allowed is none without segment.predictor")
            return self
        for name, default in (("mode", "exact"), ("precision", None), ("engine", "auto")):
            if (value := getattr(self, name)) != default:
                raise ValueError(f"{name} is {value}; not allowed with segment.predictor, which knows its own")
        return self

    @model_validator(mode="after")
    def _int8_by_openvino(self) -> Self:
        for name, allowed in (("precision", (None,)), ("engine", ("auto", "openvino")), ("gpus_per_worker", (0,))):
            if self.mode == "int8" and (value := getattr(self, name)) not in allowed:
                words = " or ".join("null" if each is None else str(each) for each in allowed)
                raise ValueError(f"{name} is {value}; allowed in mode int8 is {words}")
        return self

    @model_validator(mode="after")
    def _openvino_on_cpus(self) -> Self:
        if self.engine == "openvino" and self.gpus_per_worker:
            raise ValueError("engine is openvino; allowed with gpus_per_worker above 0 is torch or auto")
        return self

    @model_validator(mode="after")
    def _workers_in_order(self) -> Self:
        if self.num_workers is not None and not 1 <= self.num_workers[0] <= self.num_workers[1]:
            raise ValueError(f"num_workers is {list(self.num_workers)}; allowed is [min, max] with 1 <= min <= max")
        return self


@dataclass(frozen=True, kw_only=True)
class DecodeSection(DecodeLimits):
    """Limits of image decoding, and whether JPEGs are decoded at a fraction of their size."""

    scaled: bool | None = setting(
        None,
        "Decode JPEGs at 1/2, 1/4 or 1/8 of their size where the network would shrink them at least as much; null does "
        "so in fast mode only.",
    )

    def limits(self) -> DecodeLimits:
        """The limits alone, as decoding takes them."""
        return DecodeLimits(**{each.name: getattr(self, each.name) for each in fields(DecodeLimits)})


class SegmentConfig(Section):
    """All settings of `maskfleet segment`."""

    model: ModelSection
    input: InputSection
    output: OutputSection
    corpus: CorpusSection = Field(default_factory=CorpusSection)
    segment: SegmentSection = Field(default_factory=SegmentSection)
    decode: DecodeSection = Field(default_factory=DecodeSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
    storage: StorageSettings = Field(default_factory=StorageSettings)

    @model_validator(mode="before")
    @classmethod
    def _predictor_for_checkpoint(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A predictor of the user's own stands in the place of the checkpoint."""
        segment, model = (values.get(name) or {} for name in ("segment", "model"))
        if isinstance(segment, Mapping) and isinstance(model, Mapping) and segment.get("predictor"):
            return {**values, "model": {"checkpoint": segment["predictor"], **model}}
        return values

    @model_validator(mode="after")
    def _whole_images_to_refine(self) -> Self:
        if self.segment.refine is not None and self.decode.scaled:
            raise ValueError("decode.scaled is true; not allowed with segment.refine, which gets whole images")
        return self

    @model_validator(mode="after")
    def _predictor_alone(self) -> Self:
        if self.segment.predictor is not None:
            model = self.model
            if model.checkpoint != self.segment.predictor or model.network is not None or model.classes is not None:
                raise ValueError(
                    "the settings of model are not allowed with segment.predictor, which has its own: "
                    "segment.predictor_settings"
                )
            if self.decode.scaled:
                raise ValueError("decode.scaled is true; not allowed with segment.predictor, which gets whole images")
        return self


class RetrySection(Section):
    """Which images are tried again."""

    statuses: tuple[Literal[tuple(STATUSES)], ...] = Field(  # type: ignore[valid-type]
        RETRYABLE, min_length=1, description="Statuses of the images that are tried again."
    )


class RetryConfig(SegmentConfig):
    """All settings of `maskfleet retry`: those the run was segmented with, and which images to try again."""

    retry: RetrySection = Field(default_factory=RetrySection)
