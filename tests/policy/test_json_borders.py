"""`dict[str, Any]` stands only where JSON, YAML or a state dict is read or written; all else has a type."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

SOURCES = sorted(path for layer in ("maskfleet", "jobs", "pipeline", "model") for path in (ROOT / layer).rglob("*.py"))
# What a module reads or writes. A module that no longer needs its entry loses it, which a test asks for.
BORDERS = {
    "jobs/cluster/manifests.py": "YAML that Kubernetes and Ray's cluster launcher define",
    "jobs/config/base.py": "settings as YAML has them",
    "jobs/config/load.py": "settings as YAML has them",
    "jobs/config/schedule.py": "sections of the commands that a schedule runs, as YAML",
    "jobs/config/sweep.py": "settings of trainings, as YAML",
    "jobs/schedule/tasks.py": "settings of the commands, written as YAML",
    "jobs/training/output.py": "config.yaml",
    "jobs/training/train.py": "config.yaml",
    "model/checkpoint.py": "training_state.pt",
    "model/spec.py": "spec.json",
    "model/training/train_step.py": "state dicts of torch",
    "pipeline/bulk/listing.py": "lines of JSON, manifests of S3 Inventory",
    "pipeline/dataset/formats/coco.py": "COCO JSON",
    "pipeline/dataset/formats/coco_file.py": "COCO JSON",
    "pipeline/dataset/formats/via.py": "VIA JSON",
    "pipeline/manifest.py": "run.json and sealed JSON",
    "pipeline/results/export.py": "COCO and LabelMe JSON",
    "pipeline/run_spec.py": "run.json",
    "pipeline/storage/s3.py": "requests and answers of S3",
}


def has_untyped_dict(source: str) -> bool:
    return any(
        isinstance(node, ast.Subscript) and ast.unparse(node) in ("dict[str, Any]", "Dict[str, Any]")
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_untyped_dicts_stand_at_borders_only(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    assert has_untyped_dict(path.read_text()) == (name in BORDERS), "give it a type, or drop its entry in BORDERS"


def test_every_border_is_a_file_that_is_there() -> None:
    assert BORDERS.keys() <= {path.relative_to(ROOT).as_posix() for path in SOURCES}


@pytest.mark.parametrize(
    ("line", "is_seen"),
    [
        ("def f(values: dict[str, Any]): ...", True),
        ("rows: list[dict[str, Any]] = []", True),
        ("Row = dict[str, Any]", True),
        ("def f(values: dict[str, float], *others: Any): ...", False),
    ],
)
def test_the_rule_itself_sees_an_untyped_dict(line: str, is_seen: bool) -> None:
    assert has_untyped_dict(line) == is_seen
