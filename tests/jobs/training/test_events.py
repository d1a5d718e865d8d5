"""Events of a training: the board hands each on once and in order, restarts are counted, a broken image told once."""

from __future__ import annotations

import pytest
import ray

from jobs.training.events import Board, Collector, Listener, TrainEvent, last_line, start_board


def test_a_board_hands_out_each_event_once_and_in_order() -> None:
    board = Board()
    for event in ("first", "second"):
        board.push(event)
    assert (board.drain(), board.drain()) == (["first", "second"], [])
    assert board.stopped(has_unsaved_steps=False) is None
    assert not board.stop("the data is gone"), "nothing would be lost"
    assert board.stopped(has_unsaved_steps=True) == "the data is gone"
    assert board.stop("the data is gone"), "a worker has steps to save"


def test_a_broken_image_is_told_once_and_an_unturned_one_is_only_counted() -> None:
    told: list[str] = []
    collector = Collector(lambda event: told.append(event.message))
    for image_id, message in (("7", "torn"), ("8", "absent"), ("7", "torn again")):
        collector.take(TrainEvent("broken", message, 0, {"image_id": image_id, "reason": message}))
    collector.take(TrainEvent("unturned", "as annotated", 0, {"image_id": "9"}))
    assert told == ["torn", "absent"]
    assert collector.broken == {"7": "torn", "8": "absent"} and collector.unturned == {"9"}


@pytest.mark.long
def test_a_listener_passes_on_everything_and_counts_later_starts_of_rank_0(ray_cluster: None) -> None:
    board = start_board()
    heard: list[TrainEvent] = []
    listener = Listener(board, heard.append, every_s=0.05)
    listener.start()
    events = [TrainEvent("started", "a", rank) for rank in (0, 1)] + [TrainEvent("step", "b", 0, {"step": 1})]
    try:
        for event in [*events, TrainEvent("started", "c", 0)]:
            ray.get(board.push.remote(event))
    finally:
        listener.stop()
        ray.kill(board)
    assert [(event.kind, event.rank) for event in heard] == [
        ("started", 0),
        ("started", 1),
        ("step", 0),
        ("restart", -1),
        ("started", 0),
    ]
    assert listener.num_restarts == 1


def test_the_last_line_of_an_error() -> None:
    assert last_line(ValueError("a\nb\n \n")) == "b"
    assert last_line(ValueError("")) == "ValueError"
