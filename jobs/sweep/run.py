"""`maskfleet sweep`: one training for each point of a grid, several at a time on Ray Tune, and a table of results.

    OUT/sweep.yaml                       the settings
    OUT/trials/<name>/                   the output of each training, as `maskfleet train` leaves it
    OUT/data-<hash>/                     drawn data, with a draw section
    OUT/results.parquet, .md, .png       one row for each trial, means over the seeds, a plot

A trial is named after what it trains. The same command again trains only what is not finished; with a larger grid,
only what is new. Ray Tune places the trials and restarts those whose process was lost; progress is kept in their
outputs only.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from jobs.cluster.start import cluster, joined_nodes, nodes_of
from jobs.config.base import flatten
from jobs.config.load import ConfigError, find_config, load_config, read_yaml, set_value, to_plain
from jobs.config.sweep import DrawSection, SweepConfig
from jobs.config.train import NOT_IDENTITY, TrainConfig
from jobs.sweep.results import TrialRow, make_row, write_results
from jobs.training.events import TrainEvent, last_line, start_board
from jobs.training.output import TrainingOutput
from jobs.training.train import (
    TrainingFailed,
    check_room,
    prepare_train,
    run_train,
    run_train_here,
    with_absolute_places,
)
from pipeline.dataset.shapes import draw_shapes
from pipeline.manifest import sha256_of, to_json
from pipeline.storage.base import Storage
from pipeline.storage.files import Location
from pipeline.storage.stores import open_storage

if TYPE_CHECKING:
    from ray import tune

CONFIG = "sweep.yaml"
TRIALS = "trials"


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        name: Folder name: readable, and different for trials that train something different.
        values: Its case, and its value of each key of the grid.
        seed: Its train.seed.
        config: Its whole configuration, with absolute URIs.
    """

    name: str
    values: Mapping[str, object]
    seed: int
    config: TrainConfig


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has passed all checks.

    Attributes:
        config: The settings.
        output: Where its results are written.
        trials: All trials, in the order of the table.
        finished: Names of the trials that are trained already.
    """

    config: SweepConfig
    output: Storage
    trials: tuple[Trial, ...]
    finished: frozenset[str]

    @property
    def waiting(self) -> list[Trial]:
        """The trials that are not trained yet."""
        return [trial for trial in self.trials if trial.name not in self.finished]

    def check_cluster(self) -> None:
        """Raises ConfigError where the cluster does not answer, or is too small for a trial."""
        if waiting := self.waiting:
            nodes = nodes_of(self.config.cluster)
            for trial in waiting:
                check_room(trial.config, nodes)

    def describe(self) -> str:
        """One line that says how many trainings there are and what they differ in."""
        axes = [f"{len(values)} x {key}" for key, values in self.config.sweep.grid.items()]
        axes = [f"{len(self.config.sweep.cases)} cases"] * bool(self.config.sweep.cases) + axes
        done = f", of which {len(self.finished)} are trained" if self.finished else ""
        return (
            f"{len(self.trials)} trainings ({', '.join([*axes, f'{len(self.config.sweep.seeds)} x seed'])}) into "
            f"{self.output.uri}{done}"
        )


@dataclass(frozen=True)
class SweepResult:
    """Results of a sweep: the rows of its table and its output's URI."""

    rows: tuple[TrialRow, ...]
    output_uri: str

    @property
    def num_failed(self) -> int:
        """Number of trials that failed."""
        return sum(row.error is not None for row in self.rows)

    def describe(self) -> str:
        """A line for each failed trial, and one that says where the table is."""
        lines = [f"{row.trial} failed: {row.error}" for row in self.rows if row.error is not None]
        num_done = len(self.rows) - self.num_failed
        lines.append(f"{num_done} of {len(self.rows)} trainings -> {self.output_uri}/results.md")
        return "\n".join(lines)


def prepare_sweep(config: SweepConfig) -> SweepPlan:
    """Checks every trial before anything is started or written.

    Raises:
        ConfigError: A key or value that no training takes; the message names it and the trial.
        ValueError: Data that cannot be used, or a trial's output that holds another training.
    """
    output = open_storage(config.output.uri, config.storage)
    if not output.exists(CONFIG) and next(output.iter_objects(), None) is not None:
        raise ConfigError(
            f"output.uri: {output.uri} holds something that is no sweep; allowed is an empty folder or a sweep's output"
        )
    trials = tuple(iter_trials(config, output))
    names = [trial.name for trial in trials]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"sweep: two trials are the same training ({duplicates[0]}); allowed is each value once")
    finished = frozenset(trial.name for trial in trials if _output_of(trial.config).read_finished() is not None)
    plan = SweepPlan(config, output, trials, finished)
    if config.draw is None:
        _check_data(plan.waiting)
    return plan


def run_sweep(plan: SweepPlan, *, on_progress: Callable[[str], None] | None = None) -> SweepResult:
    """Trains the trials that are not finished, and rewrites the table after each of them.

    A trial that fails has a row with its error; the others go on. The same command again tries it again.

    Args:
        plan: From prepare_sweep.
        on_progress: Called with one line about the state of the sweep whenever it changes.

    Raises:
        ConfigError: Drawn data that does not fit a trial, or a cluster too small for one, where nothing was written.
    """
    table = _Table(plan)
    if waiting := plan.waiting:
        with cluster(plan.config.cluster):
            plan.check_cluster()
            plan.output.write_bytes(CONFIG, _to_saved(plan.config))
            if plan.config.draw is not None:
                _draw(plan.config.draw, plan.output)
                _check_data(waiting)
            _tune(plan, waiting, table, on_progress or (lambda line: None))
    return SweepResult(tuple(table.write(is_last=True)), plan.output.uri)


def _to_saved(config: SweepConfig) -> bytes:
    """sweep.yaml: the settings without the storage section and its credentials."""
    values = {name: section for name, section in to_plain(config).items() if name != "storage"}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode()


# -- the trials


def iter_trials(config: SweepConfig, output: Storage) -> Iterator[Trial]:
    """Yields every trial, in the order of the table: by case, then by the grid's values, then by seed.

    Raises:
        ConfigError: A key or value that no training takes; the message names it and the trial.
    """
    sweep = config.sweep
    base = read_yaml(find_config(sweep.base, "train", "sweep.base")) if sweep.base is not None else {}
    base = {name: section for name, section in base.items() if name in ("model", "data", "train")}
    cases = sweep.cases or {"": {}}
    for (case, overrides), *points in itertools.product(
        cases.items(), *([(key, value) for value in values] for key, values in sweep.grid.items())
    ):
        values = ({"case": case} if case else {}) | dict(points)
        for seed in sweep.seeds:
            plain = copy.deepcopy(base)
            for key, value in {**sweep.fixed, **overrides, **dict(points), "train.seed": seed}.items():
                set_value(plain, key, value)
            if config.draw is not None:  # a name by contents: the folder is no part of what is trained
                for key in ("train", "val"):
                    set_value(plain, f"data.{key}", f"drawn:{sha256_of(to_json(to_plain(config.draw)))}")
            set_value(plain, "output.uri", "trial")
            label = ", ".join([f"{key}={value}" for key, value in values.items()] + [f"seed {seed}"])
            yield _trial(plain, values, seed, label, config, output)


def _trial(
    plain: dict[str, object],
    values: Mapping[str, object],
    seed: int,
    label: str,
    config: SweepConfig,
    output: Storage,
) -> Trial:
    """The trial of the plain settings; `label` names it in errors."""
    try:
        train = load_config(TrainConfig, None, (), base=plain)
    except ConfigError as error:
        raise ConfigError(f"{error} (in the trial {label})") from None
    if not train.train.validates or train.data.val is None:
        raise ConfigError(
            "train.validate_every_steps: null is not allowed in a sweep, nor is data.val: nothing would be measured; "
            "give both in sweep.base or sweep.fixed"
        )
    identity = {key: value for key, value in flatten(to_plain(train)).items() if _is_identity(key)}
    name = f"{_slug([*values.values(), f's{seed}'])}-{sha256_of(to_json(identity))[:8]}"
    sections: dict[str, object] = {"storage": config.storage, "cluster": config.cluster}
    if config.draw is not None:
        folder = output.uri_of(_data_folder(config.draw))
        sections["data"] = train.data.model_copy(update={"train": f"{folder}/train.json", "val": f"{folder}/val.json"})
    sections["output"] = train.output.model_copy(update={"uri": output.uri_of(f"{TRIALS}/{name}")})
    train = train.model_copy(update=sections)
    return Trial(name, values, seed, with_absolute_places(train, _output_of(train)))


def _is_identity(key: str) -> bool:
    """Whether a setting changes what is trained."""
    return key not in NOT_IDENTITY and key.split(".")[0] not in ("storage", "cluster", "output")


def _slug(values: list[object]) -> str:
    """The values as a readable part of a folder name: lower case, at most 60 characters."""
    words = [re.sub(r"[^a-z0-9.]+", "-", str(value).lower()).strip("-.")[:24] for value in values]
    return "-".join(word for word in words if word)[:60]


def _output_of(config: TrainConfig) -> TrainingOutput:
    return TrainingOutput(config.output.uri, config.storage)


def _data_folder(draw: DrawSection) -> str:
    return f"data-{sha256_of(to_json(to_plain(draw)))[:8]}"


def _draw(draw: DrawSection, output: Storage) -> None:
    """Draws the data unless it is complete, which its last file shows."""
    folder = _data_folder(draw)
    if not output.exists(f"{folder}/unlabelled_truth.json"):
        draw_shapes(Location(output.uri_of(folder), output.settings), num_unlabelled=0, **draw.model_dump())


def _check_data(trials: list[Trial]) -> None:
    """Checks each combination of data set and network once, with the largest subset that a trial takes.

    Raises:
        ConfigError: Data or starting weights that cannot be used; the message names the trial.
    """
    largest: dict[str, Trial] = {}
    for trial in trials:
        plain = to_plain(trial.config)
        plain["data"].pop("num_images")
        key = to_json({"model": plain["model"], "data": plain["data"]}).decode()
        size = trial.config.data.num_images or 0
        if key not in largest or size > (largest[key].config.data.num_images or 0):
            largest[key] = trial
    for trial in largest.values():
        try:
            prepare_train(trial.config)
        except ValueError as error:
            raise ConfigError(f"{error} (in the trial {trial.name})") from None


# -- Ray Tune


def _tune(plan: SweepPlan, waiting: list[Trial], table: _Table, say: Callable[[str], None]) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Ray's newer output prints its tables even with verbose=0
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupted sweep must end like any other command
    import ray
    from ray import tune

    by_name = {trial.name: trial for trial in waiting}
    configs = {trial.name: trial.config for trial in waiting}
    board = start_board()
    watcher = _make_watcher(board, table, by_name, len(plan.finished), say)
    trainable = tune.with_resources(
        tune.with_parameters(_train_trial, configs=configs, board=board),
        lambda point: _resources(by_name[point["trial"]].config),  # type: ignore[arg-type, return-value]
    )
    with tempfile.TemporaryDirectory(prefix="maskfleet-sweep-") as scratch:
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(list(by_name))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=plan.config.sweep.trials_at_once or _max_concurrent(waiting),
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=plan.config.sweep.max_failures),
                callbacks=[watcher],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            ray.kill(board)


def _max_concurrent(trials: list[Trial]) -> int:
    """How many trials as large as the largest the cluster can train at a time; at least 1."""
    sections = [trial.config.train for trial in trials]
    cpus = max(train.num_workers * (train.cpus_per_worker or 1) for train in sections)
    gpus = max(train.num_workers * train.use_gpu for train in sections)
    nodes = joined_nodes()
    limits = [nodes.total("CPU") // cpus] + ([nodes.total("GPU") // gpus] if gpus else [])
    return max(1, min(limits))


def _resources(config: TrainConfig) -> dict[str, float]:
    """What a trial's own process reserves: the CPUs and GPU of its only worker; almost nothing with several workers."""
    train = config.train
    if train.num_workers > 1:
        return {"CPU": 0, "memory": 1}  # Tune requires that something is reserved
    return {"CPU": train.cpus_per_worker or 1, "GPU": int(train.use_gpu)}


def _train_trial(point: Mapping[str, Any], *, configs: Mapping[str, TrainConfig], board: Any) -> dict[str, str | None]:
    """Ray Tune's function for a trial: a whole `maskfleet train`; returns its error, if any, as {"error": sentence}.

    A single worker is this process itself, which Tune uses for one trial after another; several are Ray Train's.
    """
    name = point["trial"]
    config = configs[name]

    def say(event: TrainEvent) -> None:
        board.push.remote(f"{name}: {event.describe()}")

    try:
        plan = prepare_train(config)
        (run_train if config.train.num_workers > 1 else run_train_here)(plan, on_progress=say)
    except (ValueError, OSError, TrainingFailed) as error:
        return {"error": str(error)}
    return {"error": None}


class _Table:
    """The results table of the trials that have ended, and the errors of those that failed."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan = plan
        self.errors: dict[str, str] = {}

    def write(self, *, is_last: bool = False) -> list[TrialRow]:
        """Writes the table of the ended trials (with is_last, of all) and returns its rows."""
        rows = []
        for trial in self.plan.trials:
            output = _output_of(trial.config)
            finished = output.read_finished()
            error = self.errors.get(trial.name)
            if finished is None and error is None:
                if not is_last:
                    continue
                error = "the training did not finish"
            rows.append(make_row(trial.name, trial.values, trial.seed, output, None if finished else error))
        write_results(self.plan.output, rows, self.plan.config.sweep.effects)
        return rows


def _make_watcher(
    board: Any, table: _Table, by_name: Mapping[str, Trial], num_before: int, say: Callable[[str], None]
) -> tune.Callback:
    """A callback of Ray Tune that updates the table and the progress line.

    Args:
        board: Actor with the trials' events as lines, a `Board`.
        table: The table.
        by_name: The trials that are trained.
        num_before: Number of trials that were finished before.
        say: Called with the progress line whenever it changes.
    """
    import ray
    from ray import tune

    class Watcher(tune.Callback):
        """Called in the driver, between the iterations of Tune's loop."""

        num_ended = num_before
        num_failed = 0
        message = ""
        line = ""

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            for line in ray.get(board.drain.remote()):
                self.message = line
            self.tell()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.end(trial.config["trial"], (trial.last_result or {}).get("error"))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if trial.status == "ERROR":  # after its last try
                self.end(trial.config["trial"], last_line(trial.get_error() or "its process was lost"))

        def end(self, name: str, error: str | None) -> None:
            """Counts a trial that will not run again."""
            self.num_ended += 1
            if error is not None:
                self.num_failed += 1
                table.errors[name] = error
            table.write()
            self.tell()

        def tell(self) -> None:
            """Reports the progress line if it has changed."""
            failed = f", {self.num_failed} failed" if self.num_failed else ""
            num_all = num_before + len(by_name)
            line = f"{self.num_ended}/{num_all} trials{failed}  {self.message}"
            if line != self.line:
                self.line = line
                say(line)

    return Watcher()
