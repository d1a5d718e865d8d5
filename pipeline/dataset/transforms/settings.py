"""Settings of the random augmentation of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.settings import Settings, setting

Resize = Literal["none", "fixed", "short_side", "large_scale_jitter"]
RESIZES: tuple[Resize, ...] = get_args(Resize)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Settings):
    """Random augmentation of training images: colour, flips, rotation, resizing, in this order.

    Each is drawn from (seed, epoch, image), so a resumed training repeats them.
    """

    horizontal_flip: float = setting(0.5, "Probability of a left-right flip.", ge=0, le=1)
    vertical_flip: float = setting(0.0, "Probability of a top-bottom flip.", ge=0, le=1)
    brightness: float = setting(0.0, "Brightness is multiplied by a factor from 1 - value to 1 + value.", ge=0, le=1)
    contrast: float = setting(0.0, "Contrast is multiplied by a factor from 1 - value to 1 + value.", ge=0, le=1)
    saturation: float = setting(0.0, "Saturation is multiplied by a factor from 1 - value to 1 + value.", ge=0, le=1)
    hue: float = setting(0.0, "Largest shift of the hue either way, as a fraction of the colour circle.", ge=0, le=0.5)
    rotation: float = setting(0.0, "Probability of a rotation.", ge=0, le=1)
    rotation_degrees: float = setting(0.0, "Largest rotation either way, in degrees.", ge=0, le=180)
    rotation_expand: bool = setting(False, "Grow the canvas to hold the rotated image; false cuts its corners off.")
    resize: Resize = setting("none", "Resizing before the network's own (model.spec.image_min_size).")
    resize_size: tuple[int, int] = setting((512, 512), "Height, width in pixels of 'fixed' and 'large_scale_jitter'.")
    resize_keep_aspect: bool = setting(False, "Keep the aspect ratio and pad to the size of 'fixed'; false stretches.")
    short_sides: tuple[int, ...] = setting(
        (800,), "Lengths of the short side in pixels that 'short_side' draws from.", min_length=1
    )
    max_size: int = setting(1333, "Longest side after 'short_side', in pixels.", ge=1)
    jitter_scales: tuple[float, float] = setting((0.1, 2.0), "Smallest and largest scale of 'large_scale_jitter'.")
