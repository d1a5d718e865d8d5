"""Code of users' predictors for the tests: the folder beside this module, the example of the page, and written ones."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from pipeline.predictors.source import PredictorSource, read_folder
from tests.docs.pages import blocks_of

USER_CODE = Path(__file__).parent / "user_code"
FAULTY = "faulty:Faulty"


def write_code(folder: Path, **modules: str) -> Path:
    """Writes modules by their names into a folder, which is made; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(dedent(text))
    return folder


def write_example(folder: Path) -> Path:
    """Writes the example of docs/predictors.md as `colours.py` into a folder; returns the folder."""
    example = next(block for block in blocks_of("docs/predictors.md") if block.kind == "python")
    return write_code(folder, colours=example.text)


def source_of(folder: Path, name: str, **settings: object) -> PredictorSource:
    """The source of a predictor whose module lies in a folder."""
    return PredictorSource(name, settings, read_folder(folder))
