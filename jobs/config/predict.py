"""Settings of `maskfleet predict`: photos, model, thresholds, where pictures and tables go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.config.base import Section
from jobs.config.segment import KeptSection, ModelSection
from pipeline.images.decode_pool import DecodeLimits
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import Uri


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
    mode: Literal["exact", "fast"] = Field(
        "exact", description="exact computes in float32; fast in bfloat16 where the hardware does."
    )
    engine: Literal["torch", "openvino"] | None = Field(
        None,
        description="What runs the network's layers; null is what a run takes by itself, but openvino only where the "
        "network has been converted on this machine.",
    )
    device: Literal["cpu", "cuda"] | None = Field(None, description="null takes a GPU where there is one.")


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
