"""Report of a training: loss, rate, validation and speed curves as PNG, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.config.load import config_hash, to_yaml
from jobs.config.train import TrainConfig
from jobs.training.output import TrainingOutput

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training {{ uri }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 h1 { font-size: 1.3rem; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin-top: 2rem }
 table { border-collapse: collapse } td, th { padding: .15rem 1.2rem .15rem 0; text-align: left; vertical-align: top }
 td + td { font-variant-numeric: tabular-nums } img { max-width: 100% }
 pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem }
</style>
<h1>Training {{ uri }}</h1>
<table>{% for name, value in facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Curves</h2>
<img alt="Loss, learning rate, validation and speed over the steps" src="data:image/png;base64,{{ curves }}">
{% if validations %}<h2>Validation</h2>
<table><tr><th>step</th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in validations %}<tr><td>{{ row["step"] }}</td>{% for name in columns %}<td>{{ "%.3f" % row[name]
 if name in row else "" }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% if broken %}<h2>Photos that could not be used</h2>
<table>{% for name, why in broken %}<tr><td>{{ name }}</td><td>{{ why }}</td></tr>{% endfor %}</table>{% endif %}
<h2>Settings <small>{{ config_hash }}</small></h2>
<pre>{{ config }}</pre>
</html>
"""


def write_summary(output: TrainingOutput, config: TrainConfig, *, broken: Mapping[str, str]) -> None:
    """Writes curves.png and summary.html from what the output holds; replaces earlier ones."""
    import jinja2

    rows = output.read_metrics()
    curves = plot_curves(rows)
    validations = [row for row in rows if "validation_s" in row]
    columns = sorted({name for row in validations for name in row} - {"step", "epoch", "validation_s"})
    page = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            uri=output.uri,
            facts=_facts(rows, validations, config),
            curves=base64.b64encode(curves).decode(),
            validations=validations,
            columns=columns,
            broken=sorted(broken.items()),
            config=to_yaml(config),
            config_hash=config_hash(config)[:12],
        )
    )
    output.write_file("curves.png", curves)
    output.write_file("summary.html", page.encode())


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


def _facts(
    rows: Sequence[Mapping[str, float]], validations: Sequence[Mapping[str, float]], config: TrainConfig
) -> list[tuple[str, str]]:
    steps = [row for row in rows if "loss" in row]
    facts = [("network", config.model.spec.backbone), ("training set", config.data.train)]
    if steps:
        last = steps[-1]
        facts += [
            ("steps", f"{last['step']} ({last['epoch']:.2f} epochs)"),
            ("last loss", f"{last['loss']:.4f}"),
            ("images/s", f"{sum(row['images_per_s'] for row in steps) / len(steps):.1f}"),
            ("waiting for data", f"{sum(row['data_wait_share'] for row in steps) / len(steps):.1%}"),
            ("peak memory", f"{max(row['peak_memory_bytes'] for row in steps) / 2**20:.0f} MiB per worker"),
            ("steps not finite", str(last["num_non_finite"])),
        ]
    scored = [row for row in validations if "segm_AP" in row]
    if scored:
        best = max(scored, key=lambda row: row["segm_AP"])
        facts.append(("best segm AP", f"{best['segm_AP']:.3f} at step {best['step']}"))
    return facts
