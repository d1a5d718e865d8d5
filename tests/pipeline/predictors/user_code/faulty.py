"""A predictor of a user's that finds the left half of an image, and fails where the image's first pixel says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faulty_marks import FAULTS, left_half

from maskfleet import Category, Instances, RunFault

NOISE = threading.Lock()


class Faulty:
    """Finds the left half of each image as instance of the category 5.

    Args:
        form: of the masks: 'masks', 'mask_probs', 'rles'; or 'tensors', which are masks on torch's side.
    """

    categories = (Category(3, "cat"), Category(5, "dog"))

    def __init__(self, form: str = "masks") -> None:
        if form not in ("masks", "mask_probs", "rles", "tensors"):
            raise ValueError(f"form is {form!r}; allowed are masks, mask_probs, rles, tensors")
        self.form, self.device, self.sizes = form, "", list[int]()

    def load(self, device: str) -> None:
        print("loading: a predictor may print")
        self.device = device
        threading.Thread(target=NOISE.acquire, daemon=True).start()

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        assert self.device == "cpu", "load was called"
        print("predicting")
        self.sizes.append(len(images))
        answers = [self.answer(image) for image in images]
        for image in images:
            image[:] = 0  # they are ours
        return [answer for answer in answers if answer is not None]

    def answer(self, image: np.ndarray) -> Any:
        height, width = image.shape[:2]
        red, index, blue = (int(value) for value in image[0, 0])
        fault = FAULTS[index] if (red, blue) == (255, 7) and index < len(FAULTS) else ""
        if fault == "raises":
            raise KeyError("no such thing")
        if fault == "exits":
            sys.exit("bye")
        if fault == "no memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fault == "hangs":
            time.sleep(3600)
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "the run's":
            raise RunFault("the service does not answer")
        if fault == "another type":
            return {"scores": [1.0]}
        if fault == "one too few":
            return None
        scores = [float("nan") if fault == "nan" else 0.9, 0.01]
        labels = [3 if fault == "label" else 2, 1]
        box = [0.0, 0.0, width / 2, float(height)]
        mask = left_half(height + (fault == "mask size"), width)
        if self.form == "mask_probs":
            return Instances(
                scores=scores, labels=labels, boxes=np.array([box, box]), mask_probs=np.ones((2, 8, 8), np.float64)
            )
        if self.form == "rles":
            runs = {"size": [height, width], "counts": [0, height * (width // 2), height * (width - width // 2)]}
            return Instances(scores=scores, labels=labels, rles=[runs, runs])
        if self.form == "tensors":
            return Instances(
                scores=torch.tensor(scores, dtype=torch.bfloat16, requires_grad=True),
                labels=torch.tensor(labels),
                boxes=torch.tensor([box, box]),
                masks=torch.from_numpy(np.array([mask, mask])),
            )
        return Instances(scores=scores, labels=labels, masks=[mask, mask])
