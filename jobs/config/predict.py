"""Settings of `maskfleet predict`: photos, model, thresholds, where pictures and tables go; the photos meant."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from jobs.config.base import Section
from jobs.config.load import ConfigError
from jobs.config.segment import KeptSection, ModelSection
from pipeline.images.decode_pool import DecodeLimits
from pipeline.storage.base import StorageSettings
from pipeline.storage.files import Location
from pipeline.storage.uri import PHOTO_SUFFIXES, Uri, is_local, is_photo, is_within, join_uri, local_path


class PhotosSection(Section):
    """Which photos are predicted."""

    photos: tuple[str, ...] = Field(
        min_length=1,
        description="Paths, URIs, folders (searched with all their subfolders) or patterns such as 'day1/*.jpg'; the "
        "words of the command line that have no 'key='.",
    )


class PredictSection(KeptSection):
    """What is kept of the network's output, and where it computes."""

    # Higher than in a bulk run, whose readers choose for themselves: here somebody looks at a picture.
    score_threshold: float = Field(0.5, ge=0, le=1, description="Instances below this score are dropped.")
    mode: Literal["exact", "fast", "int8"] = Field(
        "exact",
        description="exact computes in float32; fast in bfloat16 where the hardware does; int8 in 8-bit integers, on "
        "the CPU, with a checkpoint that quantize has made.",
    )
    engine: Literal["torch", "openvino"] | None = Field(
        None,
        description="What runs the network's layers; null is what a run takes by itself, but openvino only where the "
        "network has been converted on this machine.",
    )
    device: Literal["cpu", "cuda"] | None = Field(
        None, description="null takes a GPU where there is one, but the CPU in mode int8."
    )

    @model_validator(mode="after")
    def _int8_by_openvino(self) -> Self:
        for name, allowed in (("engine", "openvino"), ("device", "cpu")):
            if self.mode == "int8" and (value := getattr(self, name)) not in (None, allowed):
                raise ValueError(f"{name} is {value}; allowed in mode int8 is {allowed} or null")
        return self


class PredictionsSection(Section):
    """Where pictures and tables go."""

    uri: Uri = Field(
        "predictions",
        min_length=1,
        description="Folder or s3:// prefix that receives a picture for each photo, images.parquet and "
        "instances.parquet; what an earlier call wrote there is replaced.",
    )
    overlays: bool = Field(True, description="Whether photos with their instances drawn on them are written.")


class PredictConfig(Section):
    """All settings of `maskfleet predict`."""

    model: ModelSection
    input: PhotosSection
    output: PredictionsSection = Field(default_factory=PredictionsSection)
    predict: PredictSection = Field(default_factory=PredictSection)
    decode: DecodeLimits = Field(default_factory=DecodeLimits)
    storage: StorageSettings = Field(default_factory=StorageSettings)


def find_photos(config: PredictConfig) -> list[str]:
    """The photos that the words of a command line name, each once: paths or URIs, sorted within each folder.

    Photos below output.uri are left out of folders.

    Raises:
        ConfigError: a word that names none.
    """
    return list_photos("input.photos", config.input.photos, output_uri=config.output.uri, storage=config.storage)


def list_photos(key: str, words: Sequence[str], *, output_uri: str, storage: StorageSettings) -> list[str]:
    """The photos that paths, URIs, folders or patterns name, each once: sorted within each folder.

    Args:
        key: the setting that the words are of, for messages.
        words: the paths, URIs, folders or patterns.
        output_uri: photos below it are left out of folders.
        storage: how buckets are reached.

    Raises:
        ConfigError: a word that names none.
    """
    photos = [photo for word in words for photo in _photos_of(key, word, output_uri, storage)]
    return list(dict.fromkeys(photos))


def _photos_of(key: str, word: str, output_uri: str, storage: StorageSettings) -> list[str]:
    path = local_path(word) if is_local(word) else None
    if path is not None and path.is_file():
        return [word]
    if path is None and is_photo(word):
        return [word]
    if path is None or path.is_dir():
        found = [join_uri(word, name) for name in sorted(Location(word, storage).iter_names(recursive=True))]
        photos = [uri for uri in found if is_photo(uri) and not is_within(uri, output_uri)]
        reason = f"a folder without photos ({', '.join(PHOTO_SUFFIXES)})"
    else:
        photos = sorted(name for name in glob.glob(word, recursive=True) if os.path.isfile(name) and is_photo(name))
        reason = "no file, no folder, and a pattern that no photo matches"
    if not photos:
        raise ConfigError(f"{key}: {word!r} is {reason}")
    return photos
