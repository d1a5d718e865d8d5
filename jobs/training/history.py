"""Metrics of a training so far: rows of losses, rates and validation figures, the best of them, a TensorBoard log."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

from jobs.training.output import TrainingOutput

_SCORE = "segm_AP"
# Used where segm AP cannot be measured (no masks).
_SECOND_SCORE = "bbox_AP"


class History:
    """The rows of metrics.parquet. Rank 0 has one with an output; the other workers' have none, and write nothing.

    Attributes:
        output: Where rows are written; None writes nothing.
        rows: Values by name, in the order they were measured. Each has `step`, a validation's also `validation_s`.
        prediction_s: Seconds that the last validation's predictions took.
    """

    def __init__(self, output: TrainingOutput | None) -> None:
        self.output = output
        self.rows: list[dict[str, float]] = []
        self.prediction_s = 0.0
        self._num_logged = 0
        self._expected: list[tuple[int, float, str, Future[dict[str, float]]]] = []
        self._resumed_at = 0

    def resume(self, step: int) -> None:
        """Takes over the output's rows up to `step`; later rows belong to steps that will be done again."""
        if self.output is not None:
            self.rows = [row for row in self.output.read_metrics() if row["step"] <= step]
            self._num_logged = len(self.rows)
            self._resumed_at = step

    def add(self, row: Mapping[str, float]) -> None:
        """Appends a row: values by name, one of them `step`."""
        self.rows.append(dict(row))

    def expect(self, step: int, epoch: float, prefix: str, figures: Future[dict[str, float]]) -> None:
        """Registers a validation whose figures are still being computed; `prefix` is put before their names."""
        self._expected.append((step, epoch, prefix, figures))

    def collect(self) -> dict[str, float] | None:
        """Waits for the figures of the last validation; appends and returns their row, None without a validation."""
        if not self._expected:
            return None
        step, epoch, _, _ = self._expected[0]
        row: dict[str, float] = {"step": step, "epoch": epoch}
        for _, _, prefix, figures in self._expected:
            row |= {f"{prefix}{name}": value for name, value in figures.result().items()}
        row["validation_s"] = self.prediction_s
        self._expected.clear()
        self.add(row)
        return row

    def validations(self) -> list[dict[str, float]]:
        """The rows of validations, in order."""
        return [row for row in self.rows if "validation_s" in row]

    def has_validation(self, step: int) -> bool:
        """Whether this step has been validated."""
        return any(row["step"] == step for row in self.validations())

    def best(self) -> dict[str, float] | None:
        """The row of the validation with the highest segm AP (the first of equals); None without one."""
        rows = self.validations()
        return max(rows, key=_score) if rows else None

    def num_validations_since_best(self) -> int:
        """Validations after the best one."""
        rows, best = self.validations(), self.best()
        return 0 if best is None else len(rows) - 1 - rows.index(best)

    def save(self, *, tensorboard: bool) -> None:
        """Writes metrics.parquet and the new rows of the TensorBoard log."""
        if self.output is None:
            return
        self.output.write_metrics(self.rows)
        if tensorboard and self._num_logged < len(self.rows):
            self._write_tensorboard(self.output, self.rows[self._num_logged :])
            self._num_logged = len(self.rows)

    def _write_tensorboard(self, output: TrainingOutput, rows: list[dict[str, float]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with contextlib.ExitStack() as stack:
            local = output.local_root
            folder = (
                local / "tensorboard" if local is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            )
            # What an earlier start logged after the resumed step is removed from the log.
            writer = SummaryWriter(str(folder), purge_step=self._resumed_at + 1)
            for row in rows:
                for name, value in row.items():
                    if name not in ("step", "validation_s"):
                        writer.add_scalar(_tag(name), value, row["step"])
            writer.close()
            self._resumed_at = int(rows[-1]["step"])
            if local is None:
                for file in folder.iterdir():
                    output.write_file(f"tensorboard/{file.name}", file.read_bytes())


def _score(row: Mapping[str, float]) -> float:
    return row.get(_SCORE, row.get(_SECOND_SCORE, 0.0))


def _tag(name: str) -> str:
    if name.startswith("loss"):
        return f"loss/{name.removeprefix('loss_')}"
    if "AP" in name or name.endswith("mean_iou"):
        return f"validation/{name}"
    return f"training/{name}"
