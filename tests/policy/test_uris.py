"""URIs are taken apart in one module, so that no two places of the program disagree on what a URI names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT

LAYERS = ("maskfleet", "jobs", "pipeline", "model", "benchmarks")
SOURCES = {path.relative_to(ROOT).as_posix(): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}
TAKES_APART = re.compile(
    r"""["']://["']"""  # a search for the mark itself
    r"""|\b(urlsplit|urlparse|unquote|unquote_to_bytes|url2pathname)\b"""
    r"""|\.(startswith|removeprefix|partition|split|rsplit|lstrip)\(\(?["'](file:|s3:|[a-z0-9]+://)"""
    r"""|\buri(\.rstrip\([^)]*\))?\.(r?split|r?partition)\("""
)
EXCEPTIONS = {
    "pipeline/storage/uri.py": "the one module",
    "pipeline/storage/base.py": "the http address of a store",
    "pipeline/storage/s3.py": "the http address of a store",
    "jobs/config/schedule.py": "the http address of a webhook",
    "jobs/config/tracking.py": "the http address of a tracking server",
    "jobs/cluster/start.py": "the address of a Ray cluster",
    "jobs/cluster/submit.py": "the http address of a cluster",
    "model/weights/loading.py": "the http address of published weights; the layer knows no storage",
}


def lines_that_take_apart(text: str) -> list[str]:
    """The lines of a source that look into a URI by themselves."""
    return [line.strip() for line in text.splitlines() if TAKES_APART.search(line)]


@pytest.mark.parametrize("name", SOURCES)
def test_no_other_module_takes_a_uri_apart(name: str) -> None:
    lines = lines_that_take_apart(SOURCES[name].read_text())
    assert bool(lines) == (name in EXCEPTIONS), lines


@pytest.mark.parametrize(
    "line",
    [
        'if "://" in name:',
        "scheme, rest = uri.split('://', 1)",
        "parts = urlsplit(uri)",
        'path = unquote(uri.removeprefix("file://"))',
        'is_bucket = place.startswith("s3://")',
        'if value.startswith(("file://", "/")):',
        'folder, name = uri.rstrip("/").rsplit("/", 1)',
        'folder, _, name = uri.rpartition("/")',
    ],
)
def test_the_rule_itself_sees_what_is_forbidden(line: str) -> None:
    assert lines_that_take_apart(line)


def test_the_rule_lets_uris_be_made_and_named() -> None:
    made = 'uri = f"s3://{bucket}/{key}"\nraise ValueError("give s3://bucket/prefix")\nname = key.rpartition("/")[2]\n'
    assert not lines_that_take_apart(made) and Path(ROOT / "pipeline").is_dir()
