"""`maskfleet evaluate`: measures a run against ground truth, writes the figures, keeps them, and checks gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from jobs.config.load import ConfigError, to_plain
from jobs.config.results import EvaluateConfig, EvaluateSection
from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.formats.reading import format_of, load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.compare import check_gates
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import Measured, Metrics, check_measurable, classes_of, evaluate_run
from pipeline.evaluation.run_detections import check_categories, match_images
from pipeline.evaluation.settings import CountSettings, EvaluationSettings
from pipeline.evaluation.sharding import Share, measure_share, merge_shares, share_out
from pipeline.manifest import Run, RunError, open_run, sha256_of, to_json
from pipeline.results.history import append_history
from pipeline.storage.base import Storage, StorageSettings
from pipeline.storage.files import Location
from pipeline.storage.stores import open_storage
from pipeline.tables import load_images

METRICS_JSON = "metrics.json"
METRICS_PARQUET = "metrics.parquet"
SLICES_PARQUET = "slices.parquet"
CONFUSION_PARQUET = "confusion.parquet"
_MAX_PRINTED_CLASSES = 12  # a larger confusion matrix is only written to its file
EVALUATION_SUFFIX = ".evaluation"


@dataclass(frozen=True)
class EvaluatePlan:
    """A checked configuration with its inputs open.

    Attributes:
        config: as given.
        run: the finished run.
        truth: the ground truth of the classes asked for, see `load_truth`.
        output: where the figures are written.
    """

    config: EvaluateConfig
    run: Run
    truth: Truth
    output: Storage

    def check_cluster(self) -> None:
        """Raises ConfigError where shares are measured on a cluster that does not answer, or has no core for them."""
        if self.config.evaluate.num_shares > 1:
            from jobs.cluster.start import nodes_of

            if not nodes_of(self.config.cluster).room(cpus=1, gpus=0):
                raise ConfigError("evaluate.num_shares: no node of the cluster has a core; allowed is 1, without one")


def prepare_evaluate(config: EvaluateConfig) -> EvaluatePlan:
    """Opens the run and the ground truth; writes nothing.

    Raises:
        RunError: no run there, or one that is not finished.
        ConfigError: a gate on what is not measured.
        ValueError: the ground truth cannot be read, or does not fit the run.
    """
    check_gate(config)
    run = open_finished(config.run.uri, "run.uri", config.storage)
    truth = load_truth(config.ground_truth, config.storage, run, config.evaluate)
    check_fits(truth, run, config.evaluate.iou_types)
    output = open_storage(config.output.uri or run.storage.uri.rstrip("/") + EVALUATION_SUFFIX, config.storage)
    return EvaluatePlan(config, run, truth, output)


def run_evaluate(plan: EvaluatePlan) -> tuple[Metrics, list[str]]:
    """Computes the figures, writes them to the output folder, and adds them to the history where one is set.

    Writes metrics.json and metrics.parquet, and where they were asked for slices.parquet and confusion.parquet.

    Returns:
        The figures, and a sentence for each gate that failed.
    """
    # Arrow's own pool keeps what it is given back; the system's lets the measuring have it (30 MiB of 740, ran).
    pa.set_memory_pool(pa.system_memory_pool())
    settings = plan.config.evaluate
    if settings.num_shares > 1:
        metrics = _evaluate_in_shares(plan)
    else:
        metrics = evaluate_run(plan.run, plan.truth, **vars(_evaluation_settings(settings)))
    plan.output.write_bytes(METRICS_JSON, to_json({"run_id": plan.run.run_id, **metrics.to_dict()}))
    write_frame(plan.output, METRICS_PARQUET, metrics.to_frame())
    if metrics.slices:
        tables = [table.assign(by=by) for by, table in metrics.slices.items()]
        write_frame(plan.output, SLICES_PARQUET, pd.concat(tables, ignore_index=True))
    if metrics.confusion is not None:
        write_frame(plan.output, CONFUSION_PARQUET, metrics.confusion.reset_index())
    if plan.config.history.uri is not None:
        append_history(
            open_storage(plan.config.history.uri, plan.config.storage),
            metrics,
            when=datetime.now(UTC),
            run_id=plan.run.run_id,
            model_sha256=plan.run.spec.model.sha256,
            truth_sha256=truth_hash(plan.config.ground_truth, plan.config.storage),
            config_sha256=_settings_hash(settings),
            label=plan.config.history.label,
        )
    return metrics, check_gates(metrics, min_ap=plan.config.gate.min_ap)


def _evaluate_in_shares(plan: EvaluatePlan) -> Metrics:
    """Measures each share of the run in a Ray task; the merged figures equal those of a single process."""
    import ray

    from jobs.cluster.start import cluster

    settings = _evaluation_settings(plan.config.evaluate)
    shares = share_out(plan.run, plan.truth, plan.config.evaluate.num_shares)
    with cluster(plan.config.cluster):
        plan.check_cluster()
        task = ray.remote(_measure_share)
        run = plan.run.storage.uri, plan.config.storage
        measured = ray.get([task.remote(*run, share, settings) for share in shares])
    return merge_shares(plan.run, plan.truth, shares, measured, settings)


def _measure_share(uri: str, storage: StorageSettings, share: Share, settings: EvaluationSettings) -> Measured:
    """Measures one share of a run; runs as a Ray task."""
    return measure_share(open_run(uri, storage), share, settings)


def _evaluation_settings(section: EvaluateSection) -> EvaluationSettings:
    """The section's part of `EvaluationSettings`, without the classes, which the plan's truth has been cut to."""
    names = [each.name for each in fields(EvaluationSettings) if each.name != "classes"]
    return EvaluationSettings(**{name: getattr(section, name) for name in names})


def _settings_hash(section: EvaluateSection) -> str:
    """The hash that identifies the settings in the history.

    `num_shares` changes no figure. Settings that were added later are hashed only where they are set.
    """
    plain = to_plain(replace(section, num_shares=1))
    default = to_plain(EvaluateSection())
    for name in ("max_detections", "classes"):
        if plain[name] == default[name]:
            del plain[name]
    return sha256_of(to_json(plain))


def check_gate(config: EvaluateConfig) -> None:
    """Checks that every gate looks at a figure that is measured.

    Raises:
        ConfigError: a gate looks at another one.
    """
    gate, kinds = config.gate, config.evaluate.iou_types
    if gate.max_drop is not None:
        raise ConfigError(
            f"gate.max_drop is {gate.max_drop}; evaluate measures one run and has none to fall behind, so allowed is "
            "null: use `maskfleet compare REFERENCE_RUN RUN ground_truth.uri=... gate.max_drop=...`"
        )
    if gate.min_ap is not None and "segm" not in kinds:
        raise ConfigError(
            f"gate.min_ap is {gate.min_ap} and looks at segm AP; evaluate.iou_types is {list(kinds)} and must have "
            "'segm', or gate.min_ap be null"
        )


def open_finished(uri: str, key: str, settings: StorageSettings) -> Run:
    """Opens the finished run at a URI; `key` is the setting that holds the URI, for messages.

    Raises:
        RunError: no run there, or one that is not finished.
    """
    run = open_run(uri, settings)
    if not run.sealed:
        raise RunError(f"{key}: {uri} is not finished; run its segment command again first")
    return run


def load_truth(source: AnnotationSource, storage: StorageSettings, run: Run, settings: CountSettings) -> Truth:
    """Loads the ground truth of the classes asked for, of any format, with category ids that match the run's.

    A COCO JSON file is taken as it is, its images are not looked for. COCO has category ids of its own, which stay. The
    other formats name classes only: each class takes the id of the run's class of the same name.

    Raises:
        ValueError: there is no such file or folder, or it cannot be read as the source's format.
        EvaluationError: a class that the truth does not have.
    """
    is_coco = format_of(source, storage) == "coco"
    if is_coco and source.uri.lower().endswith(".json"):
        truth = Truth.load(Location(source.uri, storage))
    else:
        truth = Truth.load(load_annotations(source, storage))
    if not is_coco:
        truth = truth.with_ids_of(classes_of(run))
    return truth.of_classes(settings.classes)


def check_fits(truth: Truth, run: Run, iou_types: Sequence[str]) -> None:
    """Checks that the truth can measure these kinds of IoU, and that its images and categories meet the run's.

    Raises:
        EvaluationError: it cannot, or they do not.
    """
    check_measurable(truth, iou_types)
    check_categories(classes_of(run), truth.names)
    match_images(load_images(run, ["image_id"])["image_id"], truth)


def truth_hash(source: AnnotationSource, storage: StorageSettings | None = None) -> str:
    """The hash of a ground truth's images, annotations and categories, which identifies it in the history."""
    if source.uri.lower().endswith(".json") and format_of(source, storage) == "coco":
        content = Location(source.uri, storage).read_json()
    else:
        content = to_coco(load_annotations(source, storage))
    return sha256_of(to_json({key: content.get(key) for key in ("images", "annotations", "categories")}))


def write_frame(storage: Storage, key: str, frame: pd.DataFrame) -> None:
    """Writes a data frame as a Parquet file, without its index."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    storage.write_bytes(key, sink.getvalue().to_pybytes())


def to_rich_tables(metrics: Metrics) -> list[Table]:
    """The figures as tables: over all categories, by each slice, and the confusion matrix of up to 12 classes."""
    tables = [to_rich_table(metrics)]
    for by, frame in metrics.slices.items():
        tables.append(_rich(f"by {by}", frame))
    if metrics.confusion is not None and len(metrics.confusion) <= _MAX_PRINTED_CLASSES:
        tables.append(_rich("confusion", metrics.confusion.reset_index(names="truth \\ found")))
    return tables


def to_rich_table(metrics: Metrics) -> Table:
    """The figures over all categories, a row for each metric and a column for each IoU type."""
    frame = metrics.to_frame()
    overall = frame[frame["category"].isna()]
    kinds = list(dict.fromkeys(overall["iou_type"]))
    table = Table(title="evaluation")
    table.add_column("metric")
    for kind in kinds:
        table.add_column(kind, justify="right")
    wide = overall.pivot(index="metric", columns="iou_type", values="value").reindex(dict.fromkeys(overall["metric"]))
    for metric, row in wide.iterrows():
        is_count = str(metric).endswith(("positives", "negatives"))
        values = [row[kind] for kind in kinds]
        table.add_row(str(metric), *("-" if v != v else f"{v:.0f}" if is_count else f"{v:.3f}" for v in values))
    return table


def _rich(title: str, frame: pd.DataFrame) -> Table:
    table = Table(title=title)
    for i, name in enumerate(frame.columns):
        table.add_column(str(name), justify="right" if i else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*("-" if v != v else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    return table
