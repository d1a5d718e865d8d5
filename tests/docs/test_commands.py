"""Every command in README and docs is one that its program takes; every file, module and name there exists."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app
from jobs.cluster.job_package import SUBMITTED
from jobs.commands import COMMANDS, read_settings, split_retry
from maskfleet import __all__ as public_names
from tests.docs.pages import PAGES, Block, blocks_of
from tests.paths import ROOT

# Settings that a line with '...' in it leaves to the reader.
LEFT_OUT = {
    "train": ["data.train=x", "output.uri=x", "train.max_steps=1"],
    "segment": ["model.checkpoint=x", "input.uri=x", "output.uri=x"],
}
OUR_PACKAGES = ("maskfleet", "jobs", "pipeline", "model")
COMMAND_BLOCKS = [block for page in PAGES for block in blocks_of(page) if block.kind == "commands"]
PIP_OPTIONS = argparse.ArgumentParser()
PIP_OPTIONS.add_argument("command", choices=["install"])
PIP_OPTIONS.add_argument("--no-deps", action="store_true")
PIP_OPTIONS.add_argument("-r", dest="requirement", required=True)
PIP_OPTIONS.add_argument("package")
GROUP: Any = typer.main.get_command(app)


def check_maskfleet(words: list[str]) -> None:
    """Reads a command line as the program would: options, configuration file and every setting. Starts nothing."""
    name, *rest = words
    if name == "jobs":
        GROUP.commands["jobs"].commands[rest[0]].make_context("jobs", rest[1:])
        return
    if name == "submit":
        context = GROUP.commands["submit"].make_context("submit", list(rest))
        assert context.params["command"] in SUBMITTED
        check_maskfleet([context.params["command"], *context.args])
        return
    if "..." in rest:
        rest = [word for word in rest if word != "..."]
        rest = [*rest, *(word for word in LEFT_OUT[name] if word.split("=")[0] not in " ".join(rest))]
    options = dict(GROUP.commands[name].make_context(name, list(rest)).params)
    settings, file = options.pop("words") or [], options.pop("config", None)
    if name == "retry":
        split_retry(settings)
        return
    read_settings(name, file, settings)


def check_line(line: str) -> None:
    """Checks one command line of a page."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    program, rest = words[0], words[1:]
    if program == "maskfleet":
        check_maskfleet(rest)
    elif program.endswith("/pip"):
        parsed = PIP_OPTIONS.parse_args(rest)
        assert (ROOT / parsed.requirement).is_file() and (ROOT / parsed.package / "pyproject.toml").is_file()
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert rest[0] in targets
    elif program == "python" and rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / name).exists() for name in rest[2:])
    elif program == "python" and rest[0] == "-m":
        module = ROOT / rest[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
    elif program == "ray":
        check_ray(rest)
    elif program in ("python3", "kubectl", "docker", "export", "source", "ssh"):
        for name in re.findall(r"configs/\S+", line):
            assert (ROOT / name).is_file()
        assert program != "docker" or (ROOT / "Dockerfile").is_file()
    else:
        raise AssertionError(f"{program!r} is no program these pages may ask for")


def check_ray(words: list[str]) -> None:
    """Reads a line of Ray's own program."""
    assert importlib.util.find_spec("ray") is not None
    from ray.scripts.scripts import cli

    cli.commands[words[0]].make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("block", COMMAND_BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_every_command_is_understood(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in block.commands:
        try:
            check_line(line)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block.page}:{block.line}: {line}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES)
def test_every_command_named_in_the_text_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"`maskfleet ([a-z][a-z-]*)", text) + re.findall(r"`make ([a-z][a-z0-9-]*)", text)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert [name for name in named if name not in (*GROUP.commands, *targets)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_file_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target
    for name in re.findall(r"`((?:tests|configs|maskfleet|jobs|pipeline|model|benchmarks|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_name_in_the_text_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in re.findall(r"`((?:jobs|pipeline|benchmarks)(?:\.\w+)+)[`(]", text):
        pkgutil.resolve_name(name)
    for name in re.findall(r"`python -m ([\w.]+)", text):
        assert importlib.util.find_spec(name) is not None, name


@pytest.mark.parametrize("page", PAGES)
def test_programs_import_names_that_exist_and_public_ones_from_the_public_package(page: str) -> None:
    for block in (block for block in blocks_of(page) if block.kind == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in OUR_PACKAGES:
                for alias in node.names:
                    pkgutil.resolve_name(f"{node.module}:{alias.name}")
                    assert node.module == "maskfleet" or alias.name not in public_names, alias.name


def test_every_block_of_settings_is_a_configuration() -> None:
    import yaml

    places = {"sweep": ["output.uri=x"], "model": ["data.train=x", "output.uri=x", "train.max_steps=1"]}
    for block in (block for page in PAGES for block in blocks_of(page) if block.kind == "yaml"):
        values = yaml.safe_load(block.text)
        kind = "sweep" if "sweep" in values else "train"
        from jobs.config.load import load_config

        words = places["sweep" if kind == "sweep" else "model"]
        load_config(COMMANDS[kind].config, None, words, base=values)


def test_the_checker_sees_what_is_wrong() -> None:
    for line in (
        "maskfleet segmnt x",
        "maskfleet segment input.uri=a output.uri=b",
        "maskfleet evaluate RUN ground_truth.uri=x --no-such-option",
        "maskfleet submit demo",
        "make nothing",
        "ray start --no-such-option",
        "rm -rf x",
    ):
        with pytest.raises((Exception, SystemExit)):
            check_line(line)


def test_the_page_parser_finds_both_kinds_of_block() -> None:
    kinds = [block.kind for block in blocks_of("docs/tutorial.md")]
    assert kinds.count("python") == 2 and kinds.count("commands") == 6
    assert Path(ROOT / "docs/tutorial.md").exists()
