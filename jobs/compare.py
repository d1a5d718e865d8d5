"""`maskfleet compare`: compares two runs, by AP where ground truth is given, else by the drift of their outputs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pandas as pd

from jobs.config.load import ConfigError
from jobs.config.results import CompareConfig
from jobs.evaluate import check_fits, load_truth, open_finished, write_frame
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.compare import Comparison, check_gates, compare
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.settings import BootstrapSettings, CountSettings
from pipeline.manifest import Run, to_json
from pipeline.results.drift import drift
from pipeline.schema import OK
from pipeline.storage.stores import open_storage
from pipeline.tables import load_images, load_instances

_DRIFT_COLUMNS = ["category", "score", "area_px", "image_height", "image_width"]


@dataclass(frozen=True)
class ComparePlan:
    """A checked configuration: the two runs, reference first, and the ground truth; None where none is given."""

    config: CompareConfig
    runs: tuple[Run, Run]
    truth: Truth | None


def prepare_compare(config: CompareConfig) -> ComparePlan:
    """Opens the runs and the ground truth; writes nothing.

    Raises:
        RunError: no run there, or one that is not finished.
        ConfigError: a gate on AP without ground truth.
        ValueError: the ground truth cannot be read, or does not fit the runs.
    """
    keys = {"run_a.uri": config.run_a.uri, "run_b.uri": config.run_b.uri}
    first, second = (open_finished(uri, key, config.storage) for key, uri in keys.items())
    runs = first, second
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


def run_compare(plan: ComparePlan) -> tuple[Comparison | pd.DataFrame, list[str]]:
    """Compares the runs, and writes the tables to output.uri where it is set.

    Returns:
        The comparison by AP, or without ground truth the drift of the second run from the first; and a sentence for
        each gate that failed.
    """
    result: Comparison | pd.DataFrame
    reasons: list[str] = []
    if plan.truth is None:
        result = _drift(plan)
    else:
        result = _compare(plan, plan.truth)
        reasons = check_gates(comparison=result, max_drop=plan.config.gate.max_drop)
        min_ap = plan.config.gate.min_ap
        if min_ap is not None and not result.ap[1] >= min_ap:
            reasons.append(f"{result.iou_type} AP is {result.ap[1]:.4f}; gate.min_ap asks for {min_ap:.4f}")
    if plan.config.output.uri is not None:
        output = open_storage(plan.config.output.uri, plan.config.storage)
        if isinstance(result, Comparison):
            names = ("iou_type", "ap", "difference", "interval", "confidence", "missing_a", "missing_b", "notes")
            output.write_bytes("comparison.json", to_json({name: getattr(result, name) for name in names}))
            write_frame(output, "categories.parquet", result.by_category)
            write_frame(output, "images.parquet", result.images)
        else:
            write_frame(output, "drift.parquet", result)
    return result, reasons


def describe(result: Comparison | pd.DataFrame) -> str:
    """The result as text: the drift table's first rows, or AP with its interval, categories and the worst images."""
    with pd.option_context("display.width", 120, "display.max_columns", None, "display.precision", 4):
        if isinstance(result, pd.DataFrame):
            return f"without ground truth, drift of the detections:\n{result.head(20).to_string(index=False)}"
        low, high = result.interval
        verdict = "more than resampling the images explains" if result.is_significant else "within chance"
        return (
            f"{result.iou_type} AP {result.ap[0]:.4f} -> {result.ap[1]:.4f}: {result.difference:+.4f}, "
            f"{result.confidence:.0%} interval [{low:+.4f}, {high:+.4f}], {verdict}\n\n"
            f"by category:\n{result.by_category.head(20).to_string(index=False)}\n\n"
            f"worst images:\n{result.images.head(10).to_string(index=False)}"
            + "".join(f"\nnote: {note}" for note in result.notes)
        )


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
