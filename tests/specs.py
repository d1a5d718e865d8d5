"""Model specs so small that a test can train the network in seconds."""

from __future__ import annotations

from typing import Any

from model.spec import ModelSpec


def small_spec(
    num_classes: int = 0, *, channels: int = 8, sides: tuple[int, int] = (48, 64), **other: Any
) -> ModelSpec:
    """`ModelSpec.tiny` with fewer channels and smaller images (shortest and longest side, px)."""
    sizes: dict[str, Any] = {"fpn_channels": channels, "box_head_channels": channels}
    sizes |= {"mask_head_channels": (channels,), "mask_deconv_channels": channels}
    return ModelSpec.tiny(num_classes, **sizes, image_min_size=sides[0], image_max_size=sides[1], **other)
