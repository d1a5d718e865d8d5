"""The README's annotated tree, from the modules' own first lines; `python tests/policy/readme_tree.py` renews it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.paths import ROOT

MARK = "<!-- tree -->\n"
FOLDERS = {
    "model": "torch only: a spec becomes a network, its losses, its checkpoint, its predictions",
    "pipeline": "images in, tables out; the ground floor: schema, storage, manifest, rle, boxes, pixels",
    "jobs": "the programs: the only place with configuration files, Ray's start, prints and exit codes",
}
PLACES = {
    "configs/": "plain YAML values; each file says its purpose, hardware, expectation and command",
    "benchmarks/": "ratios against what a user would run instead",
    "docs/": "schema, formats, decisions",
    "tests/": "mirrors the source; tests/policy holds the rules of the house",
}
WIDTH = 30


def make_tree() -> str:
    """The tree as text: every module of the three layers with the first clause of its docstring."""
    lines: list[str] = []
    for layer, about in FOLDERS.items():
        lines.append(_line(f"{layer}/", about))
        _add_folder(ROOT / layer, 1, lines)
    lines += [_line(name, about) for name, about in PLACES.items()]
    return "\n".join(lines) + "\n"


def readme_with(tree: str, readme: str) -> str:
    """The README's text with its tree replaced."""
    before, rest = readme.split(MARK, 1)
    _, _, after = rest.split("```", 2)
    return f"{before}{MARK}```\n{tree}```{after}"


def _add_folder(folder: Path, depth: int, lines: list[str]) -> None:
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            lines.append(_line("  " * depth + path.name, _about(path)))
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").is_file():
            lines.append(_line("  " * depth + path.name + "/", _about(path / "__init__.py")))
            _add_folder(path, depth + 1, lines)


def _about(path: Path) -> str:
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    text = " ".join(text.split())
    for end in (". ", ": ", "; "):
        text = text.split(end)[0]
    return text.rstrip(".:")


def _line(name: str, about: str) -> str:
    return f"{name:<{WIDTH}} {about}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(readme_with(make_tree(), readme.read_text()))
