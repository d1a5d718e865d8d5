"""The settings of `maskfleet manifests`: the machines of a cluster, and what is to run on it."""

from __future__ import annotations

from pydantic import Field

from jobs.config.base import OutputSection, Section

NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"  # what Kubernetes takes


class GroupSection(Section):
    """Machines of one kind."""

    cpus: int = Field(ge=1, le=1024, description="CPU cores of one.")
    memory_gib: int = Field(ge=1, description="Memory of one, in GiB.")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of one.")
    min_count: int = Field(0, ge=0, description="How many are there at least; the autoscaler adds and removes.")
    max_count: int = Field(1, ge=0, description="How many at most.")
    instance: str = Field(min_length=1, description="Type of the machine in the cloud.")


class HeadSection(Section):
    """The head node: it runs the commands themselves and none of their workers."""

    cpus: int = Field(4, ge=1, description="CPU cores.")
    memory_gib: int = Field(16, ge=4, description="Memory, in GiB.")
    instance: str = Field(min_length=1, description="Type of the machine in the cloud.")


class CloudSection(Section):
    """The cloud that Ray's cluster launcher starts machines in."""

    provider: str = Field("aws", pattern="^aws$", description="Which; the launcher file is made for aws.")
    region: str = Field("us-west-2", min_length=1, description="Where.")
    spot: bool = Field(True, description="Take workers that may be taken away: a lost one costs its uncommitted work.")


class ManifestsSection(Section):
    """The cluster and the image on it."""

    name: str = Field("maskfleet", pattern=NAME, max_length=40, description="Names everything.")
    namespace: str = Field("default", pattern=NAME, description="Kubernetes' namespace.")
    image: str = Field(min_length=1, description="What the Dockerfile makes, as the cluster finds it.")
    credentials: str | None = Field(
        "maskfleet-storage", pattern=NAME, description="Secret with AWS_* variables; null where nodes have roles."
    )
    head: HeadSection
    cpu: GroupSection
    gpu: GroupSection
    cloud: CloudSection = Field(default_factory=CloudSection)


class ProgramSection(Section):
    """A command, as one would type it."""

    config: str = Field(min_length=1, description="File of settings, from this file's folder.")
    words: tuple[str, ...] = Field((), description="Settings over those of the file, as key=value.")


class NightlySection(Section):
    """One pass of a schedule, again and again."""

    config: str = Field(min_length=1, description="File of the schedule, from this file's folder.")
    words: tuple[str, ...] = Field((), description="Settings over those of the file, as key=value.")
    cron: str = Field("*/15 * * * *", min_length=9, description="When a pass is made; what is due, the schedule knows.")


class ManifestsConfig(Section):
    """`maskfleet manifests`."""

    manifests: ManifestsSection
    train: ProgramSection
    segment: ProgramSection
    evaluate: NightlySection
    output: OutputSection = Field(OutputSection(uri="configs/cluster"), description="Folder that receives the files.")
