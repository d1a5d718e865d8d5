"""Histograms and line charts as inline SVG for the report; colours come from the page, so they follow its dark mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

WIDTH, HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34
Values = ArrayLike | Sequence[float | None]


def bar_chart(edges: Sequence[float], counts: Sequence[int], *, label: str, ticks: Sequence[tuple[float, str]]) -> str:
    """A histogram as an `<svg>` element.

    Args:
        edges: N + 1 borders of the bins, on the scale that is drawn.
        counts: N counts.
        label: what the bins measure, for the axis and for screen readers.
        ticks: (value on the scale, text) of each tick on the x axis.
    """
    most = max(max(counts, default=0), 1)
    low, high = edges[0], edges[-1]
    parts = _frame(label, ticks, [(0.0, "0"), (1.0, f"{most:,}")], low, high)
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        x0, x1 = _x(start, low, high), _x(end, low, high)
        y = _y(count / most)
        title = f"<title>{count:,}</title>"
        parts.append(
            f'<rect class="bar" x="{x0 + 0.5:.1f}" y="{y:.1f}" width="{max(x1 - x0 - 1, 0.5):.1f}" '
            f'height="{HEIGHT - _BOTTOM - y:.1f}">{title}</rect>'
        )
    return _svg(parts, f"{label}: histogram of {sum(counts):,} values")


def line_chart(
    lines: Mapping[str, tuple[Values, Values]],
    *,
    label: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Several lines as an `<svg>` element with a legend; "" where there is no point to draw.

    Args:
        lines: x and y of each line by its name. Points that are not finite are left out; of a line with more than 1000
            points 1000 are drawn.
        label: of the x axis, and for screen readers.
        y_range: of the y axis; values outside are drawn on its ends. None fits it to the values.
    """
    kept = {}
    for name, (xs, ys) in lines.items():
        x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
        is_finite = np.isfinite(x) & np.isfinite(y)
        if is_finite.any():
            kept[name] = (x[is_finite], y[is_finite])
    if not kept:
        return ""
    all_x = np.concatenate([x for x, _ in kept.values()])
    all_y = np.concatenate([y for _, y in kept.values()])
    low, high = float(all_x.min()), float(all_x.max())
    bottom, top = y_range or (float(min(all_y.min(), 0)), float(all_y.max()))
    high, top = (high if high > low else low + 1), (top if top > bottom else bottom + 1)
    ticks = [(low + (high - low) * i / 4, _number(low + (high - low) * i / 4)) for i in range(5)]
    y_ticks = [(i / 4, _number(bottom + (top - bottom) * i / 4)) for i in range(5)]
    parts = _frame(label, ticks, y_ticks, low, high)
    for number, (x, y) in enumerate(kept.values()):
        if len(x) > 1000:  # no screen shows more
            drawn = np.linspace(0, len(x) - 1, 1000).astype(int)
            x, y = x[drawn], y[drawn]
        points = " ".join(
            f"{_x(a, low, high):.1f},{_y(min(max((b - bottom) / (top - bottom), 0), 1)):.1f}"
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        )
        parts.append(f'<polyline class="line c{number % 6}" points="{points}"/>')
    legend = "".join(f'<span class="key c{number % 6}">{escape(name)}</span>' for number, name in enumerate(kept))
    return _svg(parts, f"{label}: {', '.join(kept)}") + f'<div class="legend">{legend}</div>'


def _frame(
    label: str, ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], low: float, high: float
) -> list[str]:
    """Grid, ticks and labels; `ticks` are at values from `low` to `high`, `y_ticks` at shares 0..1 of the height."""
    parts = []
    for share, text in y_ticks:
        y = _y(share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in ticks:
        x = _x(value, low, high)
        anchor = "end" if x > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 18}" text-anchor="{anchor}">{escape(text)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle" class="axis">{escape(label)}</text>')
    return parts


def _svg(parts: Sequence[str], description: str) -> str:
    start = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
    return start + "".join(parts) + "</svg>"


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * share


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
