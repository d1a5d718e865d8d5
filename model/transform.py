"""Image transform: normalises and resizes images and their targets, and pads the batch to a multiple of 32 px."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import count, groupby
from typing import Any

import torch
from torch import Tensor

from model.spec import ModelSpec
from model.transfers import to_device
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
        error of a pixel grows to more than 1e-4 px of a box. On a GPU, neighbours of one size are computed together.

        Args:
            images: uint8, or float in 0..1, all on one device. On a CPU one at a time is made float.
            sizes: (height, width) of the original images, from which the resized size follows.
        """
        resized: list[Tensor] = []
        for _, group in groupby(zip(images, sizes, count()), key=_together):
            planes, group_sizes, _ = zip(*group)
            batch = planes[0] if len(planes) == 1 else torch.stack(planes)
            batch = self.normalize(batch.float().div_(255) if batch.dtype == torch.uint8 else batch)
            # One image gets its fourth axis last: torch takes another kernel where a batch is channels last.
            batch = batch[None] if batch.ndim == 3 else batch
            resized.extend(_interpolate(batch, self._resized_size(*group_sizes[0])))
        tensors = self.batch_images(resized, size_divisible=self.size_divisible)
        return ImageList(tensors, [tuple(image.shape[-2:]) for image in resized])

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        return resized_size(height, width, min_size=self.min_size[-1], max_size=self.max_size)

    def normalize(self, image: Tensor) -> Tensor:
        """Images [..., C, H, W] in 0..1 minus the mean, over the deviation, in the channel order of the weights.

        Raises:
            TypeError: The image is not of a floating-point type.
        """
        if not image.is_floating_point():
            raise TypeError(f"images must be floating-point numbers in 0..1, not {image.dtype}")
        if self.is_bgr:
            image = torch.cat([image[..., :3, :, :].flip(-3), image[..., 3:, :, :]], dim=-3)
        mean, deviation = (
            to_device(values, image.device, image.dtype)[:, None, None] for values in (self.image_mean, self.image_std)
        )
        return (image - mean) / deviation

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """An image [C, H, W] and its target (boxes, ignored regions, keypoints, masks) at the network's input size."""
        if self.training and not self.resizes_in_training:
            return image, target
        old = tuple(image.shape[-2:])
        new = self._resized_size(*old)
        image = _interpolate(image[None], new)[0]
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


def _together(entry: tuple[Tensor, tuple[int, int], int]) -> Any:
    """A key that neighbours (image, original size, number) share where they are computed together."""
    image, size, number = entry
    return (image.shape, image.dtype, size) if image.is_cuda else number


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of [N, C, H, W] to (height, width)."""
    return torch.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of uint8 [N, H, W]; N = 0 gives [0, height, width]."""
    if len(masks) == 0:
        return masks.new_zeros((0, *size), dtype=torch.uint8)
    return torch.nn.functional.interpolate(masks[:, None].float(), size=size)[:, 0].byte()
