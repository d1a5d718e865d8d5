"""The page: parts that there are, the day in its title, no text that can end its script, lists with a bound."""

from __future__ import annotations

import json
import re
from datetime import date

import pytest

from pipeline.results.gallery import Gallery
from pipeline.results.page import Page

NASTY = ["</script><script>alert(1)</script>", "<!--<script>", "&amp;\u2028'\"", "\udcff.jpg"]


@pytest.mark.parametrize("name", NASTY)
def test_no_name_ends_the_script_or_becomes_an_element(name: str) -> None:
    page = Page()
    page.show(Gallery([{"id": name, "truth": []}], [(name, name)]), sides=["A"], said=name)
    html = page.render(name, None)
    text = re.search(r'id="data">(.*?)</script>', html, re.S)
    assert text is not None and json.loads(text[1])["pictures"][0]["id"] == name
    assert html.count("<script") == 3 and "alert(1)</script>" not in html and "<!--" not in html


def test_the_title_has_the_day_and_sections_are_those_that_there_are() -> None:
    page = Page("2 of 3 shards", training={"charts": ["<svg></svg>"]})
    page.show(Gallery(), sides=[], said="None.")
    html = page.render("run", date(2026, 1, 2))
    assert "<title>run, 2 January 2026</title>" in html and "not finished: 2 of 3 shards" in html
    assert re.findall(r'<h2 id="(\w+)"', html) == ["training", "pictures"]
    assert "<title>run</title>" in Page().render("run", None)


def test_the_list_of_photos_that_cannot_be_shown_has_an_end() -> None:
    page = Page()
    gone = Gallery(unreadable=[(f"{number}.jpg", "gone") for number in range(1000)], is_cut=True)
    page.show(gone, sides=[""], said="No images.")
    html = page.render("run", None)
    assert "1,000 chosen images cannot be shown" in html and html.count("</b> gone") == 50
    assert "No images. More would make the file too large." in html
