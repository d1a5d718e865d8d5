"""The figures of a benchmark as the last line it prints, which `python -m benchmarks` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping


def print_figures(figures: Mapping[str, float]) -> None:
    """Prints one line of JSON, each figure to four significant digits."""
    print(json.dumps({"figures": {name: float(f"{value:.4g}") for name, value in figures.items()}}), flush=True)
