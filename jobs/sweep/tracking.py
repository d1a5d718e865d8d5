"""A sweep as MLflow runs: one of the sweep itself, and nested in it one for each trial, which compares them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jobs.config.sweep import SweepConfig
from jobs.config.train import TrainConfig
from jobs.sweep.results import CONFIG, RESULTS, TrialRow
from jobs.tracking.store import RunRecord, record_id, to_parameters, to_tags
from jobs.tracking.tracker import Tracker, open_tracker
from jobs.training.output import TrainingOutput
from jobs.training.tracking import end_seconds, to_record
from pipeline.storage.base import Storage
from pipeline.storage.uri import base_name


class TrackedSweep:
    """The MLflow runs of a sweep under way; without a tracker it does nothing.

    Args:
        tracker: Sends the runs.
        config: The sweep's settings.
        output: Its output, which has its settings already.
        trials: The settings of each trial by its name.
    """

    def __init__(
        self, tracker: Tracker | None, config: SweepConfig, output: Storage, trials: Mapping[str, TrainConfig]
    ) -> None:
        self._tracker, self._config, self._output, self._trials = tracker, config, output, trials
        self._records: dict[str, RunRecord] = {}
        self._ended: set[str] = set()
        if tracker is not None:
            self._sweep = self._to_record()
            tracker.start(self._sweep)

    def __getstate__(self) -> dict[str, object]:
        """A copy sends nothing: Ray Tune pickles its callbacks, which hold this, to restore sweeps; we never do."""
        return {**vars(self), "_tracker": None, "_records": {}, "_sweep": None}

    @property
    def outcome(self) -> str:
        """At the end, a line that says where the sweep's run is, or that values were not sent; "" without MLflow."""
        return "" if self._tracker is None else self._tracker.outcome

    def update(self, trial: str) -> None:
        """Has a trial's run brought up to date."""
        if self._tracker is not None:
            self._tracker.update(self._record_of(trial))

    def end_trial(self, trial: str, error: str | None) -> None:
        """Has a trial's run ended, as failed where there is an error; the first call for a trial counts."""
        if self._tracker is not None and trial not in self._ended:
            self._ended.add(trial)
            self._tracker.end(self._record_of(trial), "FINISHED" if error is None else "FAILED")

    def end(self, rows: Sequence[TrialRow]) -> None:
        """Has all runs ended, those of trials that were trained before too."""
        for row in rows:
            self.end_trial(row.trial, row.error)
        if self._tracker is not None:
            self._tracker.end(self._sweep, "FAILED" if any(row.error for row in rows) else "FINISHED")

    def _record_of(self, trial: str) -> RunRecord:
        if trial not in self._records:
            config = self._trials[trial].model_copy(update={"tracking": self._config.tracking})
            output = TrainingOutput(config.output.uri, config.storage)
            self._records[trial] = to_record(config, output, trial, self._sweep)
        return self._records[trial]

    def _to_record(self) -> RunRecord:
        def write_files(folder: Path) -> None:
            for name in (CONFIG, *(f"{RESULTS}.{ending}" for ending in ("md", "parquet", "png"))):
                with contextlib.suppress(FileNotFoundError):
                    (folder / name).write_bytes(self._output.read_bytes(name))

        return RunRecord(
            id=record_id(self._output),
            name=self._config.tracking.run_name or base_name(self._output.uri),
            settings=to_parameters(self._config),
            tags=to_tags("sweep", output_uri=self._output.uri),
            read_rows=lambda: [],
            write_files=write_files,
        )


@contextlib.contextmanager
def track_sweep(
    config: SweepConfig, output: Storage, trials: Mapping[str, TrainConfig], say: Callable[[str], None]
) -> Iterator[TrackedSweep]:
    """The runs of a sweep while the block runs; arguments as `TrackedSweep`, and `say` takes lines for people.

    Raises:
        ConfigError: MLflow does not answer, or refuses the run.
    """
    with open_tracker(config.tracking, say, end_seconds(config.tracking)) as tracker:
        yield TrackedSweep(tracker, config, output, trials)
