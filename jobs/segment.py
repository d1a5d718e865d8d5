"""`maskfleet segment` and `retry`: check a configuration, make the bulk job of it, and run it on Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.checkpoints import find_checkpoint, is_weights, open_checkpoint, place_checkpoint
from jobs.cluster import start
from jobs.config.load import ConfigError, load_config, to_plain
from jobs.config.results import VerifyConfig
from jobs.config.segment import RetryConfig, SegmentConfig
from jobs.terminal import counted
from model.checkpoint import Checkpoint
from model.inference.openvino_engine import is_installed
from model.inference.predictor import ENGINES, native_dtype, native_engine
from pipeline.bulk.commit import check_run, claim_run, committed_shards
from pipeline.bulk.corpus import read_plan
from pipeline.bulk.listing import count_images, tell_kind
from pipeline.bulk.progress import Progress
from pipeline.bulk.run import repair_corpus, segment_corpus
from pipeline.bulk.worker import BulkJob
from pipeline.manifest import MODEL_FOLDER, Run, RunError, RunTotals, open_run, run_id_of, sha256_of, to_json
from pipeline.run_spec import DecodeSpec, InputSpec, RunCategory, RunModel, RunSpec, SegmentSpec
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.base import Storage, StorageError, StorageSettings
from pipeline.storage.parquet import open_parquet
from pipeline.storage.stores import open_file, open_storage
from pipeline.storage.uri import absolute_uri, aligned_uri, is_local, is_within
from pipeline.tables import load_images

MOST_COUNTED = 100_000  # images that a dry run counts; a bucket of that many is listed in some ten seconds


@dataclass(frozen=True)
class SegmentPlan:
    """A checked configuration, and the specification of its run.

    Attributes:
        config: as given.
        checkpoint: URI of the checkpoint folder.
        spec: the run's specification (see `run_spec`), which becomes run.json.
        notes: sentences that the user should read before the run starts.
    """

    config: SegmentConfig
    checkpoint: str
    spec: RunSpec
    notes: list[str]

    @property
    def run_id(self) -> str:
        """The run's id: a hash of the specification."""
        return run_id_of(self.spec.to_json())

    def check_cluster(self) -> None:
        """Raises ConfigError where the cluster does not answer, or has no room for a worker."""
        worker_room(self.config, start.nodes_of(self.config.cluster))

    def describe(self) -> str:
        """What the run would do, for a dry run: how many images it has, or, where it was begun before, has left."""
        output = open_storage(absolute_uri(self.config.output.uri), self.config.storage)
        plan = read_plan(output)
        if plan is not None:
            images = counted(plan.num_images, "image")
            done = f"; {len(committed_shards(output)):,} of {counted(plan.num_shards, 'shard')} are done already"
        else:
            number = _count_images(self.spec.input, MOST_COUNTED + 1, self.config.storage)
            more = number > MOST_COUNTED
            images, done = f"more than {MOST_COUNTED:,} images" if more else counted(number, "image"), ""
            if self.spec.input.since_run is not None:
                images += f", save those that {self.spec.input.since_run} has segmented and that have not changed,"
        line = f"would segment {images} of {self.spec.input.uri} with {self.checkpoint} into {self.config.output.uri}"
        return f"{line}{done}\nrun {self.run_id}"


def prepare_segment(config: SegmentConfig) -> SegmentPlan:
    """Checks everything that can be checked before a cluster starts; writes nothing.

    Raises:
        ConfigError: an input that does not exist or is empty, an output inside the input, or a `since_run` that is not
            finished.
        CorpusError: a list, inventory or tar file that is not readable as one, as far as it was read.
        CheckpointError: the checkpoint does not exist or is damaged.
        OtherRunError: the output belongs to another run.
    """
    input_uri, output_uri = absolute_uri(config.input.uri), absolute_uri(config.output.uri)
    _check_input(config, input_uri, output_uri)
    model = config.model
    checkpoint_uri = find_checkpoint(model.checkpoint, model.network, model.classes, config.storage)
    checkpoint = open_checkpoint(checkpoint_uri, settings=config.storage)
    output = open_storage(output_uri, config.storage)
    engine, precision, note = _computation(config, output)
    spec = run_spec(config, input_uri, checkpoint, engine=engine, precision=precision)
    check_run(output, spec.to_json())
    notes = [] if note is None else [note]
    plan = read_plan(output)
    if plan is None and not config.input.allow_empty:
        _check_not_empty(spec.input, config.storage)
    if plan is not None and config.corpus.shard_size not in (None, plan.shard_size):
        notes.append(
            f"corpus.shard_size={config.corpus.shard_size} is ignored: the plan was sealed with {plan.shard_size}"
        )
    return SegmentPlan(config, checkpoint_uri, spec, notes)


def _check_input(config: SegmentConfig, input_uri: str, output_uri: str) -> None:
    """Raises ConfigError for an input that does not exist, or a folder that the run's own files would lie in."""
    section = config.input
    kind = section.kind or tell_kind(input_uri)
    if is_local(input_uri):
        path = Path(input_uri)
        if kind == "folder" and not path.is_dir():
            raise ConfigError(f"input.uri: {section.uri!r} is not a folder; allowed is a folder of images")
        if kind != "folder" and not path.exists():
            raise ConfigError(f"input.uri: {section.uri!r} does not exist; allowed is what input.kind={kind} means")
    else:
        _check_bucket(config, input_uri, kind)
    if kind == "folder" and is_within(output_uri, input_uri):
        raise ConfigError(
            f"output.uri: {config.output.uri!r} lies inside input.uri {section.uri!r}; "
            "the run would segment its own files, choose a place outside"
        )
    if section.extra_channels is not None:
        if kind == "tars":
            raise ConfigError("input.extra_channels: not allowed with tar files; allowed is null")
        try:
            aligned_uri(section.extra_channels, "folder/name.png")
        except ValueError as error:
            raise ConfigError(f"input.extra_channels: {error}") from None
    if section.since_run is not None:
        earlier = open_run(absolute_uri(section.since_run), config.storage)
        if not earlier.sealed:
            raise ConfigError(f"input.since_run: {section.since_run!r} is not finished; finish it first")


def _check_not_empty(source: InputSpec, settings: StorageSettings) -> None:
    """Raises ConfigError for an input without any image; images that earlier runs have done count, too."""
    if not _count_images(source, 1, settings):
        matching = "" if source.pattern == "*" else f" that matches input.pattern={source.pattern}"
        raise ConfigError(
            f"input.uri: {source.uri} holds no image{matching}; set input.allow_empty=true for a run without rows"
        )


def _count_images(source: InputSpec, limit: int, settings: StorageSettings) -> int:
    return count_images(
        source.uri,
        kind=source.kind,
        pattern=source.pattern,
        uri_column=source.uri_column,
        limit=limit,
        settings=settings,
    )


def _check_bucket(config: SegmentConfig, input_uri: str, kind: str) -> None:
    """Raises ConfigError for a bucket that is not there or not to be read, or a list that is not in it."""
    try:
        if kind == "folder":
            next(open_storage(input_uri, config.storage).iter_objects(), None)
            return
        storage, key = open_file(input_uri, config.storage)
        is_there = storage.exists(key) or kind == "tars"
    except (OSError, StorageError) as error:
        raise ConfigError(f"input.uri: {error}") from None
    if not is_there:
        raise ConfigError(f"input.uri: {config.input.uri!r} does not exist; allowed is what input.kind={kind} means")


def run_spec(config: SegmentConfig, input_uri: str, checkpoint: Checkpoint, *, engine: str, precision: str) -> RunSpec:
    """The run's specification: every setting that can change a row, and no other.

    `engine` and `precision` take the place of what the settings leave open.
    """
    given, segment, decode = config.input, config.segment, config.decode
    return RunSpec(
        schema_version=SCHEMA_VERSION,
        input=InputSpec(
            uri=input_uri,
            kind=given.kind or tell_kind(input_uri),
            pattern=given.pattern,
            uri_column=given.uri_column,
            extra_channels=_absolute_pattern(given.extra_channels),
            since_run=None if given.since_run is None else absolute_uri(given.since_run),
        ),
        model=RunModel(
            sha256=checkpoint.sha256,
            spec=checkpoint.spec.to_dict(),
            categories=tuple(RunCategory(category.id, category.name) for category in checkpoint.categories),
        ),
        segment=SegmentSpec(
            mode=segment.mode,
            precision=precision,
            score_threshold=segment.score_threshold,
            max_detections=segment.max_detections,
            mask_threshold=segment.mask_threshold,
            slice=segment.slice,
            engine=engine,
        ),
        decode=DecodeSpec(
            max_bytes=decode.max_bytes,
            max_pixels=decode.max_pixels,
            max_frames=decode.max_frames,
            formats=tuple(sorted(decode.formats)),
            scaled=segment.mode == "fast" if decode.scaled is None else decode.scaled,
        ),
    )


def _computation(config: SegmentConfig, output: Storage) -> tuple[str, str, str | None]:
    """Engine, precision, and a note on the precision: as set, else those of the run in `output`, else the faster ones.

    Raises:
        ConfigError: this machine does not have the engine.
    """
    segment = config.segment
    precision, note = _precision(config)
    engine = native_engine(precision, "cuda" if segment.gpus_per_worker else "cpu")
    try:
        own = open_run(output).spec.segment
    except RunError:  # there is none; a broken one is `check_run`'s to name
        own = None
    if own is not None and own.mode == segment.mode:
        engine = own.engine
        if segment.precision is None:
            precision, note = own.precision, None
    if segment.engine != "auto":
        engine = segment.engine
    if engine not in ENGINES:
        raise ConfigError(f"segment.engine: the run has {engine!r}; allowed in this version is {' or '.join(ENGINES)}")
    if engine == "openvino" and not is_installed():
        raise ConfigError("segment.engine: openvino is not installed here; install it, or set torch for a new run")
    return engine, precision, note


def _precision(config: SegmentConfig) -> tuple[str, str | None]:
    """The network's dtype ('float32' or 'bfloat16'), and a note where it is not the one that the mode promises.

    GPUs are assumed to have bfloat16: this may run on a machine without the GPUs of the cluster.
    """
    segment = config.segment
    if segment.precision is not None:
        return segment.precision, None
    if segment.gpus_per_worker:
        return ("bfloat16" if segment.mode == "fast" else "float32"), None
    dtype, reason = native_dtype(segment.mode, "cpu")
    return str(dtype).removeprefix("torch."), None if reason is None else f"segment.mode=fast: {reason}"


def run_segment(
    plan: SegmentPlan,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> RunTotals:
    """Segments the corpus, or resumes the run; returns the run's totals. The callbacks are `segment_corpus`'s."""
    with start.cluster(plan.config.cluster):
        return segment_corpus(_shared_job(plan), on_progress, on_note)


def prepare_retry(uri: str, words: Sequence[str]) -> SegmentPlan:
    """The plan of `retry`: the settings of a finished run, with `words` over them.

    Raises:
        RunError: no run there, one that is not finished, or one without images.
        ConfigError, CheckpointError, OtherRunError: as `prepare_segment`; `words` must not change the specification.
    """
    # The run's own settings are read from the run, which may lie where only these words lead.
    access = [word for word in words if word.startswith("storage.")]
    run = open_run(absolute_uri(uri), load_config(VerifyConfig, None, access, base={"run": {"uri": uri}}).storage)
    if not run.sealed:
        raise RunError(f"run.uri: {uri} is not finished; run its segment command again first")
    files = run.images_files()
    if not files:
        raise RunError(f"run.uri: {uri} is a run of no images; there is nothing to try again")
    metadata = open_parquet(run.storage.read_bytes(files[0].key)).schema_arrow.metadata
    settings = json.loads(metadata[b"maskfleet.config"])
    settings["output"] = {"uri": run.storage.uri}
    return prepare_segment(load_config(RetryConfig, None, words, base=settings))


def describe_retry(run: Run, plan: SegmentPlan) -> str:
    """What `retry` would do, for a dry run, with the number of images that have such a status now."""
    assert isinstance(plan.config, RetryConfig)
    num_images = int(load_images(run, columns=["status"])["status"].isin(plan.config.retry.statuses).sum())
    return f"would try {counted(num_images, 'image')} of run {run.run_id} again with {plan.checkpoint}"


def run_retry(plan: SegmentPlan, on_progress: Callable[[Progress], None] = lambda progress: None) -> dict[str, int]:
    """Segments the images with a status of `retry.statuses` again.

    Returns:
        The images of the repaired shards by status; {} where no image has such a status.
    """
    assert isinstance(plan.config, RetryConfig)
    with start.cluster(plan.config.cluster):
        return repair_corpus(_shared_job(plan), plan.config.retry.statuses, on_progress)


def _shared_job(plan: SegmentPlan) -> BulkJob:
    """The job with a checkpoint that every node can read: published weights are put into the run's own folder."""
    job = bulk_job(plan)
    if not is_weights(plan.config.model.checkpoint):
        return job
    claim_run(open_storage(job.output_uri, job.storage), job.spec.to_json())
    return replace(job, checkpoint=place_checkpoint(job.checkpoint, f"{job.output_uri}/{MODEL_FOLDER}", job.storage))


def bulk_job(plan: SegmentPlan) -> BulkJob:
    """The plan as the pipeline's job; Ray must be connected.

    Where `segment.num_workers` is not set, the job scales from 1 worker to as many as the cluster has resources for.
    """
    config = plan.config
    cpus, room = worker_room(config, start.joined_nodes())
    return BulkJob(
        output_uri=absolute_uri(config.output.uri),
        spec=plan.spec,
        checkpoint=plan.checkpoint,
        metadata=file_metadata(plan),
        limits=config.decode.limits(),
        shard_size=config.corpus.shard_size,
        batch_size=config.segment.batch_size,
        num_workers=config.segment.num_workers or (1, room),
        cpus_per_worker=cpus,
        gpus_per_worker=config.segment.gpus_per_worker,
        decode_children=config.segment.decode_children,
        storage=config.storage,
    )


def file_metadata(plan: SegmentPlan) -> dict[str, str]:
    """The key-value metadata of every Parquet file of the run."""
    # The storage section may hold credentials, and it belongs to the caller and not to the run.
    config = {name: values for name, values in to_plain(plan.config).items() if name not in ("storage", "retry")}
    return {
        "maskfleet.run_id": plan.run_id,
        "maskfleet.schema_version": str(SCHEMA_VERSION),
        "maskfleet.model_sha256": plan.spec.model.sha256,
        "maskfleet.categories": to_json(plan.spec.to_json()["model"]["categories"]).decode(),
        "maskfleet.config": to_json(config).decode(),
        "maskfleet.config_sha256": sha256_of(to_json(config)),
    }


def worker_room(config: SegmentConfig, nodes: start.Nodes) -> tuple[float, int]:
    """The cores that a worker reserves, and how many workers find room on the nodes.

    Raises:
        ConfigError: no node has room for one; Ray would wait for ever.
    """
    cpus, gpus = min(config.segment.cpus_per_worker, nodes.total("CPU")), config.segment.gpus_per_worker
    room = nodes.room(cpus, gpus)
    if not room:
        raise ConfigError(
            f"segment.gpus_per_worker: {gpus:g} is not allowed: the cluster has {nodes.total('GPU')} GPUs, and no node "
            f"has room for a worker of {gpus:g} GPUs and {cpus:g} CPUs; set 0 to segment on CPUs"
        )
    return cpus, room


def _absolute_pattern(pattern: str | None) -> str | None:
    return pattern if pattern is None or pattern.startswith("{folder}") else absolute_uri(pattern)
