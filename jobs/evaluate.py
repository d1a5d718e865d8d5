"""`maskfleet evaluate`: measures a run against ground truth, writes the figures, keeps them, and checks gates."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from jobs.config.load import ConfigError, to_plain
from jobs.config.results import EvaluateConfig, EvaluateSection, RunsSection
from jobs.terminal import counted
from jobs.tracking.store import RunRecord, to_parameters, to_tags
from jobs.tracking.tracker import check_tracking, open_tracker
from pipeline.bulk.corpus import count_deleted
from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.formats.reading import format_of, load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.coco import IOU_THRESHOLDS
from pipeline.evaluation.compare import check_gates
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import Measured, Metrics, check_measurable, classes_of, evaluate_run
from pipeline.evaluation.run_detections import check_categories, match_images
from pipeline.evaluation.settings import CountSettings, EvaluationSettings
from pipeline.evaluation.sharding import Share, measure_share, merge_shares, share_out
from pipeline.manifest import Run, RunError, open_run, sha256_of, to_json
from pipeline.results.history import append_history
from pipeline.runs import AnyRun, Runs, open_runs
from pipeline.storage.base import Storage, StorageSettings
from pipeline.storage.files import Location
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import base_name
from pipeline.tables import load_images
from pipeline.thresholds import KEY as THRESHOLDS

METRICS_JSON = "metrics.json"
METRICS_PARQUET = "metrics.parquet"
SLICES_PARQUET = "slices.parquet"
CONFUSION_PARQUET = "confusion.parquet"
THRESHOLDS_JSON = "thresholds.json"
CATEGORIES_CSV = "categories.csv"
_MAX_PRINTED_CLASSES = 12  # a larger confusion matrix is only written to its file
EVALUATION_SUFFIX = ".evaluation"


@dataclass(frozen=True)
class EvaluatePlan:
    """A checked configuration with its inputs open.

    Attributes:
        config: as given.
        run: the finished run, or several as one.
        truth: the ground truth of the classes asked for, see `load_truth`.
        output: where the figures are written.
    """

    config: EvaluateConfig
    run: AnyRun
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
        ConfigError: a gate on what is not measured, or MLflow that does not answer, where the settings name one.
        ValueError: the ground truth cannot be read, or does not fit the run.
    """
    check_gate(config)
    _check_thresholds(config)
    run = open_finished(config.run, "run", config.storage)
    if isinstance(run, Runs):
        _check_several(config, run)
    truth = load_truth(config.ground_truth, config.storage, run, config.evaluate)
    check_fits(truth, run, config.evaluate.iou_types)
    output = open_storage(config.output.uri or run.beside + EVALUATION_SUFFIX, config.storage)
    check_tracking(config.tracking)
    return EvaluatePlan(config, run, truth, output)


def run_evaluate(plan: EvaluatePlan) -> tuple[Metrics, list[str]]:
    """Computes the figures, writes them to the output folder, and adds them to the history where one is set.

    Writes metrics.json and metrics.parquet, and where they were asked for slices.parquet, confusion.parquet and
    thresholds.json.

    Returns:
        The figures, and a sentence for each gate that failed.
    """
    measured: list[Metrics] = []
    with open_tracker(plan.config.tracking, lambda line: None) as tracker:
        if tracker is not None:
            tracker.start(_to_record(plan, measured))
        metrics = _evaluate(plan)
        measured.append(metrics)
    if tracker is not None:
        metrics = replace(metrics, notes=(*metrics.notes, tracker.outcome))
    return metrics, check_gates(metrics, min_ap=plan.config.gate.min_ap)


def _evaluate(plan: EvaluatePlan) -> Metrics:
    """Computes the figures, writes them, and adds them to the history."""
    # Arrow's own pool keeps what it is given back; the system's lets the measuring have it (30 MiB of 740, ran).
    pa.set_memory_pool(pa.system_memory_pool())
    settings = plan.config.evaluate
    if settings.num_shares > 1 and isinstance(plan.run, Run):
        metrics = _evaluate_in_shares(plan, plan.run)
    else:
        metrics = evaluate_run(plan.run, plan.truth, **vars(_evaluation_settings(settings)))
    metrics = replace(metrics, notes=(*metrics.notes, *notes_on_runs(plan.config.run, plan.run)))
    plan.output.write_bytes(METRICS_JSON, to_json({"run_id": plan.run.run_id, **metrics.to_dict()}))
    write_frame(plan.output, METRICS_PARQUET, metrics.to_frame())
    if metrics.slices:
        tables = [table.assign(by=by) for by, table in metrics.slices.items()]
        write_frame(plan.output, SLICES_PARQUET, pd.concat(tables, ignore_index=True))
    if metrics.confusion is not None:
        write_frame(plan.output, CONFUSION_PARQUET, metrics.confusion.reset_index())
    if asks_for_thresholds(plan.config):
        plan.output.write_bytes(THRESHOLDS_JSON, to_json(_thresholds_document(metrics, settings)))
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
    return metrics


def _to_record(plan: EvaluatePlan, measured: Sequence[Metrics]) -> RunRecord:
    """The record of one evaluation, whose figures are the last of those `measured`, once there are any."""
    spec = plan.run.spec.model

    def read_rows() -> list[dict[str, float]]:
        frame = _overall(measured[-1]) if measured else pd.DataFrame(columns=["iou_type", "metric", "value"])
        names = frame["iou_type"] + "/" + frame["metric"]
        return [{"step": 0, **dict(zip(names, frame["value"]))}]

    def write_files(folder: Path) -> None:
        if not measured:
            return
        metrics = measured[-1]
        keys = [METRICS_JSON, METRICS_PARQUET, *[SLICES_PARQUET] * bool(metrics.slices)]
        for key in [*keys, *[CONFUSION_PARQUET] * (metrics.confusion is not None)]:
            (folder / key).write_bytes(plan.output.read_bytes(key))
        frame = metrics.to_frame()
        by_category = frame[frame["category"].notna()]
        table = by_category.pivot(index=["category_id", "category"], columns=["iou_type", "metric"], values="value")
        table.columns = ["/".join(names) for names in table.columns]
        table.to_csv(folder / CATEGORIES_CSV)

    return RunRecord(
        id=uuid.uuid4().hex,
        name=plan.config.tracking.run_name or base_name(plan.output.uri),
        settings=to_parameters(plan.config),
        tags=to_tags(
            "evaluate",
            model=spec.sha256,
            data=plan.config.ground_truth.uri,
            run=plan.config.run.uri,
            output_uri=plan.output.uri,
        ),
        read_rows=read_rows,
        write_files=write_files,
    )


def _overall(metrics: Metrics) -> pd.DataFrame:
    """The figures over all categories: a row for each IoU type and metric."""
    frame = metrics.to_frame()
    return frame[frame["category"].isna()]


def _check_several(config: EvaluateConfig, runs: Runs) -> None:
    """Raises ConfigError for settings that need a single run, or runs of one model."""
    if config.evaluate.num_shares > 1:
        raise ConfigError(f"evaluate.num_shares is {config.evaluate.num_shares}; allowed is 1 with several runs")
    if config.history.uri is not None and len(runs.model_hashes) > 1:
        raise ConfigError(
            f"history.uri: the runs are of {len(runs.model_hashes)} models; one in the history is of one model, so "
            "allowed is null"
        )


def _evaluate_in_shares(plan: EvaluatePlan, run: Run) -> Metrics:
    """Measures each share of the run in a Ray task; the merged figures equal those of a single process."""
    import ray

    from jobs.cluster.start import check_workers_start, cluster

    settings = _evaluation_settings(plan.config.evaluate)
    shares = share_out(run, plan.truth, plan.config.evaluate.num_shares)
    with cluster(plan.config.cluster):
        plan.check_cluster()
        check_workers_start()
        task = ray.remote(_measure_share)
        uri, storage = run.storage.uri, plan.config.storage
        measured = ray.get([task.remote(uri, storage, share, settings) for share in shares])
    return merge_shares(run, plan.truth, shares, measured, settings)


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


def asks_for_thresholds(config: EvaluateConfig) -> bool:
    """Whether the score thresholds of the classes are looked for."""
    return getattr(config.thresholds, "for") is not None


def _check_thresholds(config: EvaluateConfig) -> None:
    """Raises ConfigError where the score thresholds asked for cannot be found."""
    if not asks_for_thresholds(config):
        return
    if not {"segm", "bbox"} & set(config.evaluate.iou_types):
        raise ConfigError("thresholds.for looks at masks or boxes; evaluate.iou_types must have 'segm' or 'bbox'")
    if not np.isclose(IOU_THRESHOLDS, config.evaluate.iou_threshold).any():
        allowed = ", ".join(f"{each:g}" for each in IOU_THRESHOLDS)
        raise ConfigError(
            f"thresholds.for needs an IoU threshold of COCO's: evaluate.iou_threshold is "
            f"{config.evaluate.iou_threshold:g}; allowed are {allowed}"
        )


def _thresholds_document(metrics: Metrics, settings: EvaluateSection) -> dict[str, object]:
    """The content of thresholds.json: thresholds by name of the class, and the figures that they give."""
    best = {
        metrics.names[number]: asdict(threshold)
        for number, threshold in metrics.best_thresholds[settings.breakdown_type].items()
    }
    return {
        THRESHOLDS: {name: figures["score_threshold"] for name, figures in best.items()},
        "for": "f1",
        "iou_type": settings.breakdown_type,
        "iou_threshold": settings.iou_threshold,
        "by_category": best,
    }


def to_thresholds_table(metrics: Metrics, settings: EvaluateSection) -> Table:
    """The best threshold of each class as a table, with the F1 that the class has at evaluate.score_threshold."""
    kind = settings.breakdown_type
    table = Table(title=f"score thresholds with the highest F1 ({kind}, IoU {settings.iou_threshold:g})")
    for name in ("class", "threshold", "F1", f"F1 at {settings.score_threshold:g}", "precision", "recall"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for number, name in metrics.names.items():
        best = metrics.best_thresholds[kind].get(number)
        before = metrics.at_threshold[kind][number]["F1"]
        values = ("-",) * 2 if best is None else (f"{best.score_threshold:.3f}", f"{best.f1:.3f}")
        at_best = ("-",) * 2 if best is None else (f"{best.precision:.3f}", f"{best.recall:.3f}")
        table.add_row(name, *values, "-" if before != before else f"{before:.3f}", *at_best)
    return table


def open_given(section: RunsSection, settings: StorageSettings) -> AnyRun:
    """Opens the run of a section, or several as one, finished or not; raises RunError as `open_runs`."""
    if section.earlier:
        return open_runs([*section.earlier, section.uri], settings=settings)
    return open_runs(section.uri, chain=section.chain, settings=settings)


def open_finished(section: RunsSection, key: str, settings: StorageSettings) -> AnyRun:
    """Opens the finished run of a section, or several as one; `key` is the section's, for messages.

    Raises:
        RunError: no run there, or one that is not finished; or as `open_runs` and `Runs.parts`.
    """
    opened = open_given(section, settings)
    for run in opened.runs if isinstance(opened, Runs) else [opened]:
        if not run.sealed:
            raise RunError(f"{key}.uri: {run.storage.uri} is not finished; run its segment command again first")
    # Read here, so that what cannot be read, or does not fit together, is said before anything starts.
    _ = opened.spec, opened.parts if isinstance(opened, Runs) else ()
    return opened


def notes_on_runs(section: RunsSection, runs: AnyRun) -> list[str]:
    """What is said of several runs read as one: how many, and how many of their images are no longer in the input."""
    if not isinstance(runs, Runs):
        return []
    notes = [f"{runs.title}, read as one: of each image the rows of the newest run that planned it"]
    if section.count_deleted:
        try:
            num_deleted = count_deleted(runs)
        except (ValueError, OSError) as error:
            notes.append(f"images deleted since stay, and are not counted, as the input cannot be listed: {error}")
        else:
            if num_deleted:
                notes.append(f"{counted(num_deleted, 'image')} that the input no longer has stay")
    return notes


def load_truth(source: AnnotationSource, storage: StorageSettings, run: AnyRun, settings: CountSettings) -> Truth:
    """Loads the ground truth of the classes asked for, of any format, with category ids that match the run's.

    A COCO JSON file is taken as it is, its images are not looked for. COCO has category ids of its own, which stay. The
    other formats name classes only: each class takes the id of the run's class of the same name.

    Raises:
        ValueError: there is no such file or folder, or it cannot be read as the source's format.
        EvaluationError: a class that the truth does not have.
    """
    is_coco = format_of(source, storage) == "coco"
    if is_coco and source.uri.lower().endswith(".json") and not source.drop_empty_categories:
        truth = Truth.load(Location(source.uri, storage))
    else:
        truth = Truth.load(load_annotations(source, storage))
    if not is_coco:
        truth = truth.with_ids_of(classes_of(run))
    return truth.of_classes(settings.classes)


def check_fits(truth: Truth, run: AnyRun, iou_types: Sequence[str]) -> None:
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
    overall = _overall(metrics)
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
