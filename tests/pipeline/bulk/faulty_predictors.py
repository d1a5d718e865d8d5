"""Predictors that fail as real ones do, for the tests of the bulk run; an image is told by its first pixel."""

from __future__ import annotations

import os
import signal

import numpy as np

from model.inference.predictor import NonFiniteOutput
from pipeline import malloc
from pipeline.bulk.predict import ImagePredictor

DEADLY = (255, 0, 0)
NOT_FINITE = (0, 255, 0)


def is_marked(image: np.ndarray, mark: tuple[int, int, int]) -> bool:
    return tuple(image[0, 0]) == mark


class DeadlyPredictor(ImagePredictor):
    """Dies with its whole process on a DEADLY image, as a driver fault or the kernel's memory killer would have it."""

    def predict(self, images, sizes=None):
        if any(is_marked(image, DEADLY) for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(images, sizes)


class DemandingPredictor(ImagePredictor):
    """Does not start in a process whose malloc was not told what an actor asks of it."""

    def __init__(self, *args, **settings):
        told = {name: os.environ.get(name) for name in malloc.ENVIRONMENT}
        assert told == malloc.ENVIRONMENT, told
        super().__init__(*args, **settings)


class NotFinitePredictor(ImagePredictor):
    """Finds no finite number on a NOT_FINITE image and whatever shares its batch."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        predict = self.predictor.predict

        def predict_finite(images, sizes, paste):
            if any(is_marked(image, NOT_FINITE) for image in images):
                raise NonFiniteOutput("the scores are not finite")
            return predict(images, sizes, paste)

        self.predictor.predict = predict_finite
