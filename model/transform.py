"""Image transform: normalises and resizes images and their targets, and pads the batch to a multiple of 32 px."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model.spec import ModelSpec
from model.vision import GeneralizedRCNNTransform, ImageList, resize_boxes, resize_keypoints

PADDING_MULTIPLE = 32


def resized_size(height: int, width: int, *, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) after resizing: the short side is `min_size`, unless the long one would exceed `max_size`.

    The same whole numbers as torchvision's, but at least one pixel each way: a strip of 1 x 5000 px stays an image.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(float(height) * scale)), max(1, math.floor(float(width) * scale))


def padded_size(height: int, width: int, *, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) of the padded tensor of an image of this size that is alone in its batch."""
    resized = resized_size(height, width, min_size=min_size, max_size=max_size)
    height, width = (math.ceil(side / PADDING_MULTIPLE) * PADDING_MULTIPLE for side in resized)
    return height, width


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's transform (bilinear image, nearest masks), safe for extreme shapes and images without objects.

    Boxes, ignored regions, keypoints and masks of the targets are resized with their image.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(
            spec.image_min_size,
            spec.image_max_size,
            list(spec.image_mean),
            list(spec.image_std),
            size_divisible=PADDING_MULTIPLE,
        )
        self.is_bgr = spec.channel_order == "bgr"
        # False where training samples have been resized already (multi-scale training).
        self.resizes_in_training = True

    def for_prediction(self, images: Iterable[Tensor], sizes: Sequence[tuple[int, int]]) -> ImageList:
        """The network's padded input batch of images [C, H, W] in 0..1, and the (height, width) of each resized image.

        Images are normalised first and then resized, as in torchvision. The other order is less work, but a rounding
        error of a pixel grows to more than 1e-4 px of a box.

        Args:
            images: From a generator, so that one is in memory at a time, or a sequence.
            sizes: (height, width) of the original images, from which the resized size follows.
        """
        resized = [_interpolate(self.normalize(image), self._resized_size(*size)) for image, size in zip(images, sizes)]
        tensors = self.batch_images(resized, size_divisible=self.size_divisible)
        return ImageList(tensors, [tuple(image.shape[-2:]) for image in resized])

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        return resized_size(height, width, min_size=self.min_size[-1], max_size=self.max_size)

    def normalize(self, image: Tensor) -> Tensor:
        """An image [C, H, W] in 0..1 minus the mean, over the deviation, in the channel order of the weights."""
        if self.is_bgr:
            image = torch.cat([image[:3].flip(0), image[3:]])
        return super().normalize(image)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image [C, H, W] and its target (boxes, ignored regions, keypoints, masks) at the network's input size."""
        if self.training and not self.resizes_in_training:
            return image, target
        old = tuple(image.shape[-2:])
        new = self._resized_size(*old)
        image = _interpolate(image, new)
        if target is None:
            return image, None
        target = dict(target)
        for name in ("boxes", "ignore_boxes"):
            if name in target:
                target[name] = resize_boxes(target[name], old, new)
        if "keypoints" in target:
            target["keypoints"] = resize_keypoints(target["keypoints"], old, new)
        if "masks" in target:
            target["masks"] = _resize_masks(target["masks"], new)
        return image, target


def _interpolate(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [C, H, W] to (height, width)."""
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of uint8 [N, H, W]; N = 0 gives [0, height, width]."""
    if len(masks) == 0:
        return masks.new_zeros((0, *size), dtype=torch.uint8)
    return torch.nn.functional.interpolate(masks[:, None].float(), size=size)[:, 0].byte()
