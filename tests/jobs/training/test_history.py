"""The history of a training: which validation is the best, what a resumed one takes over, and its TensorBoard log."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.training.history import History, ValidationFigures
from jobs.training.output import TrainingOutput


def computed(*by_class: dict[str, Any], **figures: float) -> Future[ValidationFigures]:
    future: Future[ValidationFigures] = Future()
    future.set_result(ValidationFigures(figures, by_class))
    return future


def validated(*rows: dict[str, Any]) -> History:
    history = History(None)
    for step, figures in enumerate(rows, start=1):
        history.expect(step, float(step), "", computed(**figures))
        history.collect()
    return history


def test_the_best_validation_is_the_first_of_the_highest_segm_ap() -> None:
    history = validated({"segm_AP": 0.1}, {"segm_AP": 0.3, "bbox_AP": 0.1}, {"segm_AP": 0.3, "bbox_AP": 0.9})
    best = history.best()
    assert best is not None and best["step"] == 2 and history.num_validations_since_best() == 1


def test_boxes_decide_where_no_mask_was_measured() -> None:
    best = validated({"bbox_AP": 0.2}, {"bbox_AP": 0.4}, {}).best()
    assert best is not None and best["step"] == 2


def test_without_a_validation_there_is_no_best() -> None:
    history = History(None)
    history.add({"step": 1, "loss": 2.0})
    assert history.best() is None and history.num_validations_since_best() == 0 and history.collect() is None


def test_the_figures_of_all_sets_become_one_row() -> None:
    history = History(None)
    history.prediction_s = 2.5
    history.expect(4, 0.5, "", computed({"category": "cat", "segm_AP": 0.5}, segm_AP=0.5))
    history.expect(4, 0.5, "train_", computed({"category": "cat", "segm_AP": 0.75}, segm_AP=0.75))
    row = history.collect()
    assert row == {"step": 4, "epoch": 0.5, "segm_AP": 0.5, "train_segm_AP": 0.75, "validation_s": 2.5}
    assert history.rows == [row] and history.collect() is None
    assert history.has_validation(4) and not history.has_validation(3)
    assert history.class_rows == [{"step": 4, "category": "cat", "segm_AP": 0.5}], "of the validation set alone"


def logged(folder: Path, tag: str) -> list[tuple[int, float]]:
    log = EventAccumulator(str(folder))
    log.Reload()
    return [(event.step, round(event.value, 4)) for event in log.Scalars(tag)]


def test_a_resumed_training_drops_the_rows_of_the_steps_it_repeats(tmp_path: Path) -> None:
    output = TrainingOutput(str(tmp_path))
    first = History(output)
    for step in (1, 2, 3):
        first.add({"step": step, "epoch": step / 2, "loss": float(step)})
        first.save(tensorboard=True)

    second = History(output)
    second.resume(2)
    assert [row["step"] for row in second.rows] == [1, 2]
    second.add(
        {"step": 3, "epoch": 1.5, "loss": 30.0, "loss_mask": 10.0, "segm_AP": 0.5, "accuracy": 0.25, "validation_s": 1}
    )
    second.save(tensorboard=True)
    assert [(row["step"], row["loss"]) for row in output.read_metrics()] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert logged(tmp_path / "tensorboard", "loss/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert logged(tmp_path / "tensorboard", "loss/mask") == [(3, 10.0)]
    assert logged(tmp_path / "tensorboard", "validation/segm_AP") == [(3, 0.5)]
    assert logged(tmp_path / "tensorboard", "validation/accuracy") == [(3, 0.25)]


def test_a_resumed_training_drops_the_figures_of_classes_of_later_steps(tmp_path: Path) -> None:
    first = History(TrainingOutput(str(tmp_path)))
    for step in (1, 2):
        first.expect(step, 0.5, "", computed({"category": "cat", "segm_AP": 0.1 * step}, segm_AP=0.1 * step))
        first.collect()
    first.save(tensorboard=False)
    second = History(TrainingOutput(str(tmp_path)))
    second.resume(1)
    assert second.class_rows == [{"step": 1, "category": "cat", "segm_AP": 0.1}]


def test_a_log_saved_many_times_in_a_second_keeps_the_order_of_its_steps(tmp_path: Path) -> None:
    history = History(TrainingOutput(str(tmp_path)))
    for step in range(1, 13):  # SummaryWriter's own names end in 0 to 11 here
        history.add({"step": step, "epoch": 0.5, "loss": float(step)})
        history.save(tensorboard=True)
    assert logged(tmp_path / "tensorboard", "loss/loss") == [(step, float(step)) for step in range(1, 13)]


def test_a_history_without_an_output_writes_nothing(tmp_path: Path) -> None:
    history = History(None)
    history.add({"step": 1, "epoch": 0.0})
    history.resume(0)
    history.save(tensorboard=True)
    assert history.rows == [{"step": 1, "epoch": 0.0}] and not list(tmp_path.iterdir())
