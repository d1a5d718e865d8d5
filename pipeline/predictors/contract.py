"""Contract of a predictor of the user's own: `Segmenter`, what it is asked, and `Instances`, what it answers.

docs/predictors.md has an example. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.run_spec import RunCategory


@dataclass(frozen=True, kw_only=True)
class Instances:
    """N instances of one image, in any order, with masks in one of three forms. N may be 0.

    Each field is an array of NumPy's, a tensor of torch's on any device, or a list. At N = 0 shapes do not matter:
    `Instances(scores=[], labels=[], rles=[])` is an image without instances. Whoever breaks what stands here gets a
    row with the status predict_failed, which says what was wrong.

    Attributes:
        scores: real numbers [N], 0..1.
        labels: whole numbers [N], 1..K: label k is `Segmenter.categories[k - 1]`.
        boxes: real numbers [N, 4], XYXY, half-open, in pixels of the image as it was given: x1 <= x2, y1 <= y2. They
            may reach beyond the image, which cuts them, and may not lie outside of it. None takes the tight boxes of
            the masks, of an empty mask 0, 0, 0, 0; not with `mask_probs`.
        mask_probs: real numbers [N, M, M], 0..1: each mask over its box, as mask heads give it. It is resized to the
            box and cut at `segment.mask_threshold` as Mask R-CNN's own are.
        masks: bool (or uint8, where all but 0 is inside) [N, height, width], of the whole image.
        rles: N masks of the whole image in COCO's run-length encoding, column-major: each a dict of `size` [height,
            width] and `counts` (compressed, or a list of run lengths), as pycocotools gives it, or its compressed
            `counts` alone.
    """

    scores: Any
    labels: Any
    boxes: Any = None
    mask_probs: Any = None
    masks: Any = None
    rles: Sequence[Any] | None = None


class Segmenter(Protocol):
    """What `segment.predictor: package.module:Class` names: a class whose objects predict batches of images.

    The class is called with `segment.predictor_settings` as keyword arguments, once where the command is given, before
    anything starts, and once in each worker. It checks its settings and raises (best a ValueError that names the
    setting) where they are wrong; what takes time or memory waits for `load`. Besides these, it may have

    - `load(device)`, called once in each worker, before the first image: reads weights. `device` is "cuda" where
      `segment.gpus_per_worker` is above 0, else "cpu".
    - `identity()`, called after the settings are checked: a text that stands for all else that results depend on, such
      as the hash of the weights. It becomes part of what the run is, and each worker's must be equal.
    - `in_channels`, the number of channels that it takes; 3 where there is none.

    Attributes:
        categories: the classes, in the order of the labels; ids and names occur once.
    """

    categories: Sequence[RunCategory]

    def predict(self, images: Sequence[np.ndarray]) -> Sequence[Instances]:
        """The instances of each image, in order.

        What it raises costs no other image: a batch is halved until one image fails alone, which then has a row with
        the status predict_failed. That goes for memory that runs out, too. `RunFault` ends the run. All calls of a
        worker come from one thread, one after the other.

        Args:
            images: 1 to `segment.batch_size` images, which may differ in size: uint8 RGB [height, width, 3], upright,
                C-contiguous; float32 0..1 [height, width, C] for `in_channels` other than 3. With `segment.slice`, of
                a large image its slices. They are copies, which may be changed.

        Returns:
            As many as there are images. No image's result may depend on the others of its batch, which are others
            after a kill.
        """
        ...


class RunFault(OSError):
    """Raised by a predictor to end the run, which the same command resumes: the fault is none of an image.

    Such as a service that does not answer. The message is for the user.
    """
