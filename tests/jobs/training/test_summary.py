"""The summary page and the curves of a training that has been run."""

from __future__ import annotations

from pathlib import Path

from jobs.training.output import TrainingOutput
from jobs.training.summary import write_summary
from tests.jobs.training.small_trainings import train, train_config


def test_the_page_and_the_curves_show_what_was_measured(shapes: Path, tmp_path: Path):
    config = train_config(shapes, tmp_path, max_steps=2)
    train(config)
    output = TrainingOutput(str(tmp_path))
    write_summary(output, config, broken={"<b>7</b>": "there is no such file"})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "summary.html").read_text()
    (last,) = [row for row in output.read_metrics() if row["step"] == 2]
    assert f"{last['loss']:.4f}" in page and "&lt;b&gt;7&lt;/b&gt;" in page and "learning_rate: 0.01" in page
    assert list((tmp_path / "tensorboard").iterdir())
