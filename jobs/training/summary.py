"""Report of a training: curves as PNG, and one self-contained HTML page with its validation photos."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from jobs.config.load import config_hash, to_yaml
from jobs.config.train import TrainConfig
from jobs.training.output import TrainingOutput
from jobs.training.sets import image_names, load_validation_set
from model.categories import Category
from pipeline.dataset.formats.coco import to_coco
from pipeline.evaluation.ground_truth import Truth
from pipeline.manifest import Run, open_run
from pipeline.results.errors import Yardstick
from pipeline.results.report import Sample, build_report
from pipeline.results.training_report import TrainingRecord
from pipeline.storage.uri import base_name

_MOST_PHOTOS = 60  # of the validation, those with the most errors


def write_summary(output: TrainingOutput, config: TrainConfig, *, broken: Mapping[str, str]) -> None:
    """Writes curves.png and summary.html from what the output holds; replaces earlier ones."""
    output.write_file("curves.png", plot_curves(output.read_metrics()))
    output.write_file("summary.html", build_summary(output, config, broken=broken).encode("utf-8", "replace"))


def build_summary(output: TrainingOutput, config: TrainConfig | None, *, broken: Mapping[str, str] = {}) -> str:
    """The page of a training: its curves, the figures of each class, and what its newest validation found.

    Args:
        output: The training's output.
        config: Its settings; None where they cannot be read, and then the page has no photos.
        broken: Photos that could not be used, by name, and why.
    """
    metrics, classes = output.read_metrics(), output.read_classes()
    facts = {"output": output.uri}
    run, yardstick = None, None
    if config is not None:
        facts |= _facts(metrics, config)
        try:
            run, yardstick = _validation(output, config)
        except (OSError, ValueError) as error:  # the set is gone, or has changed
            facts["validation photos"] = f"cannot be shown: {error}"
    record = TrainingRecord(
        pd.DataFrame(metrics),
        pd.DataFrame(classes) if classes else None,
        facts=facts,
        unusable=broken,
        settings="" if config is None else to_yaml(config),
    )
    return build_report(
        run,
        yardstick=yardstick,
        training=record,
        title=f"Training {base_name(output.uri.rstrip('/'))}",
        day=datetime.now(UTC).date(),
        sample=Sample(_MOST_PHOTOS),
    )


def _validation(output: TrainingOutput, config: TrainConfig) -> tuple[Run | None, Yardstick | None]:
    """The run of the newest validation and its ground truth; None where there is none.

    Raises:
        RunError: The run cannot be read.
        ValueError: The validation set cannot be read.
    """
    steps = [int(row["step"]) for row in output.read_metrics() if "validation_s" in row]
    if not steps or config.data.val is None:
        return None, None
    run = open_run(output.validation_run(steps[-1]))
    categories = tuple(Category(category.id, category.name) for category in run.spec.model.categories)
    annotated = load_validation_set(config, categories)
    images = (replace(image, file_name=name) for name, image in zip(image_names(annotated.images), annotated.images))
    return run, Yardstick(Truth.from_coco(to_coco(replace(annotated, images=tuple(images))), "data.val"))


def plot_curves(rows: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of four panels over the steps: loss terms, learning rate, validation, speed.

    A panel without values is empty.
    """
    from matplotlib.figure import Figure

    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "validation_s" in row]
    figure = Figure(figsize=(11, 7), layout="constrained")
    (loss, rate), (quality, speed) = figure.subplots(2, 2)
    for name in sorted({name for row in steps for name in row if name.startswith("loss")}):
        width = 2.0 if name == "loss" else 1.0
        _line(loss, steps, name, label=name.removeprefix("loss_"), linewidth=width)
    _line(rate, steps, "learning_rate", label="learning rate")
    figures = {name for row in validations for name in row if name.endswith(("_AP", "mean_iou"))}
    for name in sorted(figures):
        _line(quality, validations, name, label=name, marker="o", markersize=3)
    _line(speed, steps, "images_per_s", label="images/s")
    for axes, title in ((loss, "Loss"), (rate, "Learning rate"), (quality, "Validation"), (speed, "Speed")):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _line(axes: Any, rows: Sequence[Mapping[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points), **style)


def _facts(rows: Sequence[Mapping[str, float]], config: TrainConfig) -> dict[str, str]:
    steps = [row for row in rows if "loss" in row]
    facts = {
        "network": config.model.spec.backbone,
        "training set": ", ".join(config.data.train_uris),
        "settings": config_hash(config)[:12],
    }
    if steps:
        last = steps[-1]
        facts |= {
            "steps": f"{last['step']} ({last['epoch']:.2f} epochs)",
            "last loss": f"{last['loss']:.4f}",
            "images/s": f"{sum(row['images_per_s'] for row in steps) / len(steps):.1f}",
            "waiting for data": f"{sum(row['data_wait_share'] for row in steps) / len(steps):.1%}",
            "peak memory": f"{max(row['peak_memory_bytes'] for row in steps) / 2**20:.0f} MiB per worker",
            "steps not finite": str(last["num_non_finite"]),
        }
    scored = [row for row in rows if "validation_s" in row and "segm_AP" in row]
    if scored:
        best = max(scored, key=lambda row: row["segm_AP"])
        facts["best segm AP"] = f"{best['segm_AP']:.3f} at step {best['step']}"
    return facts
