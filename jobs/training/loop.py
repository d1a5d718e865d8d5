"""Training loop of one worker: resumes from the newest checkpoint, trains, logs, validates and writes checkpoints.

The workers are Ray Train's; the loop itself asks Ray only for its rank. Progress is kept in one place, the newest
complete checkpoint in the output: a worker group that Ray starts again after a lost worker, and a command that is run
again, both go on from there. Ray's own checkpoints are not used, so there is no second record that could disagree.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from jobs.checkpoints import local_weights, open_checkpoint
from jobs.config.load import config_hash
from jobs.config.train import TrainConfig, TrainSection
from jobs.progress import format_seconds
from jobs.training.data import BatchStream, Loading, SampleOrder, StepBatches
from jobs.training.events import StopRequests, TrainEvent
from jobs.training.history import History
from jobs.training.output import Finished, TrainingOutput, checkpoint_name
from jobs.training.sets import load_training_set, load_validation_set
from jobs.training.validation import Validation
from model.categories import Category
from model.checkpoint import Checkpoint, save_checkpoint
from model.network import build_model
from model.spec import ModelSpec
from model.training.train_step import (
    Schedule,
    StepResult,
    StepSettings,
    Trainer,
    WorkerRank,
    build_optimizer,
    mix_seed,
)
from model.weights.loading import load_matching
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.subset import take_subset
from pipeline.dataset.transforms.augment import build_transforms
from pipeline.storage.base import StorageSettings

# Called for each event people should see: a kind ("step", "checkpoint", ...), a sentence, and values by name.
Report = Callable[..., None]


class TrainingStopped(ValueError):
    """The training cannot go on, and would end the same way if it were tried again; the message says why."""


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Worker(WorkerRank):
    """The rank and device of a worker, and the number of all workers and of those on its node."""

    local_world_size: int = 1
    device: torch.device = _CPU


@dataclass(frozen=True)
class LoopResult:
    """What a worker has done: steps, those of them that were not finite, and whether it stopped before the last."""

    step: int
    num_non_finite: int
    stopped_early: bool


def resolve_spec(spec: ModelSpec, categories: tuple[Category, ...]) -> ModelSpec:
    """The spec with num_classes 0 replaced by the number of the data's categories.

    Raises:
        ValueError: The spec states another number of classes than the data has.
    """
    if spec.num_classes == 0:
        return spec.replace(num_classes=len(categories))
    if spec.num_classes != len(categories):
        names = ", ".join(category.name for category in categories[:10])
        raise ValueError(
            f"model.spec.num_classes is {spec.num_classes}, but the training data has {len(categories)} categories "
            f"({names}{', ...' if len(categories) > 10 else ''}); allowed is {len(categories)}, "
            "or 0 for as many as it has"
        )
    return spec


def images_per_step(train: TrainSection, world_size: int) -> int:
    """Images that all workers together train on in one step."""
    return train.batch_size * train.accumulate_steps * world_size


def steps_left(train: TrainSection, num_images: int, world_size: int, *, step: int = 0, num_seen: int = 0) -> int:
    """Steps that remain after `step` steps on `num_seen` samples, up to the earlier of max_steps and num_epochs."""
    limits = [] if train.max_steps is None else [train.max_steps - step]
    if train.num_epochs is not None:
        limits.append(math.ceil((train.num_epochs * num_images - num_seen) / images_per_step(train, world_size)))
    return max(0, min(limits))


def schedule_of(train: TrainSection, *, max_steps: int, world_size: int) -> Schedule:
    """Learning rate schedule; with train.reference_batch_size scaled linearly to the batch (Goyal et al., 2017)."""
    scale = (
        1.0 if train.reference_batch_size is None else images_per_step(train, world_size) / train.reference_batch_size
    )
    return Schedule(
        train.schedule,
        learning_rate=train.learning_rate * scale,
        max_steps=max_steps,
        warmup_steps=train.warmup_steps,
        warmup_factor=train.warmup_factor,
        milestones=train.milestones,
        gamma=train.gamma,
        final_factor=train.final_factor,
    )


@dataclass
class Window:
    """Sums of losses, images and times over the steps since the last row of metrics."""

    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    num_steps: int = 0
    num_images: int = 0
    wait_s: float = 0.0
    grad_norm: float = 0.0
    started_at: float = field(default_factory=time.perf_counter)

    def add(self, result: StepResult, *, num_images: int, wait_s: float) -> None:
        """Adds one applied step."""
        for name, value in result.losses.items():
            self.losses[name] = self.losses.get(name, 0) + value
        self.num_steps += 1
        self.num_images += num_images
        self.wait_s += wait_s
        self.grad_norm += result.grad_norm or 0.0

    def means(self, worker: Worker) -> dict[str, float]:
        """Means over the steps and all workers: each loss term, loss (their sum), speed. Every worker must call it.

        `images_per_s` is of all workers together; `grad_norm` is this worker's; `data_wait_share` is 0..1.
        """
        seconds = time.perf_counter() - self.started_at
        names = sorted(self.losses)
        steps = max(1, self.num_steps)
        values = torch.stack(
            [self.losses[name].double() / steps for name in names]
            + [
                torch.tensor(value, dtype=torch.float64, device=worker.device)
                for value in (self.num_images, self.wait_s, seconds)
            ]
        )
        if worker.world_size > 1:
            dist.all_reduce(values)
            values /= worker.world_size
        *losses, num_images, wait_s, seconds = values.tolist()
        return {
            "loss": math.fsum(losses),
            **dict(zip(names, losses)),
            "grad_norm": self.grad_norm / steps,
            "images_per_s": num_images * worker.world_size / seconds,
            "step_s": seconds / steps,
            "data_wait_share": wait_s / seconds,
        }


class TrainingRun:
    """One worker's part of a training: network, optimizer, metrics and progress.

    `report` is called for what people should see: on rank 0 for everything, elsewhere for broken and unturned images.
    `stop_reason` is asked on rank 0 after each step, with whether steps were done since the newest checkpoint; where it
    gives a reason, a checkpoint is written and the training ends.
    """

    def __init__(
        self,
        config: TrainConfig,
        worker: Worker,
        report: Report,
        stop_reason: Callable[[bool], str | None] = lambda has_unsaved_steps: None,
    ) -> None:
        self.config = config
        self.train = config.train
        self.worker = worker
        self.report = report if worker.rank == 0 else _ignore_event
        self.report_always = report
        self.stop_reason = stop_reason
        self.output = TrainingOutput(config.output.uri, config.storage)
        self.annotated, _ = load_training_set(config)
        self.spec = resolve_spec(config.model.spec, self.annotated.categories)
        self._start = self._find_start()
        self.trainer = self._build_trainer()
        self.step = 0
        self.num_seen = 0
        self.num_non_finite = 0
        self.history = History(self.output if worker.rank == 0 else None)
        self.is_stopped_early = False
        self.validations: list[tuple[str, Validation]] = []

    @property
    def max_steps(self) -> int:
        """Steps of the whole training, including those done, if the number of workers does not change."""
        return self.step + steps_left(
            self.train, len(self.annotated), self.worker.world_size, step=self.step, num_seen=self.num_seen
        )

    def _build_trainer(self) -> Trainer:
        train = self.train
        torch.manual_seed(mix_seed(train.seed, 0))
        # A resumed training does not need what it started from, which may not exist any more.
        is_new = self._start is None
        model = build_model(
            self.spec, weights=local_weights(self.config.model.weights, self.config.storage) if is_new else None
        )
        if model.weights_report is not None:
            self.report("start", str(model.weights_report))
        if is_new and self.config.model.checkpoint is not None:
            self.report("start", load_fitting(model, self.config.model.checkpoint, self.config.storage))
        # With a resizing augmentation the network trains at the sizes that gives; prediction always resizes.
        model.transform.resizes_in_training = self.config.data.augment.resize == "none"
        model.to(self.worker.device).train()
        if train.channels_last:
            model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(
            model,
            name=train.optimizer,
            learning_rate=train.learning_rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            norm_weight_decay=train.norm_weight_decay,
        )
        trainer = Trainer(
            model,
            optimizer,
            StepSettings(
                seed=train.seed,
                precision=train.precision,
                clip_norm=train.clip_norm,
                ema_decay=train.ema_decay,
                global_normalisers=train.global_normalisers,
            ),
            self.worker,
        )
        if train.compile:
            model.backbone.compile()  # in place, so that the names in the state dict stay
        return trainer

    def _find_start(self) -> tuple[int, Checkpoint] | None:
        """The newest checkpoint that can be read, as (step, checkpoint), the same on every worker; None without one.

        Rank 0 looks for it and tells the others its step.
        """
        newest = None
        if self.worker.rank == 0:
            newest = self.output.load_newest(on_bad=lambda sentence: self.report("set_aside", sentence))
        step = _broadcast(None if newest is None else newest[0], self.worker)
        if step is None or newest is not None:
            return newest
        return step, self.output.load(step)

    def resume(self) -> None:
        """Restores weights, optimizer, progress and metrics from the newest checkpoint, if there is one."""
        if self._start is None:
            return
        step, checkpoint = self._start
        self._start = None  # frees its memory
        if checkpoint.training_state is None:
            raise TrainingStopped(f"{self.output.checkpoint_uri(step)} holds no training state to go on from")
        self.trainer.load_state_dict(checkpoint.training_state, checkpoint.state_dict)
        self.step = step
        self.num_seen = int(checkpoint.progress["num_seen"])
        self.num_non_finite = int(checkpoint.progress["num_non_finite"])
        self.history.resume(step)
        self.report("resume", f"going on after step {step} of {self.max_steps}", step=step)

    def run(self) -> LoopResult:
        """Trains to the end.

        Raises:
            TrainingStopped: The checkpoint has no training state, too many steps were not finite, or `stop_reason`
                gave a reason.
        """
        self.resume()
        with contextlib.ExitStack() as stack:
            self._open_validations(stack)
            max_steps = self.max_steps
            if self._is_validation_step(self.step == max_steps) and not self._has_validation():
                self._validate()  # the training was cut off between this step's checkpoint and its validation
            stream = stack.enter_context(self._open_stream(max_steps - self.step))
            self._train(stream, max_steps)
            self._finish_validation()
        self._save_metrics()
        if self.worker.rank == 0:
            self.output.write_finished(Finished(self.step, self.is_stopped_early, config_hash(self.config)))
        return LoopResult(self.step, self.num_non_finite, self.is_stopped_early)

    def _train(self, stream: BatchStream, max_steps: int) -> None:
        window = Window()
        schedule = schedule_of(self.train, max_steps=max_steps, world_size=self.worker.world_size)
        for batches in stream:
            self._train_step(batches, window, schedule.rate_at(self.step))
            is_last = self.step == max_steps
            is_validation = self._is_validation_step(is_last)
            stop_reason = None if is_last else self._stop_reason(has_unsaved_steps=True)
            is_due = self.step % self.train.checkpoint_every_steps == 0
            is_checkpoint = is_due or is_last or is_validation or stop_reason is not None
            # A row ends at each checkpoint too, so that a resumed training has the same rows as an undisturbed one.
            if self.step % self.train.log_every_steps == 0 or is_checkpoint:
                self._log(window, max_steps)
                window = Window()
            if is_checkpoint:
                paused_at = time.perf_counter()
                self._finish_validation()
                self._save(is_last)
                stop_reason = stop_reason or self._stop_reason(has_unsaved_steps=False)
                if stop_reason is not None and not self.is_stopped_early:
                    raise TrainingStopped(stop_reason)
                if is_validation and not self.is_stopped_early:
                    self._validate()
                window.started_at += time.perf_counter() - paused_at
            if self.is_stopped_early:
                return

    def _stop_reason(self, has_unsaved_steps: bool) -> str | None:
        reason = self.stop_reason(has_unsaved_steps) if self.worker.rank == 0 else None
        return _broadcast(reason, self.worker)

    def _open_stream(self, num_steps: int) -> BatchStream:
        train, data = self.train, self.config.data
        transforms = build_transforms(data.augment, self.annotated.keypoint_names)
        samples = SampleSet(
            self.annotated, transforms, seed=train.seed, in_channels=self.spec.in_channels, copy_paste=data.copy_paste
        )
        order = SampleOrder(
            [(image.height, image.width) for image in self.annotated.images],
            seed=train.seed,
            # The configured number of workers, not the present one: the order must not change when a worker is lost.
            group_size=images_per_step(train, train.num_workers) if train.group_aspect_ratios else 0,
        )
        return BatchStream(
            samples,
            order,
            batch_size=train.batch_size,
            accumulate_steps=train.accumulate_steps,
            worker=self.worker,
            num_seen=self.num_seen,
            num_steps=num_steps,
            loading=Loading(train.data_workers, train.prefetch_batches, pin_memory=self.worker.device.type == "cuda"),
        )

    def _train_step(self, batches: StepBatches, window: Window, learning_rate: float) -> None:
        for image_id, reason in batches.broken.items():
            self.report_always("broken", f"image {image_id} is skipped: {reason}", image_id=image_id, reason=reason)
        for image_id in batches.unturned:
            self.report_always("unturned", f"image {image_id} is used unturned, as annotated", image_id=image_id)
        result = self.trainer.step(batches.micro_batches, step=self.step, learning_rate=learning_rate)
        self.step += 1
        self.num_seen += images_per_step(self.train, self.worker.world_size)
        if result.applied:
            num_images = sum(len(batch.images) for batch in batches.micro_batches)
            window.add(result, num_images=num_images, wait_s=batches.wait_s)
        else:
            self._on_non_finite(result)

    def _on_non_finite(self, result: StepResult) -> None:
        self.num_non_finite += 1
        suspects = sorted({image_id for ids in _gather(result.suspects, self.worker) for image_id in ids})
        sentence = (
            f"step {self.step}: the loss or its gradient is not finite; images of the batch: {', '.join(suspects)}"
        )
        if self.num_non_finite > self.train.max_non_finite_steps:
            raise TrainingStopped(
                f"{sentence}. {self.num_non_finite} steps were not finite, and train.max_non_finite_steps allows "
                f"{self.train.max_non_finite_steps}; a lower train.learning_rate, a longer train.warmup_steps or "
                "train.clip_norm may help"
            )
        self.report("non_finite", f"{sentence}; the step is skipped", step=self.step, image_ids=suspects)

    def _log(self, window: Window, max_steps: int) -> None:
        if window.num_steps == 0:  # every step of the window was skipped, on every worker alike
            return
        means = window.means(self.worker)
        remaining_s = (max_steps - self.step) * means["step_s"]
        row = {
            "step": self.step,
            "epoch": self.num_seen / len(self.annotated),
            "learning_rate": self.trainer.optimizer.param_groups[0]["lr"],
            **means,
            "num_non_finite": self.num_non_finite,
            "peak_memory_bytes": _peak_memory_bytes(self.worker.device),
        }
        self.history.add(row)
        self.report(
            "step",
            f"step {self.step}/{max_steps}  loss {means['loss']:.4f}  ETA {format_seconds(remaining_s)}  "
            f"{means['images_per_s']:.1f} images/s  data wait {means['data_wait_share']:.1%}  "
            f"lr {row['learning_rate']:.2e}",
            **row,
            max_steps=max_steps,
            eta_s=remaining_s,
        )

    def _save_metrics(self) -> None:
        self.history.save(tensorboard=self.train.tensorboard)

    def _save(self, is_last: bool) -> None:
        """Rank 0 writes the metrics, then the checkpoint, so that metrics are never behind the newest checkpoint."""
        if self.worker.rank != 0:
            return
        self._save_metrics()
        progress = {
            "step": self.step,
            "epoch": self.num_seen / len(self.annotated),
            "num_seen": self.num_seen,
            "num_non_finite": self.num_non_finite,
            "world_size": self.worker.world_size,
            "finished": is_last or self.is_stopped_early,
        }
        uri = self.output.save(
            self.step,
            lambda folder: save_checkpoint(
                folder,
                model=self.trainer.saved_model(),
                spec=self.spec,
                categories=self.annotated.categories,
                progress=progress,
                training_state=self.trainer.state_dict(),
            ),
        )
        best = self.history.best()
        self.output.prune(self.train.num_to_keep, keep=[] if best is None else [int(best["step"])])
        self.report("checkpoint", f"checkpoint {uri}", step=self.step, uri=uri)

    # -- validation

    def _open_validations(self, stack: contextlib.ExitStack) -> None:
        if not self.train.validates or self.config.data.val is None:
            return
        sets = [("", load_validation_set(self.config, self.annotated.categories))]
        if self.train.validate_train_images:
            num_images = min(self.train.validate_train_images, len(self.annotated))
            sets.append(("train_", take_subset(self.annotated, num_images, seed=self.train.seed)[0]))
        for prefix, annotated in sets:
            validation = Validation(
                annotated,
                self.annotated.categories,
                self.spec,
                device=self.worker.device,
                worker=self.worker,
                num_processes=self.train.data_workers,
            )
            self.validations.append((prefix, stack.enter_context(validation)))

    def _is_validation_step(self, is_last: bool = False) -> bool:
        every_steps, every_epochs = self.train.validate_every_steps, self.train.validate_every_epochs
        if self.step == 0:
            return False
        if every_steps is not None:
            return is_last or self.step % every_steps == 0
        if every_epochs is None:
            return False
        # The step that passes a multiple of this many samples.
        interval = every_epochs * len(self.annotated)
        seen_before = self.num_seen - images_per_step(self.train, self.worker.world_size)
        return is_last or self.num_seen // interval > seen_before // interval

    def _has_validation(self) -> bool:
        return bool(_broadcast(self.history.has_validation(self.step), self.worker))

    def _validate(self) -> None:
        """Every worker predicts; rank 0 then computes the figures in another thread, while training goes on."""
        started = time.perf_counter()
        for prefix, validation in self.validations:
            shares = _gather_to_rank_0(validation.predict(self.trainer.saved_model()), self.worker)
            if self.worker.rank == 0:
                figures = validation.evaluate_later(shares)
                self.history.expect(self.step, self.num_seen / len(self.annotated), prefix, figures)
        self.history.prediction_s = time.perf_counter() - started

    def _finish_validation(self) -> None:
        """Waits for the figures of the last validation; all workers then decide alike whether to stop early."""
        row = self.history.collect()
        if row is not None:
            is_best = self.history.best() == row
            if is_best:
                self.output.write_best({**row, "checkpoint": f"checkpoints/{checkpoint_name(int(row['step']))}"})
            figures = ", ".join(f"{name} {row[name]:.3f}" for name in ("segm_AP", "bbox_AP", "mean_iou") if name in row)
            self.report(
                "validation",
                f"step {row['step']}: {figures}{', the best so far' if is_best else ''}",
                **row,
                is_best=is_best,
            )
        if self.train.early_stop_patience is not None:
            is_over = self.history.num_validations_since_best() >= self.train.early_stop_patience
            self.is_stopped_early = _broadcast(is_over, self.worker)


def load_fitting(model: torch.nn.Module, source: str, settings: StorageSettings | None = None) -> str:
    """Copies every tensor of the same name and shape from a checkpoint into a network; returns a sentence about it.

    Raises:
        ValueError: No readable checkpoint at `source`, or no tensor fits.
    """
    report = load_matching(model, open_checkpoint(source, settings=settings).state_dict, source=source)
    if not report.loaded:
        raise ValueError(f"nothing in the checkpoint {source} fits the network of model.spec")
    return f"starting from {source}: {len(report.loaded)} of {len(model.state_dict())} tensors fit"


def train_worker(settings: Mapping[str, Any]) -> LoopResult | TrainingStopped:
    """Ray Train's per-worker function; returns what `TrainingRun.run` does.

    A TrainingStopped is returned, not raised: after any exception Ray starts the workers again, as often as
    max_failures allows, though the error would come again.
    """
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_world_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
    )
    config: TrainConfig = settings["config"]
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.train.cpus_per_worker or max(1, num_cores // worker.local_world_size))
    board = settings["board"]
    stopped = ray.get(board.stopped.remote(False))
    if stopped is not None:
        return TrainingStopped(stopped)

    def report(kind: str, sentence: str, **values: Any) -> None:
        board.push.remote(TrainEvent(kind, sentence, worker.rank, values))

    report("started", f"worker {worker.rank} of {worker.world_size} started", pid=os.getpid())
    try:
        return TrainingRun(config, worker, report, StopRequests(board).reason).run()
    except TrainingStopped as error:  # decided by all workers together
        return error
    except ValueError as error:
        # It may be this worker's alone, while the others wait for it: leave the reason, and let Ray end them all.
        ray.get(board.stop.remote(str(error)))
        raise


def _ignore_event(kind: str, sentence: str, **values: Any) -> None:
    pass


def _broadcast(value: Any, worker: Worker) -> Any:
    """Rank 0's value, on every worker."""
    if worker.world_size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=worker.device if worker.device.type == "cuda" else None)
    return values[0]


def _gather_to_rank_0(value: Any, worker: Worker) -> list[Any]:
    """All workers' values by rank, on rank 0; elsewhere an empty list."""
    if worker.world_size == 1:
        return [value]
    gathered: list[Any] | None = [None] * worker.world_size if worker.rank == 0 else None
    dist.gather_object(value, gathered)
    return gathered or []


def _gather(value: Any, worker: Worker) -> list[Any]:
    """All workers' values by rank, on every worker."""
    if worker.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * worker.world_size
    dist.all_gather_object(gathered, value)
    return gathered


def _peak_memory_bytes(device: torch.device) -> int:
    """Largest memory used so far, in bytes: by tensors on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
