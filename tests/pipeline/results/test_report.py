"""The report: its numbers are those of the tables; in a browser its filters, keys, sizes and colours work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.evaluation.metrics import MetricsJson, evaluate_run
from pipeline.manifest import to_json
from pipeline.results.report import build_report, choose_images
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
    return json.loads(first_match(r'id="data">(.*?)</script>', html))


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
    html = build_report(str(run), evaluation=json.loads(to_json(evaluation)), training=training)
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


def test_of_many_classes_the_confused_pairs_are_listed():
    names = [f"c{n}" for n in range(30)] + ["background"]
    counts = np.diag(np.full(31, 50))
    counts[3, 4], counts[7, 2], counts[5, 30] = 9, 2, 40
    evaluation: MetricsJson = {"confusion": {"names": names, "counts": counts.tolist()}}
    html = build_report(training=pd.DataFrame({"step": [1], "loss": [1.0]}), evaluation=evaluation)
    pairs = re.findall(r'<td>(c\d+)</td><td class="text">(c\d+)</td><td>(\d+)</td><td>(\d+)</td>', html)
    assert pairs == [("c3", "c4", "9", "59"), ("c7", "c2", "2", "52")]


def test_a_training_alone_has_a_report_and_nothing_has_none():
    html = build_report(training=pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}), title="my <training>")
    assert "my &lt;training&gt;" in html and "polyline" in html
    with pytest.raises(ValueError, match="needs a run or a training"):
        build_report()


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
    from pipeline.results import report

    rng = np.random.default_rng(0)
    images = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (200, 200, 3), np.uint8)).save(path)
        images.append(image_row(path.name, str(path), "ok", (200, 200), 0, 0))
    run = write_run(tmp_path / "run", [(images, [])])
    full = build_report(str(run))
    monkeypatch.setattr(report, "MAX_BYTES", 150_000)
    assert len(full) > 250_000 > 200_000 > len(build_report(str(run)))


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
    assert opened.run("return location.hash") == "#evaluation"
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
