"""Simulation of the commit protocol: a scheduler decides, store call by store call, which writer goes on or dies.

The protocol's own functions run unchanged over a store in memory. At every call to the store a writer may be stopped
for any length of time, or die before or after the call took effect. Its put-if-absent may also be reported as failed
although it succeeded, as a real store does when an acknowledgement is lost and the request is sent again.
"""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from unittest import mock

from pipeline.bulk import commit as protocol
from pipeline.bulk import corpus
from pipeline.bulk.corpus import seal_plan
from pipeline.manifest import TABLES, Commit, DataFile, Run, RunError, commit_key, sha256_of, table_key
from pipeline.plan import Plan, PlannedImage, read_plan
from pipeline.storage.base import ObjectInfo, Storage

SPEC = {"corpus": "simulated"}
NUM_IMAGES, SHARD_SIZE = 5, 2


class Died(BaseException):
    """A writer was killed; a BaseException, so that the protocol's code does not catch it."""


class Broken(AssertionError):
    """An invariant of the protocol did not hold."""


@dataclass
class World:
    """The content of the store, and the scheduler of its writers.

    Attributes:
        chance: source of all random decisions.
        objects: content of the store by key.
        check: called after every store call.
        waiting: a semaphore for each writer, released when it is its turn.
        dead: names of the writers that ended or died.
        turn_over: released when the writer whose turn it is has made its call, or ended.
        death_rate: chance of a death at each store call.
    """

    chance: random.Random
    objects: dict[str, bytes] = field(default_factory=dict)
    check: Callable[[World], None] = lambda world: None
    waiting: dict[str, threading.Semaphore] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    turn_over: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    death_rate: float = 0.0

    def run(self, writers: Mapping[str, Callable[[], None]]) -> list[BaseException]:
        """Runs writers until each ends or dies, one store call of one writer at a time; returns their errors."""
        errors: list[BaseException] = []

        def body(name: str, work: Callable[[], None]) -> None:
            self.waiting[name].acquire()
            try:
                work()
            except Died:
                pass
            except BaseException as error:
                errors.append(error)
            self.dead.add(name)
            self.turn_over.release()

        self.dead = set()
        self.waiting = {name: threading.Semaphore(0) for name in writers}
        threads = [threading.Thread(target=body, args=item, daemon=True) for item in writers.items()]
        for thread in threads:
            thread.start()
        # Some writers are favoured for a while, so that long pauses of the others are common.
        favourite, num_turns = "", 0
        while alive := [name for name in writers if name not in self.dead]:
            if favourite not in alive or num_turns == 0:
                favourite, num_turns = self.chance.choice(alive), self.chance.choice((1, 1, 2, 8, 40))
            num_turns -= 1
            self.waiting[favourite].release()
            self.turn_over.acquire()
            self.check(self)
        for thread in threads:
            thread.join()
        return errors

    def step(self, writer: str, effect: Callable[[], Any]) -> Any:
        """One store call of one writer: it may die before or after the effect, else waits for its next turn."""
        draw = self.chance.random()
        if draw < self.death_rate / 2:
            raise Died
        result = effect()
        if draw < self.death_rate:
            raise Died
        self.turn_over.release()
        self.waiting[writer].acquire()
        return result


class SimulatedStorage(Storage):
    """One writer's view of the world's store; with `atomic=False` its put-if-absent overwrites."""

    def __init__(self, world: World, writer: str, *, atomic: bool = True) -> None:
        self.uri = "memory://run"
        self.world, self.writer, self.atomic = world, writer, atomic

    def _step(self, effect: Callable[[], Any]) -> Any:
        return self.world.step(self.writer, effect)

    def _get(self, key: str) -> bytes:
        if key not in self.world.objects:
            raise FileNotFoundError(key)
        return self.world.objects[key]

    def read_bytes(self, key: str) -> bytes:
        return self._step(lambda: self._get(key))

    def read_object(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        data = self.read_bytes(key)
        return data[start : None if size is None else start + size], sha256_of(data)

    def write_bytes(self, key: str, data: bytes) -> None:
        self._step(lambda: self.world.objects.__setitem__(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        def put() -> bool:
            if self.atomic and key in self.world.objects:
                return False
            self.world.objects[key] = data
            # An acknowledgement may get lost; the retry then finds the key taken.
            return self.world.chance.random() > 0.1

        return self._step(put)

    def check_put_if_absent(self, key: str, data: bytes) -> None:
        """No check: a store whose put-if-absent is broken has to show in the run itself."""
        self.put_if_absent(key, data)

    def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self._step(lambda: self._get(key))), "")

    def iter_objects(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        keys = self._step(lambda: sorted(key for key in self.world.objects if key.startswith(prefix) and key > after))
        for key in keys:
            yield ObjectInfo(key, 0, "")

    def delete(self, key: str) -> None:
        self._step(lambda: self.world.objects.pop(key, None))

    def open_input(self, key: str) -> BinaryIO:
        return io.BytesIO(self.read_bytes(key))


class Writer:
    """Does with the store what `segment_corpus` and its workers do; subclasses break one rule of the protocol each."""

    atomic = True

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.storage = SimulatedStorage(world, name, atomic=self.atomic)

    def __call__(self) -> None:
        run_id = protocol.claim_run(self.storage, SPEC)
        plan = read_plan(self.storage) or seal_plan(
            self.storage, self.list_images, shard_size=SHARD_SIZE, num_workers=1
        )
        todo = list(set(range(plan.num_shards)) - protocol.committed_shards(self.storage))
        self.world.chance.shuffle(todo)
        for shard in todo:
            if protocol.read_commit(self.storage, shard) is None:
                self.segment_shard(plan, run_id, shard, self.attempt_name(shard))
        self.finish(plan, run_id)

    def list_images(self, after: str) -> list[PlannedImage]:
        """This writer's listing of the corpus: each image is missing with chance 0.1, as photos come and go."""
        names = [f"{number}.jpg" for number in range(NUM_IMAGES) if self.world.chance.random() > 0.1]
        return [PlannedImage(name, name) for name in names if name > after]

    def attempt_name(self, shard: int) -> str:
        return f"{self.name}-{self.world.chance.getrandbits(32):08x}"

    def segment_shard(self, plan: Plan, run_id: str, shard: int, attempt: str) -> None:
        files = {table: self.data_file(plan, table, shard, attempt) for table in TABLES}
        for file, data in files.values():
            self.storage.write_bytes(file.key, data)
        self.commit(run_id, plan, shard, attempt, files)

    def commit(
        self, run_id: str, plan: Plan, shard: int, attempt: str, files: dict[str, tuple[DataFile, bytes]]
    ) -> None:
        data_files = {table: file for table, (file, _) in files.items()}
        statuses = {"ok": plan.num_images_of(shard)}
        commit = Commit(run_id, shard, attempt, **data_files, statuses=statuses, timings_s={})
        protocol.commit_shard(self.storage, commit)

    def data_file(self, plan: Plan, table: str, shard: int, attempt: str) -> tuple[DataFile, bytes]:
        data = f"{table} of shard {shard} by {self.name}".encode()
        rows = plan.num_images_of(shard)
        return DataFile(table_key(table, shard, attempt), rows, len(data), sha256_of(data)), data

    def finish(self, plan: Plan, run_id: str) -> None:
        protocol.seal_run(self.storage, plan, run_id)
        protocol.vacuum(self.storage, plan)


class Invariants:
    """The invariants of the protocol: those after every store call, and those at the end."""

    def __init__(self) -> None:
        self.first_content: dict[str, bytes] = {}

    def after_each_call(self, world: World) -> None:
        """Commits and seals never change or vanish, and the files that a commit names are there with the right hash."""
        for key, data in world.objects.items():
            if key.startswith(("commits/", "run.json", "plan.json", "manifest.parquet", "final.json")):
                if self.first_content.setdefault(key, data) != data:
                    raise Broken(f"{key} was written a second time")
                if key.startswith("commits/"):
                    self.check_commit(world, Commit.from_json(data))
        for key in self.first_content:
            if key not in world.objects:
                raise Broken(f"{key} vanished")

    def check_commit(self, world: World, commit: Commit) -> None:
        for table in TABLES:
            file: DataFile = getattr(commit, table)
            if file.key not in world.objects:
                raise Broken(f"{file.key} is committed and not there")
            if sha256_of(world.objects[file.key]) != file.sha256:
                raise Broken(f"{file.key} is not what was committed")

    def at_the_end(self, world: World, reader: Callable[[World], list[str]]) -> None:
        """The plan names each image once, each shard has a commit, and readers see each shard once."""
        plan = read_plan(_unscheduled(world))
        if plan is None:
            raise Broken("there is no plan at the end")
        planned = [image.image_id for image in plan.iter_images()]
        if planned != sorted(set(planned)) or len(planned) != plan.num_images:
            raise Broken(f"the plan is {planned}")
        for shard in range(plan.num_shards):
            if commit_key(shard) not in world.objects:
                raise Broken(f"shard {shard} has no commit at the end")
        shards = reader(world)
        if len(shards) != len(set(shards)) or len(shards) != plan.num_shards:
            raise Broken(f"readers see {shards}")


def read_by_manifest(world: World) -> list[str]:
    """The shards whose instances a reader sees that goes through commits and manifest, as readers should."""
    return [file.key.split("/")[-1].split("-")[0] for file in Run(_unscheduled(world), SPEC).instances_files()]


def read_by_glob(world: World) -> list[str]:
    """The shards whose instances a reader sees that lists the folder, which the protocol forbids before the seal."""
    return [key.split("/")[-1].split("-")[0] for key in world.objects if key.startswith("instances/")]


def _unscheduled(world: World) -> SimulatedStorage:
    """The store without the scheduler: every call takes effect at once."""
    storage = SimulatedStorage(world, "reader")
    storage._step = lambda effect: effect()  # type: ignore[method-assign]  # of this instance alone
    return storage


def simulate(seed: int, writer: type[Writer] = Writer, reader: Callable[[World], list[str]] = read_by_manifest) -> None:
    """Runs one random schedule: rounds of up to five writers with deaths, then one writer that nothing disturbs.

    Raises:
        Broken: an invariant did not hold.
    """
    with mock.patch.object(corpus, "PART_ROWS", 2):
        _simulate(random.Random(seed), writer, reader)


def _simulate(chance: random.Random, writer: type[Writer], reader: Callable[[World], list[str]]) -> None:
    invariants = Invariants()
    world = World(chance, check=invariants.after_each_call)
    for round_ in range(chance.randint(1, 3)):
        world.death_rate = chance.choice((0.0, 0.02, 0.1, 0.3))
        names = [f"w{round_}{number}" for number in range(chance.randint(1, 5))]
        _raise_broken(world.run({name: writer(world, name) for name in names}))
        if commits := [key for key in world.objects if key.startswith("commits/")]:
            if len(read := reader(world)) > len(commits):
                raise Broken(f"readers of an unfinished run see {read}")
    world.death_rate = 0.0
    _raise_broken(world.run({"last": writer(world, "last")}))
    invariants.at_the_end(world, reader)
    plan = read_plan(_unscheduled(world))
    assert plan is not None  # checked by `at_the_end`
    run = Run(_unscheduled(world), SPEC)
    named = {file.key for file in [*run.images_files(), *run.instances_files(), *plan.parts]}
    unnamed = {key for key in world.objects if key.startswith((*TABLES, "plan/"))} - named
    if unnamed:
        raise Broken(f"{unnamed} are left behind")


def _raise_broken(errors: list[BaseException]) -> None:
    """Raises Broken for the first error that no writer may end with."""
    for error in errors:
        # A writer may find at the seal that another writer's shard is not committed yet; that breaks no invariant.
        if not (isinstance(error, RunError) and "is not committed; run the same command again" in str(error)):
            raise Broken(f"a writer failed: {type(error).__name__}: {error}") from error
