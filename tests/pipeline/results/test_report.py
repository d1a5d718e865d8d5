"""The report: its numbers are those of the tables; in a browser its filters, keys, sizes and colours work."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.dataset.check import check_data
from pipeline.dataset.check_report import displayable
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import evaluate_run
from pipeline.manifest import to_json
from pipeline.results.errors import Yardstick
from pipeline.results.label_report import build_label_report
from pipeline.results.report import build_report
from pipeline.results.training_report import TrainingRecord
from pipeline.tables import load_images, load_instances
from tests.debian import Unavailable
from tests.pipeline.made_run import image_row, instance_row, write_run
from tests.pipeline.results import browser as chromium

NASTY = "</script><img src=x onerror=alert(1)>.png"


def first_match(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.S)
    assert match is not None, pattern
    return match[1]


def gallery_of(html: str) -> list[dict[str, Any]]:
    """The photos and outlines that the page's script draws."""
    return json.loads(first_match(r'id="data">(.*?)</script>', html))["pictures"]


@pytest.fixture(scope="module")
def page(drawn_run, tmp_path_factory) -> Path:
    """A report with every section, of a run that also holds an image with a nasty name and one that failed."""
    folder = tmp_path_factory.mktemp("report")
    instances, images = load_instances(drawn_run.uri), load_images(drawn_run.uri)
    photo = folder / "plain.png"
    Image.new("RGB", (90, 70), (90, 120, 150)).save(photo)
    mask = np.zeros((70, 90), bool)
    mask[5:60, 10:80] = True
    second_shard = (
        [image_row(NASTY, str(photo), "ok", (70, 90), 1, 1), image_row("gone.png", "x", "not_found", (1, 1), 0, 1)],
        [instance_row(NASTY, 0, SHAPE_CATEGORIES[0], 0.99, mask)],
    )
    first_shard = (images.astype(object).where(images.notna(), None).to_dict("records"), instances.to_dict("records"))
    run = write_run(folder / "run", [first_shard, second_shard])
    training = pd.DataFrame({"step": range(50), "loss": np.linspace(2, 0.3, 50), "segm_AP": np.linspace(0, 0.7, 50)})
    also, slices = ["voc", "cityscapes", "confusion"], ["size", "crowding", "status"]
    evaluation = evaluate_run(drawn_run.uri, drawn_run.truth, also=also, slices=slices).to_dict()
    html = build_report(str(run), evaluation=json.loads(to_json(evaluation)), training=TrainingRecord(training))
    (folder / "report.html").write_text(html, "utf-8")
    return folder / "report.html"


def test_the_numbers_are_those_of_the_tables(page, drawn_run):
    html = page.read_text("utf-8")
    totals = re.findall(r"<li><b[^>]*>([\d,]+)</b>([a-z ]+)</li>", html)
    assert dict((name, number) for number, name in totals) == {
        "images": "10",
        "segmented": "8",
        "failed": "2",
        "without an instance": str(7 - len({image_id for image_id, _ in drawn_run.masks})),
        "instances": str(len(drawn_run.masks) + 1),
    }
    data = gallery_of(html)
    assert len(data) == 8 and sum(len(picture["found"]) for picture in data) == len(drawn_run.masks) + 1
    assert "<img src=x" not in html
    ap = evaluate_run(drawn_run.uri, drawn_run.truth).overall("segm", "AP")
    assert f"<td>{ap:.3f}</td>" in html


def test_all_that_was_evaluated_is_shown(page, drawn_run):
    html = page.read_text("utf-8")
    metrics = evaluate_run(drawn_run.uri, drawn_run.truth, also=["voc", "confusion"], slices=["crowding"])
    assert f"<td>VOC_AP</td><td>{metrics.overall('bbox', 'VOC_AP'):.3f}</td>" in html
    matrix = first_match(r'<table class="confusion">(.*?)</table>', html)
    counts = [int(n) for n in re.findall(r"<td[^>]*>(\d+)</td>", matrix)]
    assert metrics.confusion is not None and counts == metrics.confusion.to_numpy().ravel().tolist()
    assert re.findall(r"<summary>by (\w+)</summary>", html) == ["size", "crowding", "status"]
    names = re.findall(r"<td>(\w+)</td><td>[\d.-]+</td><td>[\d.-]+</td></tr>", html)
    assert names[:3] == ["AP", "AP50", "AP75"] and names[12:15] == ["precision", "recall", "F1"]
    for row in metrics.slices["crowding"].itertuples():
        assert f"<td>{row.slice}</td><td>{row.images}</td><td>{row.objects}</td><td>{row.AP:.3f}</td>" in html


def test_a_training_alone_has_a_report_and_nothing_has_none():
    record = TrainingRecord(pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}))
    html = build_report(training=record, title="my <training>")
    assert "my &lt;training&gt;" in html and "polyline" in html
    with pytest.raises(ValueError, match="needs a run or a training"):
        build_report()


def test_of_ten_thousand_images_every_class_is_seen_in_less_than_twenty_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):  # noise, which JPEG hardly makes smaller
        Image.fromarray(rng.integers(0, 255, (540, 720, 3), np.uint8)).save(tmp_path / f"{number}.jpg", quality=90)
    mask = np.zeros((540, 720), bool)
    mask[5:300, 10:400] = True
    kinds = [SimpleNamespace(id=n, name=f"class_{n}") for n in range(12)]
    images, instances = [], []
    for number in range(10_000):
        name = f"{number:05d}.jpg"
        images.append(image_row(name, str(tmp_path / f"{number % 8}.jpg"), "ok", (540, 720), 0, 0))
        if number == 7_777 or number < 1_000:  # the last class is on one image alone
            kind = kinds[11] if number == 7_777 else kinds[number % 11]
            instances.append(instance_row(name, 0, kind, 0.9, mask))
    html = build_report(str(write_run(tmp_path / "run", [(images, instances)])))
    assert 15_000_000 < len(html.encode()) < 20_000_000
    data = gallery_of(html)
    assert 20 < len(data) < 120, "the photos are too large for all that were asked for"
    assert {instance["c"] for photo in data for instance in photo["found"]} == {kind.name for kind in kinds}
    assert any(not photo["found"] for photo in data), "the others are chosen at random"


@pytest.fixture(scope="module")
def second_run(drawn_run, tmp_path_factory) -> str:
    """Every second detection of `drawn_run`, without its first photo."""
    instances, images = load_instances(drawn_run.uri), load_images(drawn_run.uri)
    rows = images.astype(object).where(images.notna(), None).to_dict("records")[1:]
    kept = instances[(instances.index % 2 == 0) & (instances["image_id"] != images["image_id"][0])]
    folder = tmp_path_factory.mktemp("second")
    return str(write_run(folder / "run_b", [(rows, kept.to_dict("records"))]))


@pytest.fixture(scope="module")
def truth_page(drawn_run, second_run, tmp_path_factory) -> Path:
    """Two runs side by side against the truth."""
    yardstick = Yardstick(Truth.load(drawn_run.truth))
    html = build_report(drawn_run.uri, run_b=second_run, yardstick=yardstick, day=date(2026, 11, 29))
    path = tmp_path_factory.mktemp("truth") / "report.html"
    path.write_text(html, "utf-8")
    return path


def table_of(html: str, name: str) -> list[list[str]]:
    rows = first_match(rf'<table data-name="{name}">.*?<tbody>(.*?)</tbody>', html)
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows.split("</tr>")[:-1]]


def test_figures_of_each_class_are_those_of_the_evaluation(truth_page, drawn_run, second_run):
    rows = {(row[0], row[1]): row[2:9] for row in table_of(truth_page.read_text("utf-8"), "errors")}
    for label, run in (("A", drawn_run.uri), ("B", second_run)):
        metrics = evaluate_run(run, drawn_run.truth)
        for number, figures in metrics.at_threshold["segm"].items():
            found = rows["all classes" if number is None else metrics.names[number], label]
            true, false, missed = (
                int(figures[name]) for name in ("true_positives", "false_positives", "false_negatives")
            )
            assert found[:4] == [str(true + missed), str(true), str(false), str(missed)]
            ratios = [figures[name] for name in ("precision", "recall", "F1")]
            assert found[4:] == ["-" if ratio != ratio else f"{ratio:.3f}" for ratio in ratios]


def test_photos_come_with_truth_and_marks_the_most_wrong_first(truth_page, drawn_run, second_run):
    html = truth_page.read_text("utf-8")
    pictures = gallery_of(html)
    assert len(pictures) == 7 and len({picture["id"] for picture in pictures}) == 7
    metrics = [evaluate_run(run, drawn_run.truth).overall for run in (drawn_run.uri, second_run)]
    for side, (key, overall) in enumerate(zip(("found", "other"), metrics, strict=True)):
        wrong = [i for picture in pictures for i in picture[key] or [] if i["e"] == "f" and i["s"] >= 0.5]
        assert len(wrong) == overall("segm", "false_positives")
        objects = [o for picture in pictures for o in picture["truth"]]
        missed = [o for o in objects if o["m"][side] is None or o["m"][side] < 0.5]
        lost = sum(len(image.instances) for image in drawn_run.truth.images) - len(objects)  # on the corrupt photo
        assert len(missed) + lost == overall("segm", "false_negatives")
    assert [picture["other"] is None for picture in pictures].count(True) == 1
    colours = {o["n"] for o in pictures[0]["truth"]}
    found = [i for i in pictures[0]["found"] if i["e"] == "t"]
    assert len(colours) == len(pictures[0]["truth"]) and {i["n"] for i in found} <= colours
    assert (
        "How wrong a photo is: its false positives and missed objects, at an IoU of 0.5" in html
        and "1 not in the run" in html
    )


def test_a_report_is_named_by_run_model_data_and_day(truth_page, drawn_run):
    title = first_match("<title>(.*?)</title>", truth_page.read_text("utf-8"))
    assert title == "run and run_b: Mask R-CNN on photos, 29 November 2026"
    assert first_match("<title>(.*?)</title>", build_report(drawn_run.uri)) == "run: Mask R-CNN on photos"


def test_truth_without_masks_is_measured_by_boxes(drawn_run):
    content = drawn_run.coco
    for entry in content["annotations"]:
        del entry["segmentation"]
    html = build_report(drawn_run.uri, yardstick=Yardstick(Truth.load(content)))
    figures = evaluate_run(drawn_run.uri, drawn_run.truth, iou_types=["bbox"])
    assert table_of(html, "errors")[0][2] == f"{figures.overall('bbox', 'true_positives'):.0f}"
    assert "where its box overlaps" in html


def test_photos_that_cannot_be_shown_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    images = [
        image_row(name, str(tmp_path / name), "ok", (20, 30), 0, 0)
        for name in ("gone.png", "text.png", "small.png", NASTY)
    ]
    html = build_report(str(write_run(tmp_path / "run", [(images, [])])))
    assert "4 chosen images cannot be shown" in html and "<img src=x" not in html
    assert "the photo is 5 x 5, but 20 x 30 was segmented" in html and "text.png cannot be decoded" in html


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[chromium.Browser]:
    try:
        browser = chromium.Browser(tmp_path_factory.mktemp("chromium"))
    except Unavailable as reason:
        pytest.skip(f"no Chromium here: {reason}")
    yield browser
    browser.close()


@pytest.fixture
def opened(browser, page) -> chromium.Browser:
    browser.requests()
    browser.go(page.as_uri())
    return browser


VISIBLE = "return [...document.querySelectorAll('.card')].filter(c => c.offsetParent !== null).length"
DRAWN = "return document.querySelectorAll('#gallery .card:not([hidden]) svg path').length"
SET = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))"


@pytest.mark.browser
def test_the_page_loads_whole_and_asks_for_nothing_else(opened, page):
    broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt)"
    assert opened.run(broken) == []
    assert opened.run(VISIBLE) == 8
    own = ("data:", "chrome:", "chrome-untrusted:")  # the browser's first page, which is not ours
    asked = [url for url in opened.requests() if not url.startswith(own)]
    assert asked == [page.as_uri()[:100]]
    assert [entry for entry in opened.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert opened.run("return [...document.querySelectorAll('.card span')].map(s => s.textContent)").count(NASTY) == 1


@pytest.mark.browser
def test_filters_show_the_instances_of_a_class_size_and_score(opened, page):
    data = gallery_of(page.read_text("utf-8"))
    opened.run(SET, "score", "0.3")
    everything = [(at, i) for at, picture in enumerate(data) for i in picture["found"] if i["s"] >= 0.3]
    assert opened.run(DRAWN) == len(everything)
    opened.run(SET, "class", "circle")
    circles = [(at, i) for at, i in everything if i["c"] == "circle"]
    assert opened.run(DRAWN) == len(circles) < len(everything)
    assert opened.run(VISIBLE) == len({at for at, _ in circles}) < len(data)
    opened.run(SET, "size", "1")
    medium = [(at, i) for at, i in circles if 32**2 <= i["a"] < 96**2]
    assert opened.run(DRAWN) == len(medium)
    count = opened.run("return document.getElementById('count').textContent")
    assert count == f"{len({at for at, _ in medium})} pictures, {len(medium)} instances"
    opened.run(SET, "class", "")
    opened.run(SET, "size", "")
    opened.run(SET, "score", "1")
    assert opened.run(DRAWN) == 0 and opened.run(VISIBLE) == len(data)


@pytest.mark.browser
def test_masks_lie_on_their_photos_in_cards_of_one_size(opened):
    ratios = """return [...document.querySelectorAll('.card .photo')].map(p => {
      const box = p.getBoundingClientRect(); return box.width / box.height })"""
    assert all(abs(ratio - 4 / 3) < 0.01 for ratio in opened.run(ratios))
    # The photo is fitted into the card as the drawing above it is: whole, in the middle.
    fits = """const p = document.querySelector('.card .photo');
      return [getComputedStyle(p.querySelector('img')).objectFit, p.querySelector('svg').getAttribute('viewBox'),
              p.querySelector('img').naturalWidth, p.querySelector('img').naturalHeight]"""
    fit, box, width, height = opened.run(fits)
    assert fit == "contain" and box == f"0 0 {width} {height}"


@pytest.mark.browser
def test_instances_of_low_scores_are_shown_at_first_where_there_are_no_others(browser, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40), (9, 99, 9)).save(path)
    mask = np.ones((40, 60), bool)
    rows = [instance_row("a.png", 0, SHAPE_CATEGORIES[0], 0.23, mask)]
    run = write_run(tmp_path / "run", [([image_row("a.png", str(path), "ok", (40, 60), 1, 0)], rows)])
    (tmp_path / "r.html").write_text(build_report(str(run)), "utf-8")
    browser.go((tmp_path / "r.html").as_uri())
    assert browser.run("return document.getElementById('count').textContent") == "1 picture, 1 instance"
    assert browser.run("return document.getElementById('score').value") == "0.2"


@pytest.mark.browser
def test_pictures_enlarge_by_mouse_and_by_keyboard(opened):
    is_open = "return document.getElementById('large').open"
    title = "return document.getElementById('large-title').textContent"
    opened.click(".card:nth-child(2)")
    assert opened.run(is_open) and "x" in opened.run(title)
    first = opened.run(title)
    opened.press(chromium.RIGHT)
    assert opened.run(title) != first
    opened.press(chromium.ESCAPE)
    assert not opened.run(is_open)
    assert opened.run("return document.activeElement.className") == "card"  # focus is back on the picture's card
    opened.press(chromium.TAB)
    opened.press(chromium.ENTER)
    assert opened.run(is_open)
    shown = "const i = document.querySelector('#large-photo img').getBoundingClientRect(); return [i.width, i.bottom]"
    width, bottom = opened.run(shown)
    assert width > 300 and bottom <= opened.run("return innerHeight")


@pytest.mark.browser
def test_letters_keep_their_size_in_an_enlarged_picture(opened):
    opened.run(SET, "score", "0.3")
    size = "return document.querySelector('#large-photo text').getBoundingClientRect().height"
    seen = []
    for width in (400, 1200):
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        opened.devtools("Emulation.setDeviceMetricsOverride", **screen)
        opened.click(".card:nth-child(2)")
        seen.append(opened.run(size))
        opened.press(chromium.ESCAPE)
    opened.devtools("Emulation.clearDeviceMetricsOverride")
    assert 8 < seen[0] <= seen[1] < 24 and seen[1] - seen[0] < 6


@pytest.mark.browser
def test_sections_and_long_tables_are_reached_by_keyboard(opened):
    targets = opened.run("return [...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.hash))")
    assert len(targets) == 5 and all(targets)
    opened.run("document.querySelector('nav a').focus()")
    opened.press(chromium.ENTER)
    assert opened.run("return location.hash") == "#training"
    focusable = "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)"
    assert opened.run(focusable)


@pytest.mark.browser
def test_the_page_fits_a_phone(opened):
    opened.devtools("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    try:
        assert opened.run("return innerWidth") == 360
        assert opened.run("return document.documentElement.scrollWidth") <= 360
        assert opened.run("return getComputedStyle(document.querySelector('select')).fontSize") == "16px"
    finally:
        opened.devtools("Emulation.clearDeviceMetricsOverride")


@pytest.mark.browser
def test_dark_mode_is_readable(opened):
    contrast = """
      const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(v => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b };
      const back = light(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('h1, dd, .soft, .bad, td, label')].map(e => {
        const text = light(getComputedStyle(e).color);
        return (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05) }).reduce((a, b) => Math.min(a, b))
    """
    back = "return getComputedStyle(document.body).backgroundColor"
    seen = set()
    for mode in ("light", "dark"):
        opened.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": mode}])
        assert opened.run(contrast) >= 4.5  # WCAG 2.1, level AA
        seen.add(opened.run(back))
    opened.devtools("Emulation.setEmulatedMedia", features=[])
    assert len(seen) == 2


SMALL = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
# What `save` is handed, in place of a file.
KEEP = "window.saved = {}; save = async (name, blob) => { saved[name] = [blob.type, blob.size, await blob.text()] }"


def look(browser: chromium.Browser, name: str, *, whole: bool = True) -> None:
    """Keeps a picture of the page in the folder that SCREENSHOTS names, for people to look at."""
    if folder := os.environ.get("SCREENSHOTS"):
        width, height = browser.run("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
        clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}} if whole else {}
        picture = browser.devtools("Page.captureScreenshot", captureBeyondViewport=whole, **clip)["data"]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))


def check_quiet(browser: chromium.Browser, page: Path) -> None:
    """Nothing is asked of anybody, and nothing is wrong, since the page was opened."""
    own = ("data:", "chrome:", "chrome-untrusted:", "blob:")
    assert [url for url in browser.requests() if not url.startswith(own)] == [page.as_uri()[:100]]
    assert [entry for entry in browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


@pytest.fixture
def truth_opened(browser, truth_page) -> Iterator[chromium.Browser]:
    browser.requests()
    browser.go(truth_page.as_uri())
    yield browser
    check_quiet(browser, truth_page)


@pytest.mark.browser
def test_errors_are_marked_counted_and_ordered_at_the_score_that_is_chosen(truth_opened, truth_page):
    pictures = gallery_of(truth_page.read_text("utf-8"))
    for score in (0.5, 0.3):
        truth_opened.run(SET, "score", str(score))
        names = "return [...document.querySelectorAll('.card > span:first-of-type')].map(s => s.textContent)"
        order = truth_opened.run(names)
        wrong = {}
        for picture in pictures:
            sides = [picture["found"], picture["other"]]
            false = sum(i["e"] == "f" and i["s"] >= score for side in sides for i in side or [])
            missed = sum((o["m"][side] or -1) < score for o in picture["truth"] for side in (0, 1))
            wrong[picture["id"]] = (false, missed)
        numbers = [sum(wrong[name]) for name in order]
        assert numbers == sorted(numbers, reverse=True) and len(order) == len(pictures)
        for at, kind in enumerate(("false", "missed")):
            marks = truth_opened.run(f"return document.querySelectorAll('#gallery rect.{kind}').length")
            assert marks == sum(pair[at] for pair in wrong.values())
    look(truth_opened, "desktop")
    truth_opened.run(SET, "errors-of", "false")
    assert truth_opened.run(VISIBLE) == sum(false > 0 for false, _ in wrong.values())
    truth_opened.run(SET, "errors-of", "")
    truth_opened.run(SET, "order", "worse")
    words = "return [...document.querySelector('.card').querySelectorAll('figcaption')].map(c => c.textContent)"
    errors = [sum(map(int, re.findall(r"(\d+) (?:false|missed)", side))) for side in truth_opened.run(words)]
    assert errors[1] > errors[0]


@pytest.mark.browser
def test_masks_boxes_and_colours_are_switched(truth_opened):
    count = "return ['path', 'rect'].map(name => document.querySelectorAll('#gallery ' + name).length)"
    paths, boxes = truth_opened.run(count)
    assert paths > 0 and boxes > 0
    truth_opened.click("#masks")
    assert truth_opened.run(count) == [0, boxes]
    truth_opened.click("#masks")
    truth_opened.click("#boxes")
    assert truth_opened.run(count) == [paths, 0]
    fills = "return [...document.querySelectorAll('#gallery path')].map(p => p.getAttribute('fill'))"
    by_class = set(truth_opened.run(fills))
    truth_opened.run(SET, "colour", "n")
    assert len(by_class) <= 3 < len(set(truth_opened.run(fills)))


@pytest.mark.browser
def test_a_picture_enlarged_shows_truth_and_both_runs(truth_opened):
    truth_opened.click(".card:nth-child(1)")
    captions = "return [...document.querySelectorAll('#large-photo figcaption')].map(c => c.textContent.slice(0, 2))"
    assert truth_opened.run(captions) == ["tr", "A:", "B:"]
    look(truth_opened, "enlarged", whole=False)
    truth_opened.click("#masks-too")
    assert truth_opened.run("return document.querySelectorAll('#large-photo path').length") == 0
    truth_opened.click("#masks-too")
    shown = "return document.getElementById('large-photo').getBoundingClientRect().bottom <= innerHeight"
    assert truth_opened.run(shown)
    truth_opened.run(KEEP)
    truth_opened.click("#save")
    ((name, (kind, size, _)),) = saved(truth_opened).items()
    assert name.endswith(".png") and kind == "image/png" and size > 2000
    truth_opened.press(chromium.ESCAPE)


def saved(browser: chromium.Browser) -> dict[str, Any]:
    """What was saved, once it is there."""
    for _ in range(100):
        if found := browser.run("return saved"):
            return found
        time.sleep(0.05)
    raise AssertionError("nothing was saved")


@pytest.mark.browser
def test_tables_are_saved_as_csv_and_charts_as_png(truth_opened, truth_page):
    truth_opened.run(KEEP)
    truth_opened.run(
        "document.querySelector('table[data-name=errors]').closest('.scroll').nextElementSibling.firstChild.click()"
    )
    ((name, (kind, _, text)),) = saved(truth_opened).items()
    frame = pd.read_csv(io.StringIO(text.removeprefix("\ufeff")))
    rows = table_of(truth_page.read_text("utf-8"), "errors")
    assert name.endswith("errors.csv") and kind == "text/csv" and len(frame) == len(rows)
    assert frame["true positives"].tolist() == [int(row[3]) for row in rows]
    cells = """const table = document.createElement('table');
      for (const text of ['=1+1', 'a "b", c', '1,234', '-', '-2.5']) table.insertRow().insertCell().textContent = text;
      return toCsv(table)"""
    assert truth_opened.run(cells).split("\r\n")[:-1] == ["'=1+1", '"a ""b"", c"', "1234", "", "-2.5"]
    truth_opened.run(KEEP)
    truth_opened.run("document.querySelector('.curves svg.chart').parentElement.querySelector('button').click()")
    ((name, (kind, size, _)),) = saved(truth_opened).items()
    assert name.endswith(".png") and kind == "image/png" and size > 2000


@pytest.mark.browser
def test_the_curves_of_a_class_are_chosen(truth_opened):
    visible = "return [...document.querySelectorAll('.curves')].map(c => c.offsetParent !== null)"
    assert truth_opened.run(visible) == [True, False, False, False]
    truth_opened.run(SET, "curves-class", "2")
    assert truth_opened.run(visible) == [False, False, True, False]


@pytest.mark.browser
def test_truth_and_two_runs_fit_a_phone_in_the_dark(truth_opened):
    truth_opened.devtools("Emulation.setDeviceMetricsOverride", **SMALL)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    truth_opened.devtools("Emulation.setEmulatedMedia", features=dark)
    try:
        assert truth_opened.run("return document.documentElement.scrollWidth") <= 360
        look(truth_opened, "phone")
        truth_opened.click(".card:nth-child(1)")
        assert truth_opened.run("return document.getElementById('large').scrollWidth") <= 360
        look(truth_opened, "phone_enlarged", whole=False)
        truth_opened.press(chromium.ESCAPE)
    finally:
        truth_opened.devtools("Emulation.setEmulatedMedia", features=[])
        truth_opened.devtools("Emulation.clearDeviceMetricsOverride")


@pytest.mark.browser
def test_a_page_of_labels_marks_the_faults(browser, drawn_run, tmp_path):
    content = drawn_run.coco
    content["annotations"].append(content["annotations"][0] | {"id": 10_000})
    content["categories"][0]["name"] = NASTY
    (tmp_path / "labels.json").write_text(json.dumps(content))
    report = check_data(AnnotationSource(uri=str(tmp_path / "labels.json"), image_root=str(drawn_run.photos)))
    page = tmp_path / "labels.html"
    page.write_text(build_label_report(report, displayable), "utf-8")
    browser.requests()
    browser.go(page.as_uri())
    assert browser.run(VISIBLE) == len(content["images"])
    assert browser.run("return document.querySelectorAll('#gallery rect.false').length") == 1
    browser.click(".card:nth-child(1)")
    texts = browser.run("return [...document.querySelectorAll('#large-photo text')].map(t => t.textContent)")
    assert any(text.startswith("duplicate_object: ") for text in texts)
    look(browser, "labels_enlarged", whole=False)
    browser.press(chromium.ESCAPE)
    look(browser, "labels")
    check_quiet(browser, page)


@pytest.mark.browser
def test_one_run_beside_truth_and_two_runs_without(browser, drawn_run, second_run, tmp_path):
    page = tmp_path / "one.html"
    page.write_text(build_report(drawn_run.uri, yardstick=Yardstick(Truth.load(drawn_run.truth))), "utf-8")
    browser.requests()
    browser.go(page.as_uri())
    browser.click(".card:nth-child(1)")
    captions = "return [...document.querySelectorAll('#large-photo figcaption')].map(c => c.textContent.split(':')[0])"
    assert browser.run(captions) == ["truth", "prediction"]
    look(browser, "one_enlarged", whole=False)
    browser.press(chromium.ESCAPE)
    words = browser.run("return document.querySelector('.card .words').textContent")
    assert re.fullmatch(r"\d+ false, \d+ missed of \d+", words)
    look(browser, "one")
    check_quiet(browser, page)
    page.write_text(build_report(drawn_run.uri, run_b=second_run), "utf-8")
    browser.requests()
    browser.go(page.as_uri())
    browser.run(SET, "order", "differ")
    texts = browser.run("return [...document.querySelectorAll('.card')].map(c => c.innerText)")
    numbers = [[int(n) for n in re.findall(r"[AB]: (\d+) found", text)] for text in texts]
    apart = [abs(a - b) for a, b in (pair for pair in numbers if len(pair) == 2)]
    assert len(apart) == 6 and apart == sorted(apart, reverse=True)
    check_quiet(browser, page)
