"""`maskfleet check-data` and `convert`: finds faults in annotations before training, and converts their format."""

from __future__ import annotations

from jobs.config.results import CheckDataConfig, ConvertConfig
from jobs.terminal import counted
from pipeline.dataset.check import DataReport, check_data
from pipeline.dataset.check_report import draw_offenders
from pipeline.dataset.convert import Conversion, convert_annotations
from pipeline.dataset.formats.reading import load_annotations
from pipeline.manifest import to_json
from pipeline.storage.files import Location
from pipeline.storage.stores import open_storage


def describe_annotations(config: CheckDataConfig | ConvertConfig) -> str:
    """What is annotated, for a dry run: "12 images, 30 objects of data/train".

    Raises:
        ValueError: as `load_annotations`.
    """
    annotated = load_annotations(config.data, config.storage)
    images, objects = counted(len(annotated), "image"), counted(annotated.num_instances, "object")
    return f"{images}, {objects} of {config.data.uri}"


def run_check_data(config: CheckDataConfig) -> DataReport:
    """Checks every annotation and image; with output.uri, also writes data_report.json and pictures of the faults."""
    data = config.data
    report = check_data(data, config.storage, in_channels=data.in_channels, extra_channels=data.extra_channels)
    if config.output.uri is not None:
        open_storage(config.output.uri, config.storage).write_bytes("data_report.json", to_json(report.to_dict()))
        draw_offenders(report, Location(config.output.uri, config.storage))
    return report


def describe_report(report: DataReport) -> str:
    """The report as text: totals, classes, then each kind of fault with its count and first three examples."""
    classes = ", ".join(f"{name} {count:,}" for name, count in report.class_counts.items())
    lines = [
        f"{report.uri} ({report.format}): {report.num_images:,} images, {report.num_instances:,} instances, "
        f"{report.num_negatives:,} images without any",
        f"classes: {classes}",
    ]
    lines += [f"note: {note}: {count:,}" for note, count in report.notes.items()]
    for finding in report.findings:
        lines.append(f"{finding.severity}: {finding.kind} {finding.count:,}: {finding.meaning}")
        lines += [f"    {example.file_name}: {example.detail}" for example in finding.examples[:3]]
    lines.append("training would take this set" if report.ok else "training refuses this set for the errors above")
    return "\n".join(lines)


def run_convert(config: ConvertConfig) -> Conversion:
    """Writes the annotations in the format `convert.to` to output.uri; returns counts, notes and losses."""
    data, settings = config.data, config.convert
    return convert_annotations(
        data,
        Location(config.output.uri, config.storage),
        storage=config.storage,
        target_format=settings.to,
        copy_photos=settings.copy_photos,
        overlap=settings.overlap,
        unknown=settings.unknown,
    )


def describe_conversion(conversion: Conversion, target: str) -> str:
    """The conversion as text: what was written, and what the target format cannot express."""
    lines = [
        f"{conversion.num_images:,} images, {conversion.num_instances:,} instances, {conversion.num_categories:,} "
        f"categories: {conversion.source_format} -> {conversion.target_format} at {target}"
    ]
    lines += [f"note: {note}: {count:,}" for note, count in conversion.notes.items()]
    lines += [f"lost: {loss}: {count:,}" for loss, count in conversion.losses.items()]
    return "\n".join(lines)
