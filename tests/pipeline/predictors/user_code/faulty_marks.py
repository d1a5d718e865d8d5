"""Images on which `faulty:Faulty` fails, and the mask that it finds in all others; a second module of its folder."""

from __future__ import annotations

import numpy as np

# The first pixel of an image that fails is (255, index of the fault, 7).
FAULTS = (
    "raises",
    "exits",
    "no memory",
    "another type",
    "one too few",
    "nan",
    "label",
    "mask size",
    "hangs",
    "dies",
    "the run's",
)


def mark_of(fault: str) -> tuple[int, int, int]:
    """The first pixel of an image on which the predictor fails in this way."""
    return 255, FAULTS.index(fault), 7


def left_half(height: int, width: int) -> np.ndarray:
    """The mask of an image's left half: bool [height, width]."""
    mask = np.zeros((height, width), bool)
    mask[:, : width // 2] = True
    return mask
