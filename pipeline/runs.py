"""Several runs as one: for each image the rows of the newest run that planned it, in a chain of `since_run` or a list.

A nightly run holds only what was new or changed. `open_runs` puts it together with the runs before it, and `Runs` says
which rows of which files count. Images that were deleted since stay.
"""

from __future__ import annotations

import bisect
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.manifest import RUN_KEY, Run, RunError, open_run, sha256_of, to_json
from pipeline.plan import Plan, read_plan
from pipeline.run_spec import RunCategory, RunSpec
from pipeline.storage.base import Storage, StorageSettings
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import base_name, canonical_uri, join_uri, parent_uri

_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class RunPart:
    """What counts of one of several runs.

    Attributes:
        run: the run, restricted to the shards that have a row that counts.
        rows: which rows of these shards' files count, by `image_id`; None: all.
    """

    run: Run
    rows: ds.Expression | None


@dataclass(frozen=True)
class Runs:
    """Several runs for readers, as one.

    Attributes:
        runs: oldest first, at least one.
        is_chain: whether each is the `since_run` of the next, and so all are of one corpus.
    """

    runs: tuple[Run, ...]
    is_chain: bool

    @property
    def newest(self) -> Run:
        """The last run, which decides on all images of its plan."""
        return self.runs[-1]

    @property
    def storage(self) -> Storage:
        """The root of the newest run."""
        return self.newest.storage

    @property
    def beside(self) -> str:
        """What names of outputs about these runs begin with, unless they are given."""
        return f"{self.newest.beside}.runs"

    @property
    def title(self) -> str:
        """The runs in a few words."""
        return f"{len(self.runs)} runs, {self.runs[0].run_id} to {self.newest.run_id}"

    @property
    def run_id(self) -> str:
        """A hash of the ids of all runs, in order."""
        return sha256_of(to_json([run.run_id for run in self.runs]))[:16]

    @property
    def sealed(self) -> bool:
        """Whether all of them are."""
        return all(run.sealed for run in self.runs)

    @cached_property
    def model_hashes(self) -> tuple[str, ...]:
        """The models' hashes, each once, the newest run's last."""
        return tuple(dict.fromkeys(run.spec.model.sha256 for run in reversed(self.runs)))[::-1]

    @cached_property
    def spec(self) -> RunSpec:
        """The newest run's specification, with the classes of all runs and the highest of their lowest scores.

        Raises:
            RunError: a category id stands for two classes, or a class has two ids; or see `Run.spec`.
        """
        names: dict[int, str] = {}
        ids: dict[str, int] = {}
        for run in reversed(self.runs):
            for category in run.spec.model.categories:
                name = names.setdefault(category.id, category.name)
                number = ids.setdefault(category.name, category.id)
                if (number, name) != (category.id, category.name):
                    raise RunError(
                        f"classes do not agree: category id {category.id} is {category.name!r} in {run.storage.uri}; "
                        f"in a later run {category.id} is {name!r} and {category.name!r} is {number}"
                    )
        scores = [score for run in self.runs if (score := run.spec.highest_score_threshold) is not None]
        spec = self.newest.spec
        return replace(
            spec,
            model=replace(spec.model, categories=tuple(RunCategory(number, names[number]) for number in sorted(names))),
            segment=replace(spec.segment, score_threshold=max(scores, default=None), score_thresholds={}),
        )

    @cached_property
    def parts(self) -> tuple[RunPart, ...]:
        """What counts of each run, oldest first. Reads the plans, in step, in flat memory.

        Raises:
            RunError: runs of several inputs have different images of one id.
        """
        plans = self._plans
        superseded = [np.zeros(0 if plan is None else plan.num_images, bool) for plan in plans]
        starts = [0] * len(plans)
        inputs = {canonical_uri(run.spec.input.uri) for run in self.runs}
        columns = ["image_id", "uri"] if len(inputs) > 1 and not self.is_chain else ["image_id"]
        for window in _windows(plans, columns):
            if "uri" in columns:
                self._check_same_images(window)
            newest = np.full(window.codes.max() + 1, -1)
            np.maximum.at(newest, window.codes, window.numbers)
            is_superseded = newest[window.codes] != window.numbers
            for number in np.unique(window.numbers):
                rows = is_superseded[window.numbers == number]
                superseded[number][starts[number] : starts[number] + len(rows)] = rows
                starts[number] += len(rows)
        return tuple(map(_part_of, self.runs, plans, superseded))

    def iter_image_ids(self) -> Iterator[pa.Array]:
        """The ids of all planned images, each once: arrays in no order, all of whose ids are above those before."""
        for window in _windows(self._plans, ["image_id"]):
            yield window.ids.unique()

    @cached_property
    def _plans(self) -> list[Plan | None]:
        return [read_plan(run.storage) for run in self.runs]

    def _check_same_images(self, window: _Window) -> None:
        """Raises RunError where images of one id have several URIs."""
        uris = window.rows["uri"].combine_chunks().dictionary_encode().indices.to_numpy()
        low, high = (np.full(window.codes.max() + 1, start) for start in (len(uris), -1))
        np.minimum.at(low, window.codes, uris)
        np.maximum.at(high, window.codes, uris)
        if len(several := np.flatnonzero(low != high)):
            rows = np.flatnonzero(window.codes == several[0])
            named = [
                f"{window.rows['uri'][row].as_py()} in {self.runs[window.numbers[row]].storage.uri}"
                for row in (rows[0], rows[-1])
            ]
            raise RunError(
                f"image_id {window.ids[rows[0]].as_py()!r} is {' and '.join(named)}; runs over different images are no "
                "one table: name runs of one input"
            )


AnyRun: TypeAlias = Run | Runs
RunSource: TypeAlias = str | Run | Runs | Sequence[str | Run]
"""A run or its URI; several of them, oldest first; or runs that `open_runs` has opened."""


def refined_by(run: AnyRun) -> str | None:
    """What made the masks of a run anew, and of several in how many of them; None where they are the predictor's."""
    runs = run.runs if isinstance(run, Runs) else (run,)
    titles = [refine.title for each in runs if (refine := each.spec.segment.refine) is not None]
    if not titles:
        return None
    text = " and ".join(dict.fromkeys(titles))
    return text if len(titles) == len(runs) else f"{text} in {len(titles)} of {len(runs)} runs"


def open_runs(source: RunSource, *, chain: bool = False, settings: StorageSettings | None = None) -> AnyRun:
    """Opens a run, or several as one. Reads their specifications only.

    Args:
        source: a run's URI gives a `Run`; a list gives `Runs`, of which the last one that planned an image decides on
            it.
        chain: follows the `since_run` of the run, and of the run before it, to the first one. The last part of the URI
            may then be a pattern, such as "s3://lab/masks/night-*", of runs that form one chain.
        settings: how buckets are reached.

    Raises:
        RunError: there is no run; a pattern without `chain`, or one that finds no chain, or several; a list with
            `chain`, an empty one, or one that names a run twice.
        StorageError: a URI cannot be used.
    """
    if isinstance(source, Runs):
        return source
    if chain:
        if not isinstance(source, str | Run):
            raise RunError(
                "a chain is followed from one run; name the newest alone, or the runs in order without chain"
            )
        return open_chain(source, settings)
    if isinstance(source, str | Run):
        return _open_one(source, settings)
    runs = [_open_one(each, settings) for each in source]
    if not runs:
        raise RunError("the list of runs is empty; name at least one")
    places = [canonical_uri(run.storage.uri) for run in runs]
    if repeated := next((place for place in places if places.count(place) > 1), None):
        raise RunError(f"{repeated} is named twice; of runs named in order the last one decides, so name each once")
    return Runs(tuple(runs), is_chain=False)


def _open_one(source: str | Run, settings: StorageSettings | None) -> Run:
    if isinstance(source, Run):
        return source
    try:
        return open_run(source, settings)
    except RunError:
        check_no_pattern(source)
        raise


def check_no_pattern(uri: str) -> None:
    """Raises RunError where a URI that holds no run is a pattern: it does not say which run is the newest."""
    if _WILDCARDS & set(uri):
        raise RunError(
            f"{uri} is a pattern, which does not say which run is the newest; name the runs in order, oldest first, or "
            "set chain, where they are one"
        )


def open_chain(source: str | Run, settings: StorageSettings | None = None) -> Runs:
    """Opens a run and those before it, by their `since_run`, as `open_runs` with `chain` does."""
    if isinstance(source, str) and _WILDCARDS & set(source) and not open_storage(source, settings).exists(RUN_KEY):
        run = _newest_of(source, settings)
    else:
        run = _open_one(source, settings)
    runs, places = [run], [canonical_uri(run.storage.uri)]
    while (earlier := runs[-1].spec.input.since_run) is not None:
        if canonical_uri(earlier) in places:
            raise RunError(f"{runs[-1].storage.uri}: its since_run {earlier} comes after it; it is no chain")
        try:
            runs.append(open_run(earlier, settings))
        except RunError as error:
            raise RunError(
                f"the chain of {run.storage.uri} is broken: {error}; it is since_run of {runs[-1].storage.uri}"
            ) from None
        places.append(canonical_uri(earlier))
    return Runs(tuple(reversed(runs)), is_chain=True)


def _newest_of(pattern: str, settings: StorageSettings | None) -> Run:
    """The one run among those of a pattern that no other names as its `since_run`."""
    folder, name = parent_uri(pattern), base_name(pattern)
    if _WILDCARDS & set(folder):
        raise RunError(f"{pattern} has a pattern before its last part; allowed is one in the last part")
    storage = open_storage(folder, settings)
    found = {}
    for each in _folders(storage):
        if fnmatch.fnmatchcase(each, name) and storage.exists(f"{each}/{RUN_KEY}"):
            run = open_run(join_uri(folder, each), settings)
            found[canonical_uri(run.storage.uri)] = run
    earlier = {canonical_uri(uri) for run in found.values() if (uri := run.spec.input.since_run) is not None}
    newest = [run for place, run in found.items() if place not in earlier]
    if not found:
        raise RunError(f"{pattern} names no run")
    if len(newest) != 1:
        listed = ", ".join(run.storage.uri for run in newest[:5])
        raise RunError(
            f"{pattern} names {len(newest)} runs that are no other's since_run: {listed}; of a chain one is: name that"
        )
    return newest[0]


def _folders(storage: Storage) -> Iterator[str]:
    """The names of the folders at a root; what lies in them is skipped."""
    after: str | None = ""
    while after is not None:
        listed, after = storage.iter_objects(after=after), None
        for info in listed:
            folder, slash, _ = info.key.partition("/")
            if slash:
                yield folder
                after = f"{folder}/\U0010ffff"
                break


@dataclass(frozen=True)
class _Window:
    """The rows of several plans whose ids lie between those of the window before and of the next.

    Attributes:
        rows: of PLAN_SCHEMA, plan by plan.
        numbers: int [N], the plan of each row.
    """

    rows: pa.Table
    numbers: NDArray[np.intp]

    @cached_property
    def ids(self) -> pa.Array:
        """The image id of each row."""
        return self.rows["image_id"].combine_chunks()

    @cached_property
    def codes(self) -> NDArray[np.intp]:
        """int [N], equal for equal ids, from 0."""
        return self.ids.dictionary_encode().indices.to_numpy()


def _windows(plans: Sequence[Plan | None], columns: Sequence[str]) -> Iterator[_Window]:
    """All rows of several plans, which are read in step, a batch of each at a time."""
    streams = [iter(()) if plan is None else plan.iter_columns(columns) for plan in plans]
    heads = {number: batch for number, stream in enumerate(streams) if (batch := next(stream, None)) is not None}
    while heads:
        last_id = min(batch["image_id"][-1].as_py() for batch in heads.values())
        taken, numbers = [], []
        for number, batch in list(heads.items()):
            ids = batch["image_id"]
            count = bisect.bisect_right(range(len(ids)), last_id, key=lambda row: ids[row].as_py())
            taken.append(batch.slice(0, count))
            numbers.append(np.full(count, number))
            rest = batch.slice(count) if count < len(ids) else next(streams[number], None)
            if rest is None:
                del heads[number]
            else:
                heads[number] = rest
        yield _Window(pa.Table.from_batches(taken), np.concatenate(numbers))


def _part_of(run: Run, plan: Plan | None, superseded: NDArray[np.bool_]) -> RunPart:
    """The files of a run that have an image which no later run planned, and which of their images those are."""
    if plan is None or not superseded.any():
        return RunPart(run, None)
    is_read = np.zeros(len(superseded), bool)
    files = []
    for each in run.files:
        images = slice(each.shard * plan.shard_size, (each.shard + 1) * plan.shard_size)
        if not superseded[images].all():
            files.append(each)
            is_read[images] = True
    left_out, kept = is_read & superseded, is_read & ~superseded
    if not left_out.any():
        return RunPart(run.only(files), None)
    # The shorter list of the two, as it is in memory while rows are read.
    if left_out.sum() <= kept.sum():
        return RunPart(run.only(files), ~ds.field("image_id").isin(_ids_of(plan, left_out)))
    return RunPart(run.only(files), ds.field("image_id").isin(_ids_of(plan, kept)))


def _ids_of(plan: Plan, wanted: NDArray[np.bool_]) -> pa.Array:
    """The ids of the images at which `wanted`, in the plan's order, is true."""
    ids, start = [], 0
    for batch in plan.iter_columns(["image_id"]):
        ids.append(batch["image_id"].filter(pa.array(wanted[start : start + len(batch)])))
        start += len(batch)
    return pa.concat_arrays(ids)
