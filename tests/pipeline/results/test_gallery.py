"""The gallery: photos are chosen by their errors, or so that each class is seen; its size has a bound."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation.ground_truth import Truth
from pipeline.results import gallery
from pipeline.results.errors import Yardstick, count_errors
from pipeline.results.gallery import Canvas, Gallery, Side, build_gallery, choose_images, choose_worst
from pipeline.results.render import color_of
from pipeline.results.report import build_report
from pipeline.runs import open_runs
from pipeline.tables import load_images, load_instances
from tests.pipeline.made_run import image_row, write_run


def test_the_sample_shows_rare_classes_and_is_stable():
    images = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(10_000)]})
    images["draw"] = np.random.default_rng(0).permutation(10_000)
    draw = images.set_index("image_id")["draw"]
    examples = pd.DataFrame(
        {"category": ["common"] * 6 + ["rare"], "image_id": [f"{i}.jpg" for i in (5, 6, 7, 8, 9, 10, 4321)]}
    )
    examples["draw"] = examples["image_id"].map(draw)
    chosen = choose_images(images, examples, 20)
    assert len(chosen) == 20 and "4321.jpg" in set(chosen["image_id"])
    assert (chosen["draw"] < 14).sum() >= 13  # the others have the lowest random numbers
    pd.testing.assert_frame_equal(chosen, choose_images(images, examples, 20))


def test_the_file_stays_small_however_many_photos_are_asked_for(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (200, 200, 3), np.uint8)).save(path)
        images.append(image_row(path.name, str(path), "ok", (200, 200), 0, 0))
    run = write_run(tmp_path / "run", [(images, [])])
    full = build_report(str(run))
    monkeypatch.setattr(gallery, "MAX_BYTES", 150_000)
    assert len(full) > 250_000 > 200_000 > len(build_report(str(run)))


@pytest.fixture
def yardstick(drawn_run) -> Yardstick:
    return Yardstick(Truth.load(drawn_run.truth))


def drawn(run: str) -> pd.DataFrame:
    images = load_images(run)
    return images[images["status"] == "ok"].assign(draw=range(7))


def test_the_photos_with_most_errors_come_first(drawn_run, yardstick):
    errors = count_errors(open_runs(drawn_run.uri), yardstick)
    chosen = choose_worst(drawn(drawn_run.uri), [errors], yardstick.truth, 4)
    number = dict(zip(yardstick.truth.file_names, errors.false + errors.missed, strict=True))
    wrong = [number[name] for name in chosen["image_id"]]
    assert wrong == sorted(number[name] for name in drawn(drawn_run.uri)["image_id"])[:2:-1]


def test_of_two_runs_half_of_the_photos_are_those_on_which_they_differ(drawn_run, yardstick):
    errors = count_errors(open_runs(drawn_run.uri), yardstick)
    images = drawn(drawn_run.uri)
    other = count_errors(open_runs(drawn_run.uri), yardstick)
    best = int(np.argmin((errors.false + errors.missed)[:7]))  # of the photos that were segmented
    other.false[best] += 1
    chosen = choose_worst(images, [errors, other], yardstick.truth, 2)
    assert yardstick.truth.file_names[best] in set(chosen["image_id"]) and len(chosen) == 2


def test_outlines_lie_on_the_photo_in_its_size_on_the_page():
    canvas = Canvas("a.png", Image.new("RGB", (1440, 1000)))
    mask = np.zeros((1000, 1440), np.uint8)
    mask[100:300, 200:600] = 1
    found = canvas.outline("circle", 0, (200, 100, 600, 300), mask, 80_000, s=0.5)
    assert (canvas.width, canvas.height) == (720, 500) and canvas.entry["size"] == "1440 x 1000"
    assert found["b"] == [100, 50, 300, 150] and found["s"] == 0.5
    polygon: Any = found["p"][0]  # type: ignore[index]
    assert {*polygon[0::2]} == {100, 300} and {*polygon[1::2]} == {50, 150}
    assert found["k"] == "#{:02x}{:02x}{:02x}".format(*color_of("circle"))


def test_scores_are_cut_off_and_not_rounded_up(drawn_run, yardstick):
    """A score just below a threshold stays below it on the page."""
    run = open_runs(drawn_run.uri)
    shown = build_gallery([Side("", run, count_errors(run, yardstick))], drawn(drawn_run.uri), yardstick)
    scores = sorted(i["s"] for picture in shown.pictures for i in picture["found"])  # type: ignore[attr-defined]
    want = np.sort(load_instances(drawn_run.uri)["score"].to_numpy(np.float64))
    assert (np.array(scores) <= want).all() and (want - scores < 1.1e-6).all()


def test_a_gallery_says_what_it_has_not(monkeypatch):
    def show(name: str) -> dict[str, object]:
        if name == "gone":
            raise OSError("no such photo")
        return {"id": name}

    full = Gallery()
    full.fill(["a", "gone", "b"], show)
    assert [picture["id"] for picture in full.pictures] == ["a", "b"] and not full.is_cut
    assert full.unreadable == [("gone", "no such photo")]
    monkeypatch.setattr(gallery, "MAX_BYTES", len(json.dumps({"id": "a"})))
    cut = Gallery()
    cut.fill(["a", "b"], show)
    assert len(cut.pictures) == 1 and cut.is_cut


def test_objects_that_are_too_many_to_draw_are_counted(drawn_run, yardstick, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_DRAWN_BESIDE_TRUTH", 2)
    run = open_runs(drawn_run.uri)
    shown = build_gallery([Side("", run, count_errors(run, yardstick))], drawn(drawn_run.uri), yardstick).pictures
    instances = load_instances(drawn_run.uri)["image_id"].value_counts()
    objects = {image.file_name: len(image.instances) for image in drawn_run.truth.images}
    for picture in shown:
        name = str(picture["id"])
        more = max(instances.get(name, 0) - 2, 0) + max(objects[name] - 2, 0)
        assert picture.get("undrawn", 0) == more
    assert any("undrawn" in picture for picture in shown)
