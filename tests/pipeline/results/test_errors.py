"""Errors of a run, shard by shard: the figures of the whole evaluation at every score, of every photo and class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.compare import compare
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import evaluate_run
from pipeline.evaluation.settings import CountSettings
from pipeline.results.errors import NOT_COUNTED, Counts, Yardstick, count_errors, pair_instances
from pipeline.results.export import to_coco
from pipeline.runs import open_runs
from pipeline.tables import categories_of, load_images, load_instances
from tests.pipeline.nightly_runs import write_chain


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.437, 0.95])
def test_counts_at_each_score_are_those_of_an_evaluation_at_it(drawn_run, threshold):
    content = drawn_run.coco
    for index, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = int(index % 5 == 0)
    yardstick = Yardstick(Truth.load(content), CountSettings(score_threshold=threshold))
    errors = count_errors(open_runs(drawn_run.uri), yardstick)
    metrics = evaluate_run(drawn_run.uri, content, score_threshold=threshold)
    at = yardstick.scores.tolist().index(threshold)
    for number, figures in metrics.at_threshold["segm"].items():
        counts = errors.overall if number is None else errors.by_class[metrics.names[number]]
        assert counts.true[at] == figures["true_positives"] and counts.false[at] == figures["false_positives"]
        assert counts.objects - counts.true[at] == figures["false_negatives"]
        measured = (counts.precision[at], counts.recall[at], counts.f1[at])
        np.testing.assert_allclose(measured, [figures[name] for name in ("precision", "recall", "F1")])
    assert errors.false.sum() == errors.overall.false[at]
    assert errors.missed.sum() == errors.overall.objects - errors.overall.true[at]
    assert errors.coverage == metrics.coverage and set(errors.notes) <= set(metrics.notes)


def test_errors_of_a_photo_are_those_of_a_comparison(drawn_run):
    yardstick = Yardstick(Truth.load(drawn_run.truth))
    errors = count_errors(open_runs(drawn_run.uri), yardstick)
    instances, images = load_instances(drawn_run.uri), load_images(drawn_run.uri)
    compared = compare(
        instances, instances, drawn_run.truth, images_a=images, images_b=images, num_resamples=0, only_common=False
    ).images.set_index("image")
    for name, number in zip(yardstick.truth.file_names, errors.false + errors.missed, strict=True):
        assert compared.loc[name, "errors_a"] == number


def test_objects_on_photos_that_the_run_has_not_are_missed(drawn_run):
    images = [*drawn_run.truth.images, replace(drawn_run.truth.images[0], image_id=99, file_name="elsewhere/new.png")]
    yardstick = Yardstick(Truth.load(replace(drawn_run.truth, images=tuple(images))))
    errors = count_errors(open_runs(drawn_run.uri), yardstick)
    assert errors.missed[-1] == len(images[0].instances) and "elsewhere/new.png" not in errors.truth_id
    assert "1 not in the run" in errors.notes[0]


def test_a_class_that_the_model_has_not_is_noted(drawn_run):
    content = drawn_run.coco
    content["categories"].append({"id": 77, "name": "hexagon"})
    content["annotations"][0]["category_id"] = 77
    errors = count_errors(open_runs(drawn_run.uri), Yardstick(Truth.load(content)))
    assert any("does not have these of the ground truth: hexagon" in note for note in errors.notes)
    assert errors.by_class["hexagon"].objects == 1 and not errors.by_class["hexagon"].true.any()


def test_several_runs_are_measured_as_one(tmp_path):
    runs, _, _ = write_chain(tmp_path, 3, new=4, changed=3, deleted=2)
    chain = open_runs(runs[-1], chain=True)
    content = to_coco(load_instances(chain), load_images(chain), categories_of(chain))
    yardstick = Yardstick(Truth.load(content), CountSettings(score_threshold=0.0))
    errors = count_errors(chain, yardstick)
    assert (
        errors.overall.objects == len(load_instances(chain)) > 20 and len(errors.truth_id) == errors.coverage.num_images
    )
    assert errors.false.sum() == errors.missed.sum() == 0
    assert count_errors(open_runs(runs[-1]), yardstick).missed.sum() > 0  # on photos of earlier nights


def test_a_pair_holds_at_every_score_up_to_its_own(drawn_run):
    content = drawn_run.coco
    content["annotations"][0]["iscrowd"] = 1
    yardstick = Yardstick(Truth.load(content))
    images, instances = load_images(drawn_run.uri), load_instances(drawn_run.uri)
    pairs = pair_instances(instances, images, yardstick.truth, yardstick)
    for threshold in (0.0, 0.4, 0.8):
        metrics = evaluate_run(drawn_run.uri, content, score_threshold=threshold).at_threshold["segm"][None]
        taken = instances["score"].to_numpy() >= threshold
        assert (pairs.truths[taken] >= 0).sum() == metrics["true_positives"] == (pairs.scores >= threshold).sum()
        assert (pairs.truths[taken] == -1).sum() == metrics["false_positives"]
    of_no_class = instances.assign(category="cat", category_id=77)
    assert (pair_instances(of_no_class, images, yardstick.truth, yardstick).truths == NOT_COUNTED).all()


def test_the_best_score_is_the_lowest_of_equals_and_none_without_objects():
    counts = Counts(4, np.array([4, 4, 3, 0]), np.array([4, 1, 0, 0]))
    assert counts.best == 1 and np.isnan(counts.precision[3]) and counts.recall.tolist() == [1, 1, 0.75, 0]
    nothing = Counts(0, np.zeros(4, np.int64), np.zeros(4, np.int64))
    assert nothing.best is None and np.isnan(nothing.recall).all()
