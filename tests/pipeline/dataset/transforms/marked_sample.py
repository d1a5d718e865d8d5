"""A test sample whose pixel values show where its masks and keypoints must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.dataset.sample import SampleDict, to_sample_dict
from pipeline.dataset.types import AnnotatedImage, mask_to_instance
from pipeline.storage.files import Location

KEYPOINT_NAMES = ("nose", "left_hand", "right_hand")


def marked_sample(height: int = 40, width: int = 60, *, in_channels: int = 3) -> SampleDict:
    """Black, with a white object in two parts, a grey object at the right border, and a crowd region over the grey one.

    The mask of the white object is where the photo is white, and each of its keypoints is on a white pixel.
    """
    white = np.zeros((height, width), dtype=np.uint8)
    white[8:20, 6:16] = white[24:30, 6:30] = 1
    grey = np.zeros_like(white)
    grey[10:34, 44:width] = 1
    pixels = np.zeros((height, width, in_channels), dtype=np.uint8)
    pixels[white != 0], pixels[grey != 0] = 255, 128
    first, second = mask_to_instance(1, white), mask_to_instance(2, grey)
    first = replace(first, keypoints=(6.0, 8.0, 2.0, 7.0, 27.0, 2.0, 29.0, 27.0, 1.0))
    crowd = replace(mask_to_instance(1, grey), iscrowd=True)
    image = AnnotatedImage(1, "x", Location("x"), height, width, (first, second, crowd))
    return to_sample_dict(image, pixels, KEYPOINT_NAMES)
