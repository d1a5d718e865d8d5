"""`maskfleet evaluate`: a run's Parquet against ground truth, as a table, JSON and Parquet."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from jobs.config import EvaluateConfig
from pipeline.dataset.annotations import AnnotatedSet, load_annotations
from pipeline.manifest import Run, RunError, open_run, to_json
from pipeline.results.metrics import Metrics, evaluate_run
from pipeline.storage import Storage, open_storage

METRICS_JSON = "metrics.json"
METRICS_PARQUET = "metrics.parquet"


@dataclass(frozen=True)
class EvaluatePlan:
    """A checked configuration: the run and the truth it is measured against."""

    config: EvaluateConfig
    run: Run
    ground_truth: AnnotatedSet
    output: Storage

    @property
    def output_uri(self) -> str:
        return self.output.uri


def prepare_evaluate(config: EvaluateConfig) -> EvaluatePlan:
    """Opens the run and the ground truth; writes nothing.

    Raises:
        RunError: no run there, or one that is not finished.
        AnnotationError: no readable ground truth.
    """
    run = open_run(config.run.uri)
    if not run.sealed:
        raise RunError(f"run.uri: {config.run.uri} is not finished; run its segment command again first")
    truth = config.ground_truth
    annotated = load_annotations(truth.uri, format=truth.format, image_root=truth.image_root)
    output = open_storage(config.output.uri or f"{run.storage.uri.rstrip('/')}.evaluation")
    return EvaluatePlan(config, run, annotated, output)


def run_evaluate(plan: EvaluatePlan) -> Metrics:
    """Measures, and writes metrics.json and metrics.parquet."""
    settings = plan.config.evaluate
    metrics = evaluate_run(
        plan.run, plan.ground_truth, score_threshold=settings.score_threshold, iou_threshold=settings.iou_threshold
    )
    plan.output.write_bytes(METRICS_JSON, to_json({"run_id": plan.run.run_id, **metrics.to_dict()}))
    table = pa.Table.from_pandas(metrics.to_frame(), preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    plan.output.write_bytes(METRICS_PARQUET, sink.getvalue().to_pybytes())
    return metrics


def to_rich_table(metrics: Metrics) -> Table:
    """The figures over all categories, a row for each metric and a column for each kind of IoU."""
    frame = metrics.to_frame()
    overall = frame[frame["category"].isna()]
    kinds = list(dict.fromkeys(overall["iou_type"]))
    table = Table(title="evaluation")
    table.add_column("metric")
    for kind in kinds:
        table.add_column(kind, justify="right")
    wide = overall.pivot(index="metric", columns="iou_type", values="value").reindex(dict.fromkeys(overall["metric"]))
    for metric, row in wide.iterrows():
        table.add_row(str(metric), *("-" if row[kind] != row[kind] else f"{row[kind]:.3f}" for kind in kinds))
    return table
