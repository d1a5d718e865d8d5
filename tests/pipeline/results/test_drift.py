"""Drift between two runs without labels: silent on samples of one distribution, reported where they differ."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.results.drift import drift


def sample(num: int, seed: int, shares: dict[str, float], **changes: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = rng.choice(list(shares), num, p=list(shares.values()))
    score = np.clip(rng.beta(4, 2, num) * changes.get("score", 1.0), 0.05, 1)
    area = rng.lognormal(6, 1, num) * changes.get("area", 1.0)
    return pd.DataFrame(
        {"category": names, "score": score, "area_px": area.astype(int), "image_height": 480, "image_width": 640}
    )


def verdict(frame: pd.DataFrame, what: str, category: str | None = None) -> str:
    same = frame["category"].isna() if category is None else frame["category"] == category
    return frame.loc[same & (frame["what"] == what), "verdict"].item()


def test_samples_of_one_distribution_are_stable_and_other_distributions_are_not():
    shares = {"cat": 0.5, "dog": 0.4, "cow": 0.1}
    sizes = {"num_reference_images": 500, "num_current_images": 250}
    same = drift(sample(4000, 1, shares), sample(2000, 2, shares), **sizes)
    assert set(same["verdict"]) == {"stable"}
    moved = drift(sample(4000, 1, shares), sample(2000, 2, shares, score=0.6), **sizes)
    assert verdict(moved, "score") == "large"
    assert verdict(moved, "area share") == "stable"
    lost = drift(sample(4000, 1, shares), sample(2000, 2, {"cat": 0.5, "dog": 0.5}), **sizes)
    cow = lost[(lost["category"] == "cow") & (lost["what"] == "category share")].iloc[0]
    assert cow["verdict"] == "large" and cow["current"] == 0
    half = drift(sample(4000, 1, shares), sample(1000, 2, shares), **sizes)
    assert verdict(half, "instances per image") == "large"


def test_drift_without_instances_says_few_and_without_images_refuses():
    frame = sample(10, 1, {"cat": 1.0})
    got = drift(frame, frame.iloc[:0], num_reference_images=5, num_current_images=5)
    assert set(got["verdict"]) == {"few"}
    many = sample(1000, 1, {"cat": 0.7, "dog": 0.3})
    got = drift(many, many.iloc[:0], num_reference_images=5, num_current_images=5)
    assert verdict(got, "category share", "cat") == "few" and verdict(got, "instances per image", "cat") == "large"
    with pytest.raises(ValueError, match="images in both runs, not 5 and 0"):
        drift(frame, frame, num_reference_images=5, num_current_images=0)
