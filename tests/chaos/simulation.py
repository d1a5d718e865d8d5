"""The commit protocol under a scheduler that decides, call by call, which writer goes on, and which dies.

The protocol's own functions run unchanged over a store in memory. Every call to the store is a point at which a writer
may be stopped for any length of time, may die before or after the call took effect, or may be told a lie that a real
store tells: that its put-if-absent failed although it was its own earlier try that succeeded.
"""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from unittest import mock

from pipeline.bulk import commit as protocol
from pipeline.bulk import corpus
from pipeline.bulk.corpus import Plan, read_plan, seal_plan
from pipeline.bulk.listing import PlannedImage
from pipeline.manifest import TABLES, Commit, DataFile, Run, RunError, commit_key, sha256_of, table_key
from pipeline.storage.base import ObjectInfo, Storage

SPEC = {"corpus": "simulated"}
NUM_IMAGES, SHARD_SIZE = 5, 2


class Died(BaseException):
    """A writer was killed; nothing below may catch it."""


class Broken(AssertionError):
    """A promise of the protocol did not hold."""


@dataclass
class World:
    """The store's content, and who may act."""

    chance: random.Random
    objects: dict[str, bytes] = field(default_factory=dict)
    check: Callable[[World], None] = lambda world: None
    waiting: dict[str, threading.Semaphore] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    turn_over: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    death_rate: float = 0.0

    def run(self, writers: dict[str, Callable[[], None]]) -> list[BaseException]:
        """Runs writers to their ends or deaths, one store call of one writer at a time; returns their errors."""
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
        favourite, left = None, 0
        while alive := [name for name in writers if name not in self.dead]:
            if favourite not in alive or left == 0:
                favourite, left = self.chance.choice(alive), self.chance.choice((1, 1, 2, 8, 40))
            left -= 1
            self.waiting[favourite].release()
            self.turn_over.acquire()
            self.check(self)
        for thread in threads:
            thread.join()
        return errors

    def step(self, writer: str, effect: Callable[[], Any]) -> Any:
        """One call of one writer: waits for its turn, perhaps dies before or after the effect."""
        fate = self.chance.random()
        if fate < self.death_rate / 2:
            raise Died
        result = effect()
        if fate < self.death_rate:
            raise Died
        self.turn_over.release()
        self.waiting[writer].acquire()
        return result


class SimulatedStorage(Storage):
    """One writer's view of the world's store."""

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
            return self.world.chance.random() > 0.1  # its acknowledgement may get lost, the retry finds it taken

        return self._step(put)

    def check_put_if_absent(self, key: str, data: bytes) -> None:
        """A store whose put is broken is to be found out by what becomes of the run, not at its start."""
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
    """What `segment_corpus` and its workers do with the store, step by step; subclasses break one rule each."""

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
        """What this writer finds in the corpus: photos come and go while several writers list it."""
        names = [f"{place}.jpg" for place in range(NUM_IMAGES) if self.world.chance.random() > 0.1]
        return [PlannedImage(name, name) for name in names if name > after]

    def attempt_name(self, shard: int) -> str:
        return f"{self.name}-{self.world.chance.getrandbits(32):08x}"

    def segment_shard(self, plan: Plan, run_id: str, shard: int, attempt: str) -> None:
        files = {table: self.data_file(plan, table, shard, attempt) for table in TABLES}
        for file, data in files.values():
            self.storage.write_bytes(file.key, data)
        self.commit(run_id, plan, shard, attempt, files)

    def commit(self, run_id: str, plan: Plan, shard: int, attempt: str, files: dict) -> None:
        named = {table: file for table, (file, _) in files.items()}
        statuses = {"ok": plan.num_images_of(shard)}
        protocol.commit_shard(self.storage, Commit(run_id, shard, attempt, **named, statuses=statuses, timings_s={}))

    def data_file(self, plan: Plan, table: str, shard: int, attempt: str) -> tuple[DataFile, bytes]:
        data = f"{table} of shard {shard} by {self.name}".encode()
        rows = plan.num_images_of(shard)
        return DataFile(table_key(table, shard, attempt), rows, len(data), sha256_of(data)), data

    def finish(self, plan: Plan, run_id: str) -> None:
        protocol.seal_run(self.storage, plan, run_id, {})
        protocol.vacuum(self.storage, plan)


class Promises:
    """What must hold after every single call, and what must hold at the end."""

    def __init__(self) -> None:
        self.first: dict[str, bytes] = {}

    def after_each_call(self, world: World) -> None:
        """What was committed or sealed never changes, and its files are there, whole."""
        for key, data in world.objects.items():
            if key.startswith(("commits/", "run.json", "plan.json", "manifest.parquet", "final.json")):
                if self.first.setdefault(key, data) != data:
                    raise Broken(f"{key} was written a second time")
                if key.startswith("commits/"):
                    self.check_commit(world, Commit.from_json(data))
        for key in self.first:
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
        """One plan names each image once, each shard has one commit, and readers see each shard once."""
        plan = read_plan(_plain(world))
        if plan is None:
            raise Broken("there is no plan at the end")
        planned = [image.image_id for image in plan.iter_images()]
        if planned != sorted(set(planned)) or len(planned) != plan.num_images:
            raise Broken(f"the plan is {planned}")
        for shard in range(plan.num_shards):
            if commit_key(shard) not in world.objects:
                raise Broken(f"shard {shard} has no commit at the end")
        seen = reader(world)
        if len(seen) != len(set(seen)) or len(seen) != plan.num_shards:
            raise Broken(f"readers see {seen}")


def read_by_manifest(world: World) -> list[str]:
    """The shards whose instances a reader sees, as readers are meant to read."""
    return [file.key.split("/")[-1].split("-")[0] for file in Run(_plain(world), SPEC).instances_files()]


def read_by_glob(world: World) -> list[str]:
    """The same by looking at the folder, which is what the protocol says not to do."""
    return [key.split("/")[-1].split("-")[0] for key in world.objects if key.startswith("instances/")]


def _plain(world: World) -> SimulatedStorage:
    storage = SimulatedStorage(world, "reader")
    storage._step = lambda effect: effect()  # type: ignore[method-assign]
    return storage


def simulate(seed: int, writer: type[Writer] = Writer, reader: Callable[[World], list[str]] = read_by_manifest) -> None:
    """One random schedule: up to five writers at once, deaths, then one more writer that nobody disturbs.

    Raises:
        Broken: a promise did not hold.
    """
    with mock.patch.object(corpus, "PART_ROWS", 2):
        _simulate(random.Random(seed), writer, reader)


def _simulate(chance: random.Random, writer: type[Writer], reader: Callable[[World], list[str]]) -> None:
    promises = Promises()
    world = World(chance, check=promises.after_each_call)
    for round_ in range(chance.randint(1, 3)):
        world.death_rate = chance.choice((0.0, 0.02, 0.1, 0.3))
        writers = {f"w{round_}{place}": writer(world, f"w{round_}{place}") for place in range(chance.randint(1, 5))}
        _raise(world.run(writers))
        if commits := [key for key in world.objects if key.startswith("commits/")]:
            if len(read := reader(world)) > len(commits):
                raise Broken(f"readers of an unfinished run see {read}")
    world.death_rate = 0.0
    _raise(world.run({"last": writer(world, "last")}))
    promises.at_the_end(world, reader)
    named = {file.key for table in TABLES for file in Run(_plain(world), SPEC)._table_files(table)}
    named |= {part.key for part in read_plan(_plain(world)).parts}
    strangers = {key for key in world.objects if key.startswith((*TABLES, "plan/"))} - named
    if strangers:
        raise Broken(f"{strangers} are left behind")


def _raise(errors: list[BaseException]) -> None:
    for error in errors:
        # A writer may find at the seal that another one's shard is not committed yet; that is no fault of the store.
        if not (isinstance(error, RunError) and "is not committed; run the same command again" in str(error)):
            raise Broken(f"a writer failed: {type(error).__name__}: {error}") from error
