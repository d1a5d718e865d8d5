"""Output format of a benchmark: a last line of JSON with its figures, which `python -m benchmarks` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping


def print_figures(figures: Mapping[str, float]) -> None:
    """Prints one line of JSON, with each figure rounded to four significant digits."""
    print(json.dumps({"figures": {name: float(f"{value:.4g}") for name, value in figures.items()}}), flush=True)
