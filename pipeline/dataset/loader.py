"""Annotated photos to training samples, and the order in which workers take them.

Everything random about a sample is a pure function of (seed, epoch, index), and which samples make a step is
one of (seed, step), so that a training that is stopped and resumed sees what an undisturbed one sees.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pipeline.dataset.annotations import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.dataset.augment import SampleDict, Transform
from pipeline.dataset.images import UnusablePhoto, load_photo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        image: float32 [C, H, W] in 0..1.
        target: see `SampleSet`.
        index: place in the set of the photo used.
        image_id: its id.
        skipped: photos that stood at this place and could not be used: image id -> reason.
        exif: images.EXIF_NONE, EXIF_TURNED, or EXIF_KEPT.
    """

    image: Tensor
    target: dict[str, Tensor]
    index: int
    image_id: int | str
    skipped: dict[int | str, str] = field(default_factory=dict)
    exif: int = 0


class SampleSet(Dataset):
    """A data set as torch's map-style dataset of (image, target).

    A key is an index (epoch 0) or a pair (epoch, index). The image is float32 [C, H, W], 0..1. The target is
    torchvision's, all tensors:

    - `boxes` float32 [N, 4]: XYXY, half-open, pixels of the image as given, of positive size
    - `labels` int64 [N]: 1..K; `masks` uint8 [N, H, W], none empty; `area` float32 [N]: pixels of the mask
    - `iscrowd` int64 [N]: always 0, because crowds are in
    - `ignore_boxes` float32 [M, 4]: crowd and ignore regions, and objects without a mask: neither positive
      nor negative
    - `image_id` int64: the data set's id where all ids are integers, else the index
    - `labelled_classes` int64 [L]: only where not all classes were looked for
    - `keypoints` float32 [N, P, 3]: x, y as annotated (pixel index, as in COCO), visibility; only with
      keypoints
    - `exif` int64: 0 no turn, 1 turned by its EXIF tag, 2 the tag was not applied because the annotations fit
      the unturned photo only
    - `skipped` int64 [S]: indices of unusable photos that this sample stands in for

    N = 0 gives a negative: boxes [0, 4], masks [0, H, W]. A photo that cannot be used (absent, broken, of
    another size than annotated) is logged once, and the next usable one takes its place, so that every batch
    is full on every worker.
    """

    def __init__(self, annotated: AnnotatedSet, transforms: Transform | None = None, *, seed: int = 0) -> None:
        """Raises AnnotationError for a set without images."""
        if not len(annotated):
            raise AnnotationError("the data set has no images")
        self.annotated = annotated
        self.transforms = transforms
        self.seed = seed
        self._integer_ids = all(isinstance(image.image_id, int) for image in annotated.images)
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Raises UnusablePhoto when no photo of the whole set can be used."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.load_sample(epoch, index)
        return sample.image, sample.target

    def load_sample(self, epoch: int, index: int) -> Sample:
        """The sample of this epoch and index, or of the next usable photo after it (going round).

        Raises:
            UnusablePhoto: no photo of the whole set can be used; the message has one of the reasons.
        """
        skipped: dict[int | str, str] = {}
        places: list[int] = []
        for step in range(len(self)):
            place = (index + step) % len(self)
            image = self.annotated.images[place]
            try:
                return self._load(epoch, place, skipped, places)
            except UnusablePhoto as error:
                skipped[image.image_id] = str(error)
                places.append(place)
                if place not in self._named:
                    self._named.add(place)
                    logger.warning("skipped %s: %s", image.path, error)
        raise UnusablePhoto(f"none of the {len(self)} photos can be used; {image.path}: {skipped[image.image_id]}")

    def _load(self, epoch: int, index: int, skipped: dict[int | str, str], places: list[int]) -> Sample:
        image = self.annotated.images[index]
        pixels, exif = load_photo(image)
        try:
            sample = to_sample_dict(image, pixels, self.annotated.keypoint_names)
        except ValueError as error:
            raise UnusablePhoto(f"its annotations cannot be used: {error}") from None
        if self.transforms is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sample_seed(self.seed, epoch, index))
                sample = self.transforms(sample)
        target = to_target(sample)
        target["image_id"] = torch.tensor(image.image_id if self._integer_ids else index, dtype=torch.int64)
        target["exif"] = torch.tensor(exif, dtype=torch.int64)
        target["skipped"] = torch.tensor(places, dtype=torch.int64)
        if image.labelled_classes is not None:
            target["labelled_classes"] = torch.tensor(image.labelled_classes, dtype=torch.int64)
        picture = F.to_dtype(sample["image"].as_subclass(Tensor), torch.float32, scale=True)
        return Sample(picture, target, index, image.image_id, skipped, exif)


def to_sample_dict(image: AnnotatedImage, pixels: np.ndarray, keypoint_names: tuple[str, ...] = ()) -> SampleDict:
    """Photo and annotations in the form that transforms take (see `augment`)."""
    size = (image.height, image.width)
    objects, ignored = [], []
    for instance in image.instances:
        x1, y1, x2, y2 = instance.box
        if not (x2 > x1 and y2 > y1):
            continue
        mask = None if instance.iscrowd else instance.mask(*size)
        # An object that is there but has no outline must not be taught as background.
        if mask is None or not mask.any():
            ignored.append(instance.box)
        else:
            objects.append((instance, mask))
    masks = np.stack([mask for _, mask in objects]) if objects else np.zeros((0, *size), dtype=np.uint8)
    boxes = torch.tensor([instance.box for instance, _ in objects], dtype=torch.float32).reshape(-1, 4)
    ignore_boxes = torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4)
    sample: SampleDict = {
        "image": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor([instance.label for instance, _ in objects], dtype=torch.int64),
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        "ignore_boxes": tv_tensors.BoundingBoxes(ignore_boxes, format="XYXY", canvas_size=size),
    }
    if keypoint_names:
        absent = (0.0,) * (3 * len(keypoint_names))
        values = torch.tensor([i.keypoints or absent for i, _ in objects], dtype=torch.float32)
        values = values.reshape(-1, len(keypoint_names), 3)
        sample["keypoints"] = tv_tensors.KeyPoints(values[..., :2] + 0.5, canvas_size=size)
        sample["visibility"] = values[..., 2]
    return sample


def to_target(sample: SampleDict) -> dict[str, Tensor]:
    """The target of a transformed sample: plain tensors; objects that the transforms left without box or mask
    are gone.

    Keypoints that are absent or have left the image are (0, 0, 0).
    """
    height, width = sample["image"].shape[-2:]
    masks = sample["masks"].as_subclass(Tensor)
    boxes = _clipped(sample["boxes"], height, width)
    area = masks.flatten(1).sum(1, dtype=torch.float32) if len(masks) else torch.zeros(0)
    keep = (area > 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    ignore_boxes = _clipped(sample["ignore_boxes"], height, width)
    seen = (ignore_boxes[:, 2] > ignore_boxes[:, 0]) & (ignore_boxes[:, 3] > ignore_boxes[:, 1])
    target = {
        "boxes": boxes[keep],
        "labels": sample["labels"][keep],
        "masks": masks[keep].contiguous(),
        "area": area[keep],
        "iscrowd": torch.zeros(int(keep.sum()), dtype=torch.int64),
        "ignore_boxes": ignore_boxes[seen],
    }
    if "keypoints" in sample:
        points, visibility = sample["keypoints"].as_subclass(Tensor)[keep], sample["visibility"][keep]
        x, y = points.unbind(-1)
        there = (visibility > 0) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
        triples = torch.cat([points - 0.5, visibility[..., None]], dim=-1)
        target["keypoints"] = torch.where(there[..., None], triples, 0.0)
    return target


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    boxes = boxes.as_subclass(Tensor).float()
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    return torch.minimum(boxes.clamp(min=0), limits)


def collate(
    samples: list[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Samples to the two lists that the network takes; images keep their own sizes."""
    return [image for image, _ in samples], [target for _, target in samples]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of everything random about one sample: a 64-bit hash, so that neighbours have nothing in
    common.
    """
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0])


def sample_at(position: int, *, num_samples: int, seed: int) -> tuple[int, int]:
    """(epoch, index) at a place of the endless stream of samples: each epoch is a new permutation of all of
    them.
    """
    epoch, place = divmod(position, num_samples)
    return epoch, int(_permutation(num_samples, seed, epoch)[place])


@functools.lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


class ShardedSampler(Sampler):
    """Batches of one worker, without end: a batch sampler for torch's DataLoader that gives lists of (epoch,
    index).

    Step `s` is made of the samples at `s * batch_size .. (s + 1) * batch_size - 1` of the stream of
    `sample_at`, dealt to the workers in turn. So a step's samples do not depend on the number of workers,
    none is left out at an epoch's end, and starting at step `s` needs no replay.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        start_step: int = 0,
    ) -> None:
        """`batch_size` counts the images of a step over all workers.

        Raises:
            ValueError: a batch that cannot be shared out evenly, no samples, or a rank that is not there.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; at least 1 is needed")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a positive multiple of the {world_size} workers")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; allowed are 0 to {world_size - 1}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.start_step = start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield self.batch_at(step)
            step += 1

    def batch_at(self, step: int) -> list[tuple[int, int]]:
        """This worker's (epoch, index) pairs of a step."""
        first = step * self.batch_size
        positions = range(first + self.rank, first + self.batch_size, self.world_size)
        return [sample_at(position, num_samples=self.num_samples, seed=self.seed) for position in positions]
