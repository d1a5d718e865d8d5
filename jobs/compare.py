"""`maskfleet compare`: compares two runs, by AP where ground truth is given, else by the drift of their outputs."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, fields

import pandas as pd

from jobs.config.load import ConfigError
from jobs.config.results import CompareConfig
from jobs.evaluate import check_fits, load_truth, notes_on_runs, open_finished, write_frame
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.compare import Comparison, ap_in_words, check_gates, compare
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.settings import BootstrapSettings, CountSettings
from pipeline.manifest import to_json
from pipeline.results.costs import costs_of
from pipeline.results.drift import drift
from pipeline.runs import AnyRun, refined_by
from pipeline.schema import OK
from pipeline.storage.stores import open_storage
from pipeline.tables import load_images, load_instances

_DRIFT_COLUMNS = ["category", "score", "area_px", "image_height", "image_width"]


@dataclass(frozen=True)
class ComparePlan:
    """A checked configuration: the two runs, reference first, and the ground truth; None where none is given."""

    config: CompareConfig
    runs: tuple[AnyRun, AnyRun]
    truth: Truth | None

    @property
    def report_command(self) -> str:
        """The command that shows pictures of both runs side by side."""
        config = self.config
        words = ["maskfleet", "report", config.run_a.uri, f"run_b.uri={config.run_b.uri}"]
        for name, section in (("run", config.run_a), ("run_b", config.run_b)):
            words += [f"{name}.chain=true"] if section.chain else []
            words += [f"{name}.earlier={json.dumps(section.earlier)}"] if section.earlier else []
        words += [f"ground_truth.uri={config.ground_truth.uri}"] if self.truth is not None else []
        return shlex.join(words)

    def notes(self) -> list[str]:
        """What is said of either side that is several runs."""
        sides = zip(("run_a", "run_b"), (self.config.run_a, self.config.run_b), self.runs, strict=True)
        return [f"{name}: {note}" for name, section, run in sides for note in notes_on_runs(section, run)]


def prepare_compare(config: CompareConfig) -> ComparePlan:
    """Opens the runs and the ground truth; writes nothing.

    Raises:
        RunError: no run there, or one that is not finished.
        ConfigError: a gate on AP without ground truth.
        ValueError: the ground truth cannot be read, or does not fit the runs.
    """
    runs = (
        open_finished(config.run_a, "run_a", config.storage),
        open_finished(config.run_b, "run_b", config.storage),
    )
    source = config.ground_truth
    if source.uri is None:
        if config.gate.max_drop is not None or config.gate.min_ap is not None:
            raise ConfigError("gate.max_drop and gate.min_ap look at AP, which needs ground_truth.uri; it is null")
        return ComparePlan(config, runs, None)
    annotations = AnnotationSource(**vars(source))
    truth = load_truth(annotations, config.storage, runs[0], config.evaluate)
    for run in runs:
        check_fits(truth, run, [config.compare.iou_type])
    return ComparePlan(config, runs, truth)


@dataclass(frozen=True)
class Compared:
    """Two runs compared.

    Attributes:
        result: the comparison by AP, or without ground truth the drift of the second run from the first.
        figures: one row for each `figure` of the runs, with the columns `run_a`, `run_b` and `ratio` (b over a).
        masks: what made the masks of either run anew; None for the predictor's own.
        reasons: a sentence for each gate that failed.
    """

    result: Comparison | pd.DataFrame
    figures: pd.DataFrame
    masks: tuple[str | None, str | None]
    reasons: list[str]


def run_compare(plan: ComparePlan) -> Compared:
    """Compares the runs, and writes the tables to output.uri where it is set."""
    result: Comparison | pd.DataFrame
    reasons: list[str] = []
    if plan.truth is None:
        result = _drift(plan)
    else:
        result = _compare(plan, plan.truth)
        reasons = check_gates(comparison=result, max_drop=plan.config.gate.max_drop)
        min_ap = plan.config.gate.min_ap
        if min_ap is not None and not result.ap[1] >= min_ap:
            reasons.append(f"{result.iou_type} AP {ap_in_words(result.ap[1])}; gate.min_ap asks for {min_ap:.4f}")
    figures = _figures(plan.runs, result if isinstance(result, Comparison) else None)
    masks = refined_by(plan.runs[0]), refined_by(plan.runs[1])
    if plan.config.output.uri is not None:
        output = open_storage(plan.config.output.uri, plan.config.storage)
        if isinstance(result, Comparison):
            names = ("iou_type", "ap", "difference", "interval", "confidence", "missing_a", "missing_b", "notes")
            document = {name: getattr(result, name) for name in names}
            document |= {"mask_fit": None if result.mask_fit is None else asdict(result.mask_fit), "masks": masks}
            output.write_bytes("comparison.json", to_json(document))
            write_frame(output, "categories.parquet", result.by_category)
            write_frame(output, "images.parquet", result.images)
            output.delete("drift.parquet")
        else:
            write_frame(output, "drift.parquet", result)
            if output.exists("comparison.json"):  # an earlier comparison, with ground truth, which these are part of
                for name in ("categories.parquet", "images.parquet", "comparison.json"):
                    output.delete(name)
        write_frame(output, "figures.parquet", figures)
    return Compared(result, figures, masks, reasons)


def _figures(runs: tuple[AnyRun, AnyRun], comparison: Comparison | None) -> pd.DataFrame:
    """`Compared.figures`: what the runs cost, and where there is a comparison how good they are."""
    a, b = (costs_of(run) for run in runs)
    rows: list[tuple[str, float, float]] = [
        ("instances", a.num_instances, b.num_instances),
        ("predictor, seconds an image", a.predict_s, b.predict_s),
        ("mask, pixels", a.mask_px, b.mask_px),
        ("mask as RLE, bytes", a.mask_bytes, b.mask_bytes),
    ]
    if comparison is not None:
        rows.append((f"{comparison.iou_type} AP", *comparison.ap))
        if (fit := comparison.mask_fit) is not None:
            rows += [("mask IoU", *fit.iou), ("boundary IoU", *fit.boundary_iou)]
    table = pd.DataFrame(rows, columns=["figure", "run_a", "run_b"])
    return table.assign(ratio=table["run_b"] / table["run_a"].where(table["run_a"] != 0))


def describe(compared: Compared) -> str:
    """The result as text: figures of both runs; then drift, or AP with its interval, categories and worst images."""
    result, figures = compared.result, compared.figures.copy()
    for name in ("run_a", "run_b", "ratio"):
        figures[name] = [_number(value) for value in figures[name]]
    lines = [figures.to_string(index=False)]
    for name, title in zip("ab", compared.masks, strict=True):
        lines += [f"masks of run_{name}: made anew by {title}"] if title else []
    if isinstance(result, Comparison) and (fit := result.mask_fit) is not None:
        sample = "" if fit.num_fitted == fit.num_objects else f" ({fit.num_fitted:,} of them, drawn)"
        lines.append(f"mask and boundary IoU: means over {fit.num_objects:,} objects found by both runs' boxes{sample}")
    head = "\n".join([*lines, "", ""])
    with pd.option_context("display.width", 120, "display.max_columns", None, "display.precision", 4):
        if isinstance(result, pd.DataFrame):
            return f"{head}without ground truth, drift of the detections:\n{result.head(20).to_string(index=False)}"
        low, high = result.interval
        verdict = "more than resampling the images explains" if result.is_significant else "within chance"
        interval = f"{result.confidence:.0%} interval [{low:+.4f}, {high:+.4f}], {verdict}"
        change = f"{result.ap[0]:.4f} -> {result.ap[1]:.4f}: {result.difference:+.4f}"
        change += f", {interval}" if low == low else ", without an interval"
        if result.difference != result.difference:
            change = f"{ap_in_words(result.difference)}: the ground truth has no object that counts"
        return (
            f"{head}{result.iou_type} AP {change}\n\n"
            f"by category:\n{result.by_category.head(20).to_string(index=False)}\n\n"
            f"worst images:\n{result.images.head(10).to_string(index=False)}"
            + "".join(f"\nnote: {note}" for note in result.notes)
        )


def _number(value: float) -> str:
    """A figure in at least four digits; "-" where it is not known."""
    if value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _compare(plan: ComparePlan, truth: Truth) -> Comparison:
    (a, b), sections = plan.runs, (plan.config.evaluate, plan.config.compare)
    settings = {
        each.name: getattr(section, each.name)
        for section, kind in zip(sections, (CountSettings, BootstrapSettings), strict=True)
        for each in fields(kind)
        if each.name != "classes"  # the plan's truth has been cut to them
    }
    tables = load_instances(a), load_instances(b)
    return compare(*tables, truth, images_a=load_images(a), images_b=load_images(b), **settings)


def _drift(plan: ComparePlan) -> pd.DataFrame:
    segmented = [int((load_images(run, ["status"])["status"] == OK).sum()) for run in plan.runs]
    tables = [load_instances(run, _DRIFT_COLUMNS) for run in plan.runs]
    return drift(
        *tables,
        num_reference_images=segmented[0],
        num_current_images=segmented[1],
        min_score=plan.config.compare.min_score,
    )
