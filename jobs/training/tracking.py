"""A training as an MLflow run: its settings, tags, metrics and files, all read from its output, at each checkpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.config.tracking import TrainTrackingSection
from jobs.config.train import TrainConfig
from jobs.tracking.store import RunRecord, record_id, to_parameters, to_tags
from jobs.tracking.tracker import CHECKPOINT_END_S, END_S, open_tracker
from jobs.training.events import TrainEvent
from jobs.training.history import to_scalars
from jobs.training.output import BEST, CHECKPOINTS, CONFIG, METRICS, TrainingOutput, checkpoint_name
from pipeline.storage.uri import base_name

FILES = (CONFIG, METRICS, BEST, "summary.html", "curves.png")
Say = Callable[[TrainEvent], None]


@dataclass
class Tracked:
    """A training that is sent to MLflow, or to nothing.

    Attributes:
        say: Takes the training's events.
        outcome: At the end, a line that says where the run is, or that values were not sent; "" without MLflow.
    """

    say: Say
    outcome: str = ""


@contextlib.contextmanager
def track_training(config: TrainConfig, output: TrainingOutput, say: Say, *, is_finished: bool) -> Iterator[Tracked]:
    """Sends a training to the MLflow of its settings while the block runs; without one it does nothing.

    Args:
        config: The training's settings, with absolute places.
        output: Its output.
        say: Takes the events, of tracking too.
        is_finished: Whether it was finished before; its run is then only given what it lacks.

    Raises:
        ConfigError: MLflow does not answer, or refuses the run.
    """
    tracked = Tracked(say)
    end_s = end_seconds(config.tracking)
    with open_tracker(config.tracking, lambda line: say(TrainEvent("note", line)), end_s) as tracker:
        if tracker is not None:
            record = to_record(config, output, config.tracking.run_name or base_name(output.uri))
            if is_finished:
                tracker.end(record, "FINISHED")
            else:
                tracker.start(record)

            def take(event: TrainEvent) -> None:
                say(event)
                if event.kind == "checkpoint":
                    tracker.update(record)

            tracked.say = take
        yield tracked
    if tracker is not None:
        tracked.outcome = tracker.outcome


def end_seconds(section: TrainTrackingSection) -> float:
    """Seconds in which the last values must have been sent, checkpoints where they are wanted."""
    return CHECKPOINT_END_S if section.checkpoints else END_S


def to_record(config: TrainConfig, output: TrainingOutput, name: str, parent: RunRecord | None = None) -> RunRecord:
    """The record of a training, whose metrics are the rows of metrics.parquet up to the newest checkpoint.

    Later rows are of steps that a training that is resumed does again.
    """

    def read_rows() -> list[Mapping[str, float]]:
        newest = max(output.steps(), default=0)
        return [{"step": row["step"], **to_scalars(row)} for row in output.read_metrics() if row["step"] <= newest]

    def write_files(folder: Path) -> None:
        for name in [*FILES, *(_files_of_best(output) if config.tracking.checkpoints else ())]:
            with contextlib.suppress(FileNotFoundError):
                content = output.storage.read_bytes(name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    model = config.model.checkpoint or config.model.weights or config.model.preset or config.model.spec.backbone
    return RunRecord(
        id=record_id(output.storage),
        name=name,
        settings=to_parameters(config),
        tags=to_tags("train", model=model, data=", ".join(config.data.train_uris), output_uri=output.uri),
        read_rows=read_rows,
        write_files=write_files,
        parent=parent,
    )


def _files_of_best(output: TrainingOutput) -> list[str]:
    """The files of a finished training's best checkpoint; of its newest where nothing was validated."""
    finished = output.read_finished()
    if finished is None:
        return []
    try:
        step = json.loads(output.storage.read_bytes(BEST))["step"]
    except FileNotFoundError:
        step = finished.step
    return [info.key for info in output.storage.iter_objects(f"{CHECKPOINTS}/{checkpoint_name(step)}/")]
