"""Drift without labels: how far class shares, scores, sizes and numbers of instances moved from a reference run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MODERATE_PSI, LARGE_PSI = 0.1, 0.25  # customary thresholds of the population stability index
_FLOOR = 1e-4  # the share that an empty bin is given, so that the index stays finite
_NUM_BINS = 10
_MIN_INSTANCES = 30  # of fewer the verdict is "few"


def drift(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    *,
    num_reference_images: int,
    num_current_images: int,
    min_score: float = 0.05,
) -> pd.DataFrame:
    """How far the distributions of a run's instances differ from those of a reference run.

    Args:
        reference, current: instances tables (`category`, `score`, `area_px`, `image_height`, `image_width`).
        num_reference_images, num_current_images: number of images segmented (status ok) by each, so that images
            without an instance count too.
        min_score: instances below it are left out of both.

    Returns:
        One row for each `what` (`category share`, `instances per image`, `score`, `area share` of the image) and each
        `category` (None over all), largest drift first:
        `reference` and `current` (share, rate or mean);
        `psi` (population stability index over the reference's deciles, or of the shares; NaN for a rate);
        `ks` (largest distance of the two cumulative distributions; NaN for shares and rates);
        `verdict` (stable, moderate, large, few), after subtracting what chance gives for samples of this size.

    Raises:
        ValueError: a run without images.
    """
    import pandas as pd

    if num_reference_images < 1 or num_current_images < 1:
        raise ValueError(f"drift needs images in both runs, not {num_reference_images} and {num_current_images}")
    old, new = (frame[frame["score"] >= min_score] for frame in (reference, current))
    names = sorted(set(old["category"]) | set(new["category"]))
    rows: list[tuple[str, str | None, float, float, float, float, str]] = []
    counts = {name: (int((old["category"] == name).sum()), int((new["category"] == name).sum())) for name in names}
    shares = {n: (a / max(len(old), 1), b / max(len(new), 1)) for n, (a, b) in counts.items()}
    nan = float("nan")
    terms = {name: _psi(np.array([a, 1 - a]), np.array([b, 1 - b])) for name, (a, b) in shares.items()}
    overall = _psi(np.array([a for a, _ in shares.values()]), np.array([b for _, b in shares.values()]))
    overall_excess = overall - _chance(len(names), len(old), len(new))
    verdict = _verdict(overall_excess, min(len(old), len(new)) < _MIN_INSTANCES)
    rows.append(("category share", None, 1.0, 1.0, overall, nan, verdict))
    for name in (None, *names):
        a, b = (len(old), len(new)) if name is None else counts[name]
        # The larger count decides: a class that vanished or appeared is drift, although it is rare in one of the runs.
        is_rare = max(a, b) < _MIN_INSTANCES
        if name is not None:
            verdict = _verdict(terms[name] - _chance(2, len(old), len(new)), is_rare)
            rows.append(("category share", name, *shares[name], terms[name], nan, verdict))
        rate_a, rate_b = a / num_reference_images, b / num_current_images
        change = abs(np.log(max(rate_b, 1e-9) / max(rate_a, 1e-9))) if max(a, b) else 0.0
        change -= 2 * np.sqrt(1 / max(a, 1) + 1 / max(b, 1))  # twice the standard error of the logarithm
        verdict = "few" if is_rare else _grade(float(change), 0.2, 0.5)
        rows.append(("instances per image", name, rate_a, rate_b, nan, nan, verdict))
        old_rows, new_rows = (frame if name is None else frame[frame["category"] == name] for frame in (old, new))
        for quantity, values_a, values_b in (
            ("score", old_rows["score"], new_rows["score"]),
            ("area share", _area_share(old_rows), _area_share(new_rows)),
        ):
            x, y = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
            psi, ks = (_psi_of_values(x, y), _ks(x, y)) if len(x) and len(y) else (nan, nan)
            means = (float(x.mean()) if len(x) else nan, float(y.mean()) if len(y) else nan)
            verdict = _verdict(psi - _chance(_NUM_BINS, a, b), min(a, b) < _MIN_INSTANCES)
            rows.append((quantity, name, *means, psi, ks, verdict))
    frame = pd.DataFrame(rows, columns=["what", "category", "reference", "current", "psi", "ks", "verdict"])
    rank = frame["verdict"].map({"large": 0, "moderate": 1, "stable": 2, "few": 3})
    order = np.lexsort((-frame["psi"].fillna(0).to_numpy(), rank.to_numpy()))
    return frame.iloc[order].reset_index(drop=True)


def _area_share(frame: pd.DataFrame) -> pd.Series:
    """Each instance's share of its image's area, 0..1."""
    return frame["area_px"] / (frame["image_height"].astype("int64") * frame["image_width"])


def _psi(a: np.ndarray, b: np.ndarray) -> float:
    """Population stability index of two sets of shares over the same bins."""
    a, b = np.maximum(a, _FLOOR), np.maximum(b, _FLOOR)
    return float(np.sum((b - a) * np.log(b / a)))


def _psi_of_values(a: np.ndarray, b: np.ndarray) -> float:
    """Population stability index of two samples over the deciles of the first."""
    edges = np.unique(np.quantile(a, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
    shares = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) / len(x) for x in (a, b)]
    return _psi(*shares)


def _chance(num_bins: int, a: int, b: int) -> float:
    """The index that two samples (of sizes `a` and `b`) of one distribution seldom exceed.

    The index is distributed as chi-squared times (1/a + 1/b). This is its mean plus two standard deviations (Yurdakul
    2018).
    """
    degrees_of_freedom = max(num_bins - 1, 0)
    return (degrees_of_freedom + 2 * np.sqrt(2 * degrees_of_freedom)) * (1 / max(a, 1) + 1 / max(b, 1))


def _ks(a: np.ndarray, b: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance, 0..1."""
    a, b = np.sort(a), np.sort(b)
    points = np.concatenate([a, b])
    below_a, below_b = (np.searchsorted(x, points, side="right") / len(x) for x in (a, b))
    return float(np.abs(below_a - below_b).max())


def _grade(value: float, moderate: float, large: float) -> str:
    return "large" if value > large else "moderate" if value > moderate else "stable"


def _verdict(psi: float, is_rare: bool) -> str:
    """The verdict on an index from which chance is already subtracted."""
    return "few" if is_rare or psi != psi else _grade(psi, MODERATE_PSI, LARGE_PSI)
