"""Settings of `maskfleet demo`: where it writes, and the size of its drawn data and training."""

from __future__ import annotations

from pydantic import Field

from jobs.config.base import ClusterSection, Section
from pipeline.storage.uri import Uri


class DemoOutputSection(Section):
    """Where the demo writes."""

    uri: Uri = Field(
        "demo", min_length=1, description="Folder that receives data, model, run, evaluation and pictures."
    )


class DemoSection(Section):
    """Sizes of the drawn data and the training."""

    num_train: int = Field(400, ge=8, description="Drawn training images.")
    num_val: int = Field(60, ge=4, description="Drawn validation images.")
    num_unlabelled: int = Field(200, ge=1, description="Drawn images without annotations, which are segmented.")
    max_steps: int = Field(900, ge=1, description="Training steps, of 4 images each.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the drawn images and of the training.")


class DemoConfig(Section):
    """All settings of `maskfleet demo`."""

    output: DemoOutputSection = Field(default_factory=DemoOutputSection)
    demo: DemoSection = Field(default_factory=DemoSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)
