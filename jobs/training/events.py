"""Events of a running training: what workers report, the board that holds them for the driver, and who listens to it.

The board is a Ray actor on the driver's node, so that it outlives every worker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainEvent:
    """An event of a running training that people should see.

    Attributes:
        kind: "note", "start", "started" (a worker), "resume", "step", "checkpoint", "validation", "broken", "unturned",
            "non_finite", "set_aside", "restart" or "interrupted".
        message: One line, ready to be shown.
        rank: The worker that reports it; -1 is the driver.
        values: Values by name; of a "step": step, max_steps, epoch, learning_rate, loss, each loss term, images_per_s,
            data_wait_share, eta_s and more.
    """

    kind: str
    message: str
    rank: int = -1
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_note(self) -> bool:
        """Whether its line must stay on the terminal; the next line may overwrite that of a step."""
        return self.kind not in ("step", "started", "checkpoint")

    def describe(self) -> str:
        """The message."""
        return self.message


class Board:
    """Actor that holds the workers' events until the driver fetches them, and the request to stop."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._stopped: str | None = None
        self._has_unsaved_steps = False

    def push(self, event: Any) -> None:
        """Appends an event of a worker."""
        self._events.append(event)

    def stop(self, sentence: str) -> bool:
        """Asks the workers to end, for the reason that the sentence gives; returns whether they write a checkpoint."""
        self._stopped = sentence
        return self._has_unsaved_steps

    def stopped(self, has_unsaved_steps: bool) -> str | None:
        """The reason why the workers are asked to end; None while they are not.

        Args:
            has_unsaved_steps: Whether the worker that asks has done steps since its newest checkpoint.
        """
        self._has_unsaved_steps = has_unsaved_steps
        return self._stopped

    def drain(self) -> list[Any]:
        """Removes and returns all events, oldest first."""
        events, self._events = self._events, []
        return events


def start_board() -> Any:
    """A handle of a new Board on this process's node. Ray must run; `ray.kill` ends the board."""
    import ray

    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()  # type: ignore[call-overload]


class StopRequests:
    """A worker's view of its board's request to stop, which it asks for at most every `every_s` seconds."""

    def __init__(self, board: Any, every_s: float = 0.5) -> None:
        self._board, self._every_s = board, every_s
        self._asked_at, self._said_unsaved = float("-inf"), False

    def reason(self, has_unsaved_steps: bool) -> str | None:
        """As `Board.stopped`; None also where it was asked a moment ago."""
        import ray

        if has_unsaved_steps == self._said_unsaved and time.monotonic() - self._asked_at < self._every_s:
            return None
        self._asked_at, self._said_unsaved = time.monotonic(), has_unsaved_steps
        return ray.get(self._board.stopped.remote(has_unsaved_steps))


class Collector:
    """Passes events on, each broken image once, and collects the images that were broken or not turned.

    Attributes:
        broken: Images that could not be used: image id -> reason.
        unturned: Ids of images whose EXIF turn was not applied; their events are not passed on, as nothing is wrong.
    """

    def __init__(self, say: Callable[[TrainEvent], None]) -> None:
        self._say = say
        self.broken: dict[str, str] = {}
        self.unturned: set[str] = set()

    def take(self, event: TrainEvent) -> None:
        """Counts an event and passes it on."""
        if event.kind == "unturned":
            self.unturned.add(event.values["image_id"])
            return
        if event.kind == "broken":
            image_id = event.values["image_id"]
            if image_id in self.broken:  # seen in an earlier epoch
                return
            self.broken[image_id] = event.values["reason"]
        self._say(event)


class Listener:
    """Fetches the workers' events from a board and passes them on, in a thread of its own; `stop` ends it.

    Attributes:
        collector: What has been seen so far.
        num_restarts: Times that the workers were started again, which gives an event "restart" each.
    """

    def __init__(self, board: Any, say: Callable[[TrainEvent], None], *, every_s: float = 0.3) -> None:
        self._board = board
        self._say = say
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-events", daemon=True)
        self.collector = Collector(say)
        self.num_restarts = -1  # the first start is no restart

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Passes the last events on and ends the thread."""
        self._ended.set()
        self._thread.join(timeout=30)
        self.num_restarts = max(0, self.num_restarts)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self._drain()
        time.sleep(0.1)  # the last events may still be on their way to the board
        self._drain()

    def _drain(self) -> None:
        import ray

        for event in ray.get(self._board.drain.remote()):
            if event.kind == "started" and event.rank == 0:
                self.num_restarts += 1
                if self.num_restarts:
                    self._say(TrainEvent("restart", f"a worker died; start {self.num_restarts + 1} of the workers"))
            self.collector.take(event)


def last_line(error: object) -> str:
    """The last line of an error's text that is not blank; of a text without any, the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
