"""From a YAML file and `key=value` words to one validated, frozen configuration, or one clear sentence.

The sections are declared once, beside what they configure (`config_train`, here for the bulk commands). Nothing below
jobs/ sees a configuration: values are handed on as plain arguments.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from jobs.config_base import ClusterSection, OutputSection, Section, StorageSection
from pipeline.bulk.decode import FORMATS, DecodeLimits
from pipeline.bulk.listing import KINDS
from pipeline.manifest import sha256_of, to_json
from pipeline.schema import RETRYABLE, STATUSES

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """The configuration is wrong. The message names the key, the value and what is allowed."""


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


class DemoOutputSection(Section):
    """Where the demo lives."""

    uri: str = Field("demo", min_length=1, description="Folder that receives data, model, run, evaluation, pictures.")


class DemoSection(Section):
    """How large the demo is."""

    num_train: int = Field(400, ge=8, description="Drawn training images.")
    num_val: int = Field(60, ge=4, description="Drawn validation images.")
    num_unlabelled: int = Field(200, ge=1, description="Drawn images without labels, which are segmented.")
    max_steps: int = Field(900, ge=1, description="Training steps of 4 images.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the drawings and of the training.")


class DemoConfig(Section):
    """`maskfleet demo`."""

    output: DemoOutputSection = Field(default_factory=DemoOutputSection)
    demo: DemoSection = Field(default_factory=DemoSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)


def load_config(
    kind: type[Config],
    file: str | Path | None,
    overrides: Sequence[str] = (),
    base: dict[str, Any] | None = None,
) -> Config:
    """The configuration of a YAML file (or of the values `base`) and `a.b=value` words, later words winning.

    Raises:
        ConfigError: an unreadable file, a wrong key, a value out of range; one sentence a fault.
    """
    values = read_yaml(file) if file is not None else dict(base or {})
    for word in overrides:
        _override(values, word)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        where = f" (in {file} and the command line)" if file is not None else ""
        raise ConfigError("\n".join(_sentence(kind, fault) for fault in error.errors()) + where) from None


def to_plain(config: BaseModel) -> dict[str, Any]:
    """A configuration as plain values, as YAML and JSON hold them."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_yaml(config: BaseModel) -> str:
    """A configuration as YAML that `--config` reads back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def config_hash(config: BaseModel) -> str:
    """The SHA-256 of a resolved configuration."""
    return sha256_of(to_json(to_plain(config)))


def is_override(word: str) -> bool:
    """Whether a word of the command line is `key=value` (a URI may hold '=' too, but no key looks like one)."""
    return re.match(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*=", word) is not None


def read_yaml(file: str | Path, key: str = "--config") -> dict[str, Any]:
    """The sections of a YAML file; `key` is what named it, for messages.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds no sections.
    """
    try:
        values = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise ConfigError(f"{key} {file}: cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {file}: no valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{key} {file}: holds a {type(values).__name__}; allowed are sections of key: value")
    return values


def _override(values: dict[str, Any], word: str) -> None:
    if not is_override(word):
        shown = re.sub(r"=.*", "=***", word, flags=re.DOTALL) if _is_secret(word.partition("=")[0]) else word
        raise ConfigError(f"{shown!r} is not understood; allowed are words like section.key=value")
    key, text = word.split("=", 1)
    set_value(values, key, _value(text))


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value of a dotted key in nested sections, which are made as needed."""
    *path, last = key.split(".")
    section = values
    for name in path:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    section[last] = value


def _value(text: str) -> Any:
    """A word's value as YAML reads it; what is no YAML (`*.jpg`), a date or 'a: b' is taken as the text it is."""
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        return text
    unmeant = isinstance(value, date) or (isinstance(value, dict) and not text.lstrip().startswith("{"))
    return text if unmeant else value


def _sentence(kind: type[BaseModel], fault: Any) -> str:
    """One fault of pydantic's as 'key: value is not allowed: reason'."""
    names = [str(part) for part in fault["loc"]]
    key = ".".join(names) or "the configuration"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _keys_of(kind, names[:-1])
        near = difflib.get_close_matches(names[-1], allowed, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{key}: there is no such key; {hint}allowed are {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing; {_about(kind, names)}"
    reason = fault["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    given = str(fault["input"])
    is_secret = _is_secret(key) or re.search(r"://[^/]*@", given) is not None
    if isinstance(fault["input"], dict | BaseModel) or len(given) > 200 or is_secret:
        return f"{key}: {reason}"
    return f"{key}: {fault['input']!r} is not allowed: {reason}"


def _is_secret(key: str) -> bool:
    """Whether a key, perhaps misspelt, is one whose value is never shown."""
    return re.search(r"secret|token|password|passwd|credential|access_?key|webhook", key, re.IGNORECASE) is not None


def _keys_of(kind: type[BaseModel], path: list[str]) -> list[str]:
    section = _section(kind, path)
    fields = getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", {})
    return sorted(fields)


def _about(kind: type[BaseModel], path: list[str]) -> str:
    section = _section(kind, path[:-1])
    field = getattr(section, "model_fields", {}).get(path[-1])
    return field.description if field is not None and field.description else "it must be given"


def _section(kind: Any, path: list[str]) -> Any:
    for name in path:
        field = getattr(kind, "model_fields", {}).get(name)
        if field is None:
            return kind
        kind = next((arg for arg in get_args(field.annotation) if isinstance(arg, type)), field.annotation)
    return kind
