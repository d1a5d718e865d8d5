"""The run of a validation: read, verified and evaluated like any other."""

from __future__ import annotations

from pathlib import Path

from jobs.training.validation_run import validation_spec, write_run
from pipeline.bulk.encode import ImageResult
from pipeline.bulk.verify import verify_run
from pipeline.dataset.formats.reading import load_annotations
from pipeline.evaluation.metrics import evaluate_run
from pipeline.manifest import open_run
from pipeline.storage.local import LocalStorage
from pipeline.tables import load_images
from tests.jobs.training.test_validation import as_detected
from tests.specs import small_spec


def test_the_annotated_objects_themselves_are_a_perfect_run(shapes: Path, tmp_path: Path) -> None:
    annotated = load_annotations(str(shapes / "train.json"))
    results = [as_detected(annotated, image) for image in annotated.images]
    results[3] = ImageResult(results[3].image, "unreadable", "torn")
    spec = validation_spec(str(shapes / "train.json"), "ab" * 32, small_spec(3), annotated.categories)
    for _ in range(2):  # a run that is there already, or half of one, is replaced
        write_run(LocalStorage(tmp_path / "run"), spec, results[::-1])
        (tmp_path / "run" / "final.json").unlink()
    write_run(LocalStorage(tmp_path / "run"), spec, results)

    run = open_run(str(tmp_path / "run"))
    assert run.sealed and list(verify_run(run)) == []
    images = load_images(run)
    assert images["image_id"].tolist() == sorted(image.file_name for image in annotated.images)
    assert images["status"].value_counts().to_dict() == {"ok": len(results) - 1, "unreadable": 1}
    figures = evaluate_run(run, annotated)
    num_missed = len(annotated.images[3].instances)
    assert figures.overall("segm", "true_positives") == annotated.num_instances - num_missed
    assert figures.overall("segm", "false_negatives") == num_missed


def test_a_set_without_an_image_is_a_run_without_rows(tmp_path: Path) -> None:
    write_run(LocalStorage(tmp_path), validation_spec("val.json", "00" * 32, small_spec(3), ()), [])
    assert open_run(str(tmp_path)).sealed and len(load_images(str(tmp_path))) == 0
