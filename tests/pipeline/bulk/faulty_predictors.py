"""Predictors that fail as real ones do, for the tests of the bulk run; an image's first pixel says which one fails."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import numpy as np
import psutil

from model.heads.rpn import NonFiniteOutput
from model.inference import openvino_engine
from model.inference.predictor import Detections
from model.inference.prefetch import Image
from pipeline import malloc
from pipeline.bulk.predict import ImagePredictor, Prediction

DEADLY = (255, 0, 0)
NOT_FINITE = (0, 255, 0)


def is_marked(image: Image, mark: tuple[int, int, int]) -> bool:
    return tuple(image[0, 0]) == mark


class DeadlyPredictor(ImagePredictor):
    """Kills its whole process on a DEADLY image, as a GPU driver's fault or the kernel's out-of-memory killer does."""

    def predict(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        if any(is_marked(image, DEADLY) for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(images, sizes)


class DyingPredictor(ImagePredictor):
    """Ends its whole process before it is ready."""

    def __init__(self, *args, **settings):
        os._exit(1)


class UnreadablePredictor(ImagePredictor):
    """Raises before it is ready, as where a checkpoint cannot be read."""

    def __init__(self, *args, **settings):
        raise OSError("the weights cannot be read")


class NoOpenVinoPredictor(ImagePredictor):
    """On a machine that has no OpenVINO, unlike the driver's."""

    def __init__(self, *args, **settings):
        openvino_engine.is_installed = lambda: False
        super().__init__(*args, **settings)


class ChildlessPredictor(ImagePredictor):
    """Breaks the program that its worker starts decoding processes with, and ends those that run."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        sys.executable = "/bin/false"
        for child in psutil.Process().children():
            child.kill()


class DemandingPredictor(ImagePredictor):
    """Does not start in a process without the malloc settings of an actor."""

    def __init__(self, *args, **settings):
        environment = {name: os.environ.get(name) for name in malloc.ENVIRONMENT}
        assert environment == malloc.ENVIRONMENT, environment
        super().__init__(*args, **settings)


class NotFinitePredictor(ImagePredictor):
    """Gives numbers that are not finite for a NOT_FINITE image and every image that shares its batch."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        predict = self.predictor.predict

        def predict_finite(
            images: Sequence[Image], sizes: Sequence[tuple[int, int]] | None = None, runs_at: float | None = None
        ) -> list[Detections]:
            if any(is_marked(image, NOT_FINITE) for image in images):
                raise NonFiniteOutput("the scores are not finite")
            return predict(images, sizes, runs_at)

        self.predictor.predict = predict_finite  # type: ignore[method-assign]  # of this instance alone
