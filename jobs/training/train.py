"""`maskfleet train`: checks everything first, then runs the training loop on Ray Train and passes its events on.

One output URI is one training. The same command again resumes from the newest complete checkpoint; a finished training
is left as it is; settings that would train something else are refused, naming the difference.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from jobs.checkpoints import local_weights, open_checkpoint
from jobs.cluster.start import Nodes, cluster, joined_nodes, nodes_of
from jobs.config.load import Config, ConfigError, to_plain
from jobs.config.places import map_places
from jobs.config.train import NOT_IDENTITY, TrainConfig
from jobs.interrupt import CHECKPOINT_S, END_S, Interrupted
from jobs.training.events import Collector, Listener, TrainEvent, last_line, start_board
from jobs.training.loop import (
    LoopResult,
    TrainingRun,
    TrainingStopped,
    Worker,
    images_per_step,
    resolve_spec,
    schedule_of,
    steps_left,
    train_worker,
)
from jobs.training.output import TrainingOutput
from jobs.training.sets import load_training_set, load_validation_set
from jobs.training.summary import write_summary
from model.categories import Category
from model.spec import ModelSpec
from model.weights.loading import find_state_dict
from pipeline.dataset.check import all_notes, check_learnable
from pipeline.dataset.subset import SubsetRecord, hash_annotations
from pipeline.differences import differences, to_table
from pipeline.manifest import to_json
from pipeline.storage.uri import absolute_uri, scheme_of

SUBSET = "subset.json"


@dataclass(frozen=True)
class TrainPlan:
    """A training that has passed all checks.

    Attributes:
        config: The settings, with absolute URIs.
        num_images, num_instances, num_categories: Size of the training set.
        max_steps: Steps of the whole training.
        num_done: Step of the newest complete checkpoint of the output; 0 without one.
        is_finished: Whether nothing is left to do.
        subset: Record of the images trained on, where data.num_images takes a subset; else None.
        annotations: Hash of the annotations, by setting (data.train, data.val).
        notes: What was decided in reading the annotations, and whether they have changed since the training began.
    """

    config: TrainConfig
    num_images: int
    num_instances: int
    num_categories: int
    max_steps: int
    num_done: int
    is_finished: bool = False
    subset: SubsetRecord | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def check_cluster(self) -> None:
        """Raises ConfigError where the cluster does not answer, or is too small."""
        if not self.is_finished:
            check_room(self.config, nodes_of(self.config.cluster))

    def describe(self) -> str:
        """One line that says what will be trained."""
        train, uri = self.config.train, self.config.output.uri
        if self.is_finished:
            return f"{uri} is finished: {self.num_done} of {self.max_steps} steps are done, nothing is left to do"
        batch = images_per_step(train, train.num_workers)
        return (
            f"training {self.config.model.spec.backbone} on {self.num_images} images, {self.num_instances} instances, "
            f"{self.num_categories} categories: {self.max_steps} steps of {batch} images on {train.num_workers} "
            f"{'GPU' if train.use_gpu else 'CPU'} worker{'s' if train.num_workers > 1 else ''} into {uri}"
            + (f", of which {self.num_done} are done" if self.num_done else "")
        )


@dataclass(frozen=True)
class TrainResult:
    """Result of a call of `run_train`.

    Attributes:
        output_uri: URI of the training's output.
        checkpoint_uri: URI of its newest checkpoint.
        step: Steps done.
        was_finished: Whether it was finished before this call, which then did nothing.
        stopped_early: Whether this call ended it before its last step, as train.early_stop_patience asks.
        broken_images: Images that could not be used in this call: image id -> reason.
        unturned_images: Ids of images whose EXIF turn was not applied in this call, since their annotations fit the
            unturned image only.
        num_restarts: Times that the workers were started again in this call.
        last_metrics: Last row of metrics.parquet; {} without one.
    """

    output_uri: str
    checkpoint_uri: str
    step: int
    was_finished: bool = False
    stopped_early: bool = False
    broken_images: Mapping[str, str] = field(default_factory=dict)
    unturned_images: frozenset[str] = frozenset()
    num_restarts: int = 0
    last_metrics: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """A few lines that say what was done."""
        status = "was finished before, nothing was done" if self.was_finished else "trained"
        early = ", stopped early" if self.stopped_early else ""
        lines = [f"{status}: {self.step:,} steps{early} -> {self.checkpoint_uri}"]
        if self.num_restarts:
            lines.append(f"the workers were started again {self.num_restarts} times")
        if self.broken_images:
            names = ", ".join(f"{image_id} ({reason})" for image_id, reason in sorted(self.broken_images.items())[:10])
            lines.append(f"{len(self.broken_images)} images could not be used: {names}")
        if self.unturned_images:
            lines.append(f"{len(self.unturned_images)} photos were used unturned, as they were annotated")
        return "\n".join(lines)


class TrainingFailed(RuntimeError):
    """The training ended before its last step; the message says why and what is kept."""


def prepare_train(config: TrainConfig) -> TrainPlan:
    """Checks settings, data, starting weights and output, before anything is started or written.

    Raises:
        ValueError: Data that cannot be used, weights that do not fit, or an output that holds another training.
    """
    output = TrainingOutput(config.output.uri, config.storage)
    config = with_absolute_places(config, output)
    train = config.train
    annotated, subset = load_training_set(config)
    spec = resolve_spec(config.model.spec, annotated.categories)
    check_learnable(annotated, config.data.train, in_channels=spec.in_channels)
    _check_norms(config)
    sets = {"data.train": annotated}
    if train.validates:
        if config.data.val is None:
            name = "steps" if train.validate_every_steps is not None else "epochs"
            raise ValueError(
                f"train.validate_every_{name} is set, but data.val is null; give a validation set, or null here"
            )
        sets["data.val"] = load_validation_set(config, annotated.categories)
    newest = output.load_newest()
    if newest is None:  # a resumed training does not need what it started from
        _check_start(config, spec)
    else:
        _check_same_classes(output, newest[1].categories, annotated.categories)
    num_done, num_seen = (0, 0) if newest is None else (newest[0], int(newest[1].progress.get("num_seen", 0)))
    check_same_training(output, to_saved(config), num_done=num_done, num_images=len(annotated))
    num_left = steps_left(train, len(annotated), train.num_workers, step=num_done, num_seen=num_seen)
    finished = output.read_finished()
    hashes = {name: hash_annotations(each) for name, each in sets.items()}
    before = output.read_annotations()
    return TrainPlan(
        config=config,
        num_images=len(annotated),
        num_instances=annotated.num_instances,
        num_categories=len(annotated.categories),
        max_steps=num_done + num_left,
        num_done=num_done,
        is_finished=finished is not None and (num_left == 0 or finished.stopped_early),
        subset=subset,
        annotations=hashes,
        notes=(
            *(f"{name}: {note}: {count:,}" for name, each in sets.items() for note, count in all_notes(each).items()),
            *(
                f"the annotations of {name} have changed since this training was started or resumed last "
                f"(sha256 {before[name][:12]} then, {sha256[:12]} now)"
                for name, sha256 in hashes.items()
                if before.get(name, sha256) != sha256
            ),
        ),
    )


def _check_same_classes(output: TrainingOutput, there: Sequence[Category], now: Sequence[Category]) -> None:
    """Raises ValueError where the classes of a resumed training are other ones than the data has now."""
    pairs = enumerate(itertools.zip_longest(there, now), start=1)
    rows = [
        (f"label {label}", old and f"{old.id} {old.name}", new and f"{new.id} {new.name}")
        for label, (old, new) in pairs
        if old != new
    ]
    if rows:
        raise ValueError(
            f"output.uri={output.uri!r} holds a training of other classes than data.train has:\n"
            f"{to_table(rows, 'in the training')}\nallowed are the same classes, or another output.uri"
        )


def _check_norms(config: TrainConfig) -> None:
    """Refuses norms that cannot work with the starting weights or the workers.

    Raises:
        ConfigError: frozen_batch from random weights, or sync_batch on several CPU workers.
    """
    model, train = config.model, config.train
    if model.spec.norm == "frozen_batch" and model.weights is None and model.checkpoint is None:
        raise ConfigError(
            "model.spec.norm: 'frozen_batch' is not allowed without model.weights or model.checkpoint: the frozen "
            "statistics of random weights mean nothing; from scratch take 'group' or 'batch'"
        )
    for name in ("norm", "head_norm"):
        if getattr(model.spec, name) == "sync_batch" and train.num_workers > 1 and not train.use_gpu:
            raise ConfigError(
                f"model.spec.{name}: 'sync_batch' is not allowed with several workers on CPUs: torch synchronises "
                "batch norm on GPUs only; take 'group' or 'batch'"
            )


def _check_start(config: TrainConfig, spec: ModelSpec) -> None:
    """Reads the checkpoint or weights that the network is to start from.

    Raises:
        ValueError: They are not there, or cannot be read.
    """
    if config.model.checkpoint is not None:
        open_checkpoint(config.model.checkpoint, settings=config.storage)
    if (weights := local_weights(config.model.weights, config.storage)) is not None:
        find_state_dict(spec, weights)


def run_train(plan: TrainPlan, *, on_progress: Callable[[TrainEvent], None] | None = None) -> TrainResult:
    """Starts or resumes the training on a Ray cluster; does nothing if it is finished.

    Args:
        plan: From prepare_train.
        on_progress: Called for each event, from another thread, one call at a time.

    Raises:
        ConfigError: The cluster is too small; nothing was written.
        TrainingFailed: The training stopped; its checkpoints are kept, and the same command resumes from them.
    """
    say = on_progress or (lambda event: None)
    output = TrainingOutput(plan.config.output.uri, plan.config.storage)
    if plan.is_finished:
        return _result(output, plan.num_done, was_finished=True)
    with cluster(plan.config.cluster):
        check_room(plan.config, joined_nodes())
        _begin(plan, output, say)
        return _fit(plan.config, output, say)


def run_train_here(plan: TrainPlan, *, on_progress: Callable[[TrainEvent], None] | None = None) -> TrainResult:
    """As `run_train`, without Ray: this process is the only worker.

    Raises:
        ValueError: The training cannot go on; its checkpoints are kept.
    """
    say = on_progress or (lambda event: None)
    train = plan.config.train
    output = TrainingOutput(plan.config.output.uri, plan.config.storage)
    if plan.is_finished:
        return _result(output, plan.num_done, was_finished=True)
    _begin(plan, output, say)
    collector = Collector(say)
    torch.set_num_threads(train.cpus_per_worker or 1)
    worker = Worker(device=torch.device("cuda" if train.use_gpu else "cpu"))
    TrainingRun(
        plan.config, worker, lambda kind, sentence, **values: collector.take(TrainEvent(kind, sentence, 0, values))
    ).run()
    write_summary(output, plan.config, broken=collector.broken)
    return _result(
        output, output.steps()[-1], broken_images=collector.broken, unturned_images=frozenset(collector.unturned)
    )


def _begin(plan: TrainPlan, output: TrainingOutput, say: Callable[[TrainEvent], None]) -> None:
    """Writes the settings, the hash of the annotations, and the record of the subset."""
    output.write_config(to_saved(plan.config))
    output.write_annotations(plan.annotations)
    if plan.subset is not None:
        output.storage.write_bytes(SUBSET, to_json(plan.subset.to_dict()))
    for note in plan.notes:
        say(TrainEvent("note", f"note: {note}"))
    say(TrainEvent("start", plan.describe()))


def to_saved(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values, as config.yaml keeps them: without the storage section and its credentials."""
    return {name: values for name, values in to_plain(config).items() if name != "storage"}


def check_same_training(output: TrainingOutput, settings: Mapping[str, Any], *, num_done: int, num_images: int) -> None:
    """Checks that settings train the same as those that the output was started with; NOT_IDENTITY may differ.

    The length (max_steps, num_epochs) may change if the learning rate of every step done stays the same.

    Args:
        output: The training's output; one without settings passes.
        settings: As from `to_saved`.
        num_done: Steps done.
        num_images: Images of the training set.

    Raises:
        ValueError: Settings differ; the message names each with both values.
    """
    started = output.read_config()
    if started is None:
        return
    rows = [row for row in differences(started, settings) if row[0] not in NOT_IDENTITY]
    is_longer = {key for key, _, _ in rows} <= {"train.max_steps", "train.num_epochs"}
    if rows and not (is_longer and _same_rates(started, settings, num_done, num_images)):
        raise ValueError(
            f"output.uri={output.uri!r} holds a training with other settings:\n{to_table(rows, 'in the training')}\n"
            "give another output.uri for a training of its own, or the settings of that training to resume it"
        )


def _same_rates(started: Mapping[str, Any], settings: Mapping[str, Any], num_done: int, num_images: int) -> bool:
    """Whether both settings give each of the first num_done steps the same learning rate."""
    rates = []
    for values in (started, settings):
        train = TrainConfig.model_validate(values).train
        length = steps_left(train, num_images, train.num_workers)
        schedule = schedule_of(train, max_steps=length, world_size=train.num_workers)
        rates.append([schedule.rate_at(step) for step in range(num_done)])
    return rates[0] == rates[1]


def with_absolute_places(config: TrainConfig, output: TrainingOutput) -> TrainConfig:
    """The settings with absolute paths and URIs, as workers run in other folders and on other machines."""

    def absolute(section: Config) -> Config:
        kind = type(section)
        # What has a scheme stays as it is written, as in trainings that were begun before.
        places = map_places(kind, to_plain(section), lambda _, uri: uri if scheme_of(uri) else absolute_uri(uri))
        return kind.model_validate(places)

    return config.model_copy(
        update={
            "data": absolute(config.data),
            "model": absolute(config.model),
            "output": config.output.model_copy(update={"uri": output.uri}),
        }
    )


def check_room(config: TrainConfig, nodes: Nodes) -> None:
    """Checks that a cluster's nodes have the CPUs and GPUs for the least number of workers; Ray would wait for ever.

    Raises:
        ConfigError: It has too few of them.
    """
    train = config.train
    num_workers = train.min_workers or train.num_workers
    cpus = train.cpus_per_worker or 1
    for name, per_worker in (("CPU", cpus), ("GPU", int(train.use_gpu))):
        needed, present = per_worker * num_workers, nodes.total(name)
        if needed > present:
            raise ConfigError(
                f"train.num_workers: {num_workers} needs {needed} {name}s, the cluster has {present}; allowed are "
                f"at most {present // per_worker} workers"
            )
    if (room := nodes.room(cpus, int(train.use_gpu))) < num_workers:
        raise ConfigError(
            f"train.num_workers: {num_workers} workers of {cpus} CPUs{' and a GPU' if train.use_gpu else ''} find no "
            f"room on the nodes of the cluster; allowed are at most {room}"
        )


def _fit(config: TrainConfig, output: TrainingOutput, say: Callable[[TrainEvent], None]) -> TrainResult:
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    train = config.train
    board = start_board()
    listener = Listener(board, say)
    size: Any = train.num_workers if train.min_workers is None else (train.min_workers, train.num_workers)
    resources = {"CPU": train.cpus_per_worker or 1} | ({"GPU": 1} if train.use_gpu else {})
    with tempfile.TemporaryDirectory(prefix="maskfleet-train-") as scratch:
        # Ray's type hints here are those of its older API, hence the ignores of this function.
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]
            train_loop_config={"config": config, "board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=size,
                use_gpu=train.use_gpu,
                resources_per_worker=resources,
            ),
            # Ray's own state goes to a folder that is removed: progress is kept in our checkpoints only.
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            ),
        )
        listener.start()
        try:
            outcome: LoopResult | TrainingStopped = _run_fit(trainer, board, say).return_value
        except ray.train.TrainingFailedError as error:
            outcome = TrainingStopped(last_line(error))
        except Interrupted as interrupt:
            steps = output.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint was written"
            interrupt.go_on = f"{kept}; run the same command again to go on"
            raise
        finally:
            listener.stop()
            ray.kill(board)
    steps = output.steps()
    if output.read_metrics():
        write_summary(output, config, broken=listener.collector.broken)
    if isinstance(outcome, TrainingStopped):
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint was written"
        raise TrainingFailed(f"the training stopped: {outcome} ({kept})")
    return _result(
        output,
        steps[-1],
        stopped_early=outcome.stopped_early,
        broken_images=listener.collector.broken,
        unturned_images=frozenset(listener.collector.unturned),
        num_restarts=listener.num_restarts,
    )


def _run_fit(trainer: Any, board: Any, say: Callable[[TrainEvent], None]) -> Any:
    """Runs a trainer to its end; once interrupted, lets the workers write a checkpoint first.

    It runs in a thread of its own: in the main thread, Ray Train would put its own handler in the place of ours.

    Raises:
        Interrupted: The training was interrupted and its workers have ended, or had nothing to save.
    """
    import ray

    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="training", daemon=True).start()
    try:
        return done.result()
    except Interrupted as interrupt:
        interrupt.end_within(CHECKPOINT_S)
        if ray.get(board.stop.remote("it was interrupted")):
            say(TrainEvent("interrupted", "a checkpoint is written first, which takes as long as one takes"))
            with contextlib.suppress(ray.train.TrainingFailedError):
                done.result()
        interrupt.end_within(END_S)
        raise


def _result(output: TrainingOutput, step: int, **values: Any) -> TrainResult:
    rows = output.read_metrics()
    return TrainResult(
        output_uri=output.uri,
        checkpoint_uri=output.checkpoint_uri(step),
        step=step,
        last_metrics=rows[-1] if rows else {},
        **values,
    )
