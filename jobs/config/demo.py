"""The settings of `maskfleet demo`."""

from __future__ import annotations

from pydantic import Field

from jobs.config.base import ClusterSection, Section


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
