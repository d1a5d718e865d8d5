"""Settings of `maskfleet manifests`: a cluster's machines, its image, and the commands that run on it."""

from __future__ import annotations

from pydantic import Field

from jobs.config.base import OutputSection, Section

NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"  # a DNS label, as Kubernetes requires


class GroupSection(Section):
    """A group of equal worker nodes, which the autoscaler adds and removes."""

    cpus: int = Field(ge=1, le=1024, description="CPU cores of one node.")
    memory_gib: int = Field(ge=1, description="Memory of one node, in GiB.")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of one node.")
    min_count: int = Field(0, ge=0, description="Least number of nodes that the autoscaler keeps.")
    max_count: int = Field(1, ge=0, description="Largest number of nodes.")
    instance: str = Field(min_length=1, description="Instance type in the cloud, such as m6i.xlarge.")


class HeadSection(Section):
    """The head node: it runs the commands' driver processes and none of their workers."""

    cpus: int = Field(4, ge=1, description="CPU cores.")
    memory_gib: int = Field(16, ge=4, description="Memory, in GiB.")
    instance: str = Field(min_length=1, description="Instance type in the cloud, such as m6i.xlarge.")


class CloudSection(Section):
    """The cloud that Ray's cluster launcher starts machines in."""

    provider: str = Field("aws", pattern="^aws$", description="Cloud provider; only aws is supported.")
    region: str = Field("us-west-2", min_length=1, description="Region of the cloud.")
    spot: bool = Field(
        True, description="Use spot instances for workers; one that is taken away costs only its uncommitted work."
    )


class ManifestsSection(Section):
    """The cluster: its names, container image and node groups."""

    name: str = Field(
        "maskfleet",
        pattern=NAME,
        max_length=40,
        description="Name of the cluster, and prefix of the names of all its resources.",
    )
    namespace: str = Field("default", pattern=NAME, description="Kubernetes namespace.")
    image: str = Field(
        min_length=1,
        description="Container image that the Dockerfile builds, by the name under which the cluster pulls it.",
    )
    credentials: str | None = Field(
        "maskfleet-storage",
        pattern=NAME,
        description="Name of the Kubernetes Secret with AWS_* variables; null where nodes have roles.",
    )
    head: HeadSection
    cpu: GroupSection
    gpu: GroupSection
    cloud: CloudSection = Field(default_factory=CloudSection)


class ProgramSection(Section):
    """A command with its configuration file and overrides, as one would type it."""

    config: str = Field(
        min_length=1, description="Configuration file of the command, relative to the folder of this file."
    )
    words: tuple[str, ...] = Field((), description="Overrides of the file's settings, as key=value.")


class NightlySection(Section):
    """A schedule that a CronJob makes one pass of, again and again."""

    config: str = Field(
        min_length=1, description="Configuration file of the schedule, relative to the folder of this file."
    )
    words: tuple[str, ...] = Field((), description="Overrides of the file's settings, as key=value.")
    cron: str = Field(
        "*/15 * * * *",
        min_length=9,
        description="Cron expression of the passes; a pass runs whichever of the schedule's tasks are due.",
    )


class ManifestsConfig(Section):
    """All settings of `maskfleet manifests`."""

    manifests: ManifestsSection
    train: ProgramSection
    segment: ProgramSection
    evaluate: NightlySection
    output: OutputSection = Field(OutputSection(uri="configs/cluster"), description="Folder that receives the files.")
