"""`maskfleet segment` and `retry`: check a configuration, make the bulk job of it, and run it on Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jobs.checkpoints import find_checkpoint, is_weights, open_checkpoint, place_checkpoint
from jobs.cluster import start
from jobs.config.load import ConfigError, load_config, to_plain
from jobs.config.results import VerifyConfig
from jobs.config.segment import RetryConfig, SegmentConfig
from jobs.terminal import counted
from model.checkpoint_folder import CheckpointError
from model.inference.openvino_engine import is_installed
from model.inference.predictor import ENGINES, PRECISIONS, check_int8, native_engine, native_precision
from model.weights.sam import find_sam, is_hub_name, load_sam
from pipeline.bulk.commit import check_run, claim_run, committed_shards
from pipeline.bulk.listing import count_images, tell_kind
from pipeline.bulk.predict import RefiningPredictor, UserPredictor
from pipeline.bulk.progress import Progress
from pipeline.bulk.run import repair_corpus, segment_corpus
from pipeline.bulk.worker import BulkJob
from pipeline.manifest import MODEL_FOLDER, Run, RunError, RunTotals, open_run, run_id_of, sha256_of, to_json
from pipeline.plan import read_plan
from pipeline.predictors.source import PredictorSource, read_folder
from pipeline.run_spec import DecodeSpec, InputSpec, RefineSpec, RunCategory, RunModel, RunSpec, SegmentSpec
from pipeline.runs import refined_by
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.base import Storage, StorageError, StorageSettings
from pipeline.storage.parquet import open_parquet
from pipeline.storage.stores import open_file, open_storage
from pipeline.storage.uri import absolute_uri, aligned_uri, is_local, is_within, local_path
from pipeline.tables import load_images
from pipeline.thresholds import read_thresholds, thresholds_by_label

REFINED_SHARD_S = 24 * 3600  # at most; of a large SAM on CPUs, where an image takes many seconds
MOST_COUNTED = 100_000  # images that a dry run counts; a bucket of that many is listed in some ten seconds


@dataclass(frozen=True)
class SegmentPlan:
    """A checked configuration, and the specification of its run.

    Attributes:
        config: as given; score thresholds that are in a file are read.
        checkpoint: URI of the checkpoint folder; the name of a predictor of the user's own.
        spec: the run's specification (see `run_spec`), which becomes run.json.
        notes: sentences that the user should read before the run starts.
        source: code and settings of the user's predictor; None for Mask R-CNN.
    """

    config: SegmentConfig
    checkpoint: str
    spec: RunSpec
    notes: list[str]
    source: PredictorSource | None = None

    @property
    def run_id(self) -> str:
        """The run's id: a hash of the specification."""
        return run_id_of(self.spec.to_json())

    @property
    def model(self) -> str:
        """What predicts: the checkpoint's URI, or the name of the user's predictor and a part of its hash; and SAM."""
        predictor, refine = self.spec.model.predictor, self.spec.segment.refine
        name = self.checkpoint if predictor is None else f"{predictor.name} (code {predictor.code_sha256[:12]})"
        return name if refine is None else f"{name} and {refine.title}"

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
        line = f"would segment {images} of {self.spec.input.uri} with {self.model} into {self.config.output.uri}"
        return f"{line}{done}\nrun {self.run_id}"


def prepare_segment(config: SegmentConfig) -> SegmentPlan:
    """Checks everything that can be checked before a cluster starts; writes nothing.

    A predictor of the user's own is imported and built in a process apart, and loads nothing.

    Raises:
        ConfigError: an input that does not exist or is empty, an output inside the input, or a `since_run` that is not
            finished.
        CorpusError: a list, inventory or tar file that is not readable as one, as far as it was read.
        CheckpointError: the checkpoint does not exist or is damaged.
        EngineError: int8 without OpenVINO, or of a checkpoint that was not quantised.
        PredictorError: the user's predictor cannot be imported, lacks a method or refuses its settings.
        OtherRunError: the output belongs to another run.
    """
    input_uri, output_uri = absolute_uri(config.input.uri), absolute_uri(config.output.uri)
    _check_input(config, input_uri, output_uri)
    output = open_storage(output_uri, config.storage)
    begun = _begun(output)
    engine, precision, note = _computation(config, begun)
    source = _predictor_source(config)
    if source is None:
        given = config.model
        checkpoint_uri = find_checkpoint(given.checkpoint, given.network, given.classes, config.storage)
        model = _checkpoint_model(checkpoint_uri, precision, config.storage)
    else:
        checkpoint_uri, model = source.name, source.check(config.segment.predictor_timeout_s)
    spec = run_spec(config, input_uri, model, engine=engine, precision=precision)
    spec = replace(spec, segment=replace(spec.segment, refine=_refinement(config, model, begun)))
    # A file of thresholds may change; retry takes these settings from the run.
    section = config.segment.model_copy(update={"score_thresholds": dict(spec.segment.score_thresholds)})
    config = config.model_copy(update={"segment": section})
    check_run(output, spec.to_json())
    notes = [] if note is None else [note]
    if (since := config.input.since_run) is not None:
        earlier = open_run(absolute_uri(since), config.storage)
        if earlier.spec.segment.refine != spec.segment.refine:
            title = refined_by(earlier)
            made = "not refined" if title is None else f"made anew by {title}"
            notes.append(
                f"input.since_run: masks of {since} are {made}; read as one, the runs have masks of both kinds"
            )
    plan = read_plan(output)
    if plan is None and not config.input.allow_empty:
        _check_not_empty(spec.input, config.storage)
    if plan is not None and config.corpus.shard_size not in (None, plan.shard_size):
        notes.append(
            f"corpus.shard_size={config.corpus.shard_size} is ignored: the plan was sealed with {plan.shard_size}"
        )
    return SegmentPlan(config, checkpoint_uri, spec, notes, source)


def _predictor_source(config: SegmentConfig) -> PredictorSource | None:
    """Code and settings of the user's predictor; None for Mask R-CNN."""
    segment = config.segment
    if segment.predictor is None:
        return None
    files = None if segment.predictor_path is None else read_folder(local_path(segment.predictor_path))
    return PredictorSource(segment.predictor, segment.predictor_settings, files)


def _begun(output: Storage) -> SegmentSpec | None:
    """How the run in `output` computes; None where none was begun there. A broken one is `check_run`'s to name."""
    try:
        return open_run(output).spec.segment
    except RunError:
        return None


def _refinement(config: SegmentConfig, model: RunModel, begun: SegmentSpec | None) -> RefineSpec | None:
    """SAM's weights, which are read once to see that they are whole; None where masks are not refined.

    A run that was begun keeps the commit of the hub that it was begun with.
    """
    section = config.segment.refine
    if section is None:
        return None
    if model.in_channels != 3:
        raise ConfigError(f"segment.refine: SAM takes images of 3 channels; the model takes {model.in_channels}")
    is_name, revision, sha256 = is_hub_name(section.model), section.revision, None
    own = None if begun is None else begun.refine
    if is_name and own is not None and own.name == section.model and revision in (None, own.revision):
        revision, sha256 = own.revision, own.sha256
    try:
        weights = find_sam(_sam_place(section.model), revision, sha256)
        load_sam(weights)
    except CheckpointError as error:
        raise ConfigError(f"segment.refine.model: {error}") from error
    name = section.model if is_name else ""
    return RefineSpec(kind=weights.kind, name=name, revision=weights.revision, sha256=weights.sha256)


def _sam_place(model: str) -> str:
    """SAM's name on the hub, or the absolute path of its folder."""
    if is_hub_name(model):
        return model
    return str(local_path(model))


def _checkpoint_model(uri: str, precision: str, settings: StorageSettings) -> RunModel:
    checkpoint = open_checkpoint(uri, settings=settings)
    if precision == "int8":
        check_int8(checkpoint.int8)
    return RunModel(
        sha256=checkpoint.sha256,
        spec=checkpoint.spec.to_dict(),
        categories=tuple(RunCategory(category.id, category.name) for category in checkpoint.categories),
    )


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


def run_spec(config: SegmentConfig, input_uri: str, model: RunModel, *, engine: str, precision: str) -> RunSpec:
    """The run's specification: every setting that can change a row, and no other.

    `engine` and `precision` take the place of what the settings leave open.

    Raises:
        ValueError: a score threshold of a class that the model does not have, or no such file of them.
    """
    given, segment, decode = config.input, config.segment, config.decode
    thresholds = read_thresholds(segment.score_thresholds, config.storage)
    thresholds_by_label([each.name for each in model.categories], segment.score_threshold, thresholds)  # refuses others
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
        model=model,
        segment=SegmentSpec(
            mode=segment.mode,
            precision=precision,
            score_threshold=segment.score_threshold,
            max_detections=segment.max_detections,
            mask_threshold=segment.mask_threshold,
            slice=segment.slice,
            score_thresholds=thresholds,
            engine=engine,
        ),
        decode=DecodeSpec(
            max_bytes=decode.max_bytes,
            max_pixels=decode.max_pixels,
            max_frames=decode.max_frames,
            formats=tuple(sorted(decode.formats)),
            scaled=segment.mode == "fast" and segment.refine is None if decode.scaled is None else decode.scaled,
        ),
    )


def _computation(config: SegmentConfig, begun: SegmentSpec | None) -> tuple[str, str, str | None]:
    """Engine, precision, and a note on the precision: as set, else those of the run `begun`, else the faster ones.

    Raises:
        ConfigError: this version or machine does not have the run's engine or precision, or a GPU is to compute it.
    """
    segment = config.segment
    precision, note = _precision(config)
    device = "cuda" if segment.gpus_per_worker else "cpu"
    engine = "torch" if segment.predictor is not None else native_engine(precision, device)
    if begun is not None and begun.mode == segment.mode and segment.predictor is None:
        engine = begun.engine
        if segment.precision is None and begun.precision != precision:
            precision, note = begun.precision, None
    if segment.engine != "auto":
        engine = segment.engine
    for name, value, allowed in (("engine", engine, ENGINES), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise ConfigError(
                f"segment.{name}: the run has {value!r}; allowed in this version is {' or '.join(allowed)}"
            )
    if engine == "openvino" and device == "cuda":
        raise ConfigError(
            f"segment.gpus_per_worker: {segment.gpus_per_worker:g} is not allowed: the run computes with openvino, "
            "which uses CPUs only; set 0"
        )
    if engine == "openvino" and precision != "int8" and not is_installed():
        raise ConfigError("segment.engine: openvino is not installed here; install it, or set torch for a new run")
    return engine, precision, note


def _precision(config: SegmentConfig) -> tuple[str, str | None]:
    """The network's precision, one of `PRECISIONS`, and a note where it is slower than the mode promises.

    GPUs are assumed to have bfloat16: this may run on a machine without the GPUs of the cluster.
    """
    segment = config.segment
    if segment.precision is not None:
        return segment.precision, None
    if segment.gpus_per_worker:
        return ("bfloat16" if segment.mode == "fast" else "float32"), None
    precision, note = native_precision(segment.mode, "cpu")
    return precision, None if note is None else f"segment.mode={segment.mode}: {note}"


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
    return f"would try {counted(num_images, 'image')} of run {run.run_id} again with {plan.model}"


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
    if plan.source is not None or not is_weights(plan.config.model.checkpoint):
        return job
    claim_run(open_storage(job.output_uri, job.storage), job.spec.to_json())
    return replace(job, checkpoint=place_checkpoint(job.checkpoint, f"{job.output_uri}/{MODEL_FOLDER}", job.storage))


def bulk_job(plan: SegmentPlan) -> BulkJob:
    """The plan as the pipeline's job; Ray must be connected.

    Where `segment.num_workers` is not set, the job scales from 1 worker to as many as the cluster has resources for.
    """
    config = plan.config
    cpus, room = worker_room(config, start.joined_nodes())
    job = BulkJob(
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
    if plan.source is not None:
        timeout_s = config.segment.predictor_timeout_s
        # A shard in which one image after the other takes too long shows no progress meanwhile.
        longest_shard_s = max(job.longest_shard_s, int(20 * timeout_s))
        predictor = partial(UserPredictor, source=plan.source, timeout_s=timeout_s)
        job = replace(job, predictor=predictor, longest_shard_s=longest_shard_s)
    refine = config.segment.refine
    if refine is None:
        return job
    return replace(
        job,
        predictor=partial(
            RefiningPredictor,
            inner=job.predictor,
            model=_sam_place(refine.model),
            boxes_at_once=refine.batch_size,
        ),
        longest_shard_s=max(job.longest_shard_s, REFINED_SHARD_S),
    )


def file_metadata(plan: SegmentPlan) -> dict[str, str]:
    """The key-value metadata of every Parquet file of the run."""
    # The storage section may hold credentials, and it belongs to the caller and not to the run.
    config = {name: values for name, values in to_plain(plan.config).items() if name not in ("storage", "retry")}
    if plan.source is None:  # as in all runs before there were other predictors
        config["segment"] = {name: value for name, value in config["segment"].items() if "predictor" not in name}
    if plan.spec.segment.engine == "torch":  # likewise
        del config["segment"]["engine"]
    if not config["segment"]["score_thresholds"]:  # likewise
        del config["segment"]["score_thresholds"]
    refine = plan.config.segment.refine
    if refine is None:  # likewise
        del config["segment"]["refine"]
    else:  # for `retry`, in another folder and of these very weights
        assert plan.spec.segment.refine is not None
        pinned = {"model": _sam_place(refine.model), "revision": plan.spec.segment.refine.revision or None}
        config["segment"]["refine"].update(pinned)
    if plan.source is not None and plan.config.segment.predictor_path is not None:  # for `retry` in another folder
        config["segment"]["predictor_path"] = str(local_path(plan.config.segment.predictor_path))
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
