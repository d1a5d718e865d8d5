"""Training samples: a torch dataset of images with targets, and the endless order in which they are taken.

Everything random about a sample is a pure function of (seed, epoch, index), and the samples of a step are one of
(seed, step). So a training that was stopped and resumed sees the same samples as one without a break.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.dataset.photos import UnusablePhoto, load_photo
from pipeline.dataset.sample import (
    SampleDict,
    Transform,
    draw_index,
    happens,
    to_sample_dict,
    to_target,
)
from pipeline.dataset.transforms.copy_paste import paste_objects
from pipeline.dataset.types import AnnotatedSet, AnnotationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        image: float32 [C, H, W] in 0..1.
        target: see `SampleSet`.
        index: of the photo used, in the set.
        image_id: of the photo used.
        skipped: unusable photos that this one stands in for: image id -> reason.
        exif: photos.EXIF_NONE, EXIF_TURNED, or EXIF_KEPT.
    """

    image: Tensor
    target: dict[str, Tensor]
    index: int
    image_id: int | str
    skipped: dict[int | str, str] = field(default_factory=dict)
    exif: int = 0


class SampleSet(Dataset[Sample]):
    """A data set as torch's map-style dataset, whose keys are pairs (epoch, index).

    The target of a sample is what `model.network.MaskRCNN` takes, all tensors:

    - `boxes` float32 [N, 4]: XYXY, half-open, pixels of the image as given, of positive size
    - `labels` int64 [N]: 1..K; `masks` uint8 [N, H, W], none empty
    - `ignore_boxes` float32 [M, 4]: crowd and ignore regions, and objects without a mask: neither positive nor negative
    - `labelled_classes` int64 [L]: only where not all classes were looked for
    - `keypoints` float32 [N, P, 3]: x, y as annotated (pixel index, as in COCO), visibility; only with keypoints

    N = 0 gives a negative: boxes [0, 4], masks [0, H, W]. A photo that cannot be used (absent, broken, of another size
    than annotated) is logged once and replaced by the next usable one, so that every batch is full on every worker.
    """

    def __init__(
        self,
        annotated: AnnotatedSet,
        transforms: Transform | None = None,
        *,
        seed: int = 0,
        in_channels: int = 3,
        copy_paste: float = 0.0,
    ) -> None:
        """Reads no file yet.

        Args:
            annotated: the data set.
            transforms: see `augment.build_transforms`.
            seed: of everything random about the samples.
            in_channels: bands of the images, see `photos.load_photo`.
            copy_paste: probability that objects of another photo, transformed by `transforms` too, are pasted onto a
                sample.

        Raises:
            AnnotationError: a set without images.
            ValueError: a value out of range.
        """
        if not len(annotated):
            raise AnnotationError("the data set has no images")
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; at least 1 is needed")
        if not 0 <= copy_paste <= 1:
            raise ValueError(f"copy_paste is {copy_paste}; allowed is a probability from 0 to 1")
        self.annotated = annotated
        self.transforms = transforms
        self.seed = seed
        self.in_channels = in_channels
        self.copy_paste = copy_paste
        self._logged: set[int] = set()  # indices of unusable photos

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.load_sample(*key)

    def load_sample(self, epoch: int, index: int) -> Sample:
        """The sample of this epoch and index, or of the next usable photo; the first follows the last.

        Raises:
            UnusablePhoto: no photo of the whole set can be used; the message has one of the reasons.
        """
        skipped: dict[int | str, str] = {}
        for step in range(len(self)):
            candidate = (index + step) % len(self)
            image = self.annotated.images[candidate]
            try:
                return self._load(epoch, candidate, skipped)
            except UnusablePhoto as error:
                skipped[image.image_id] = str(error)
                if candidate not in self._logged:
                    self._logged.add(candidate)
                    logger.warning("skipped %s: %s", image.path, error)
        raise UnusablePhoto(f"none of the {len(self)} photos can be used; {image.path}: {skipped[image.image_id]}")

    def _load(self, epoch: int, index: int, skipped: dict[int | str, str]) -> Sample:
        image = self.annotated.images[index]
        sample, exif = self._read(index)
        if self.transforms is not None or self.copy_paste:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sample_seed(self.seed, epoch, index))
                sample = self._augment(sample, image.labelled_classes)
        target = to_target(sample)
        if image.labelled_classes is not None:
            target["labelled_classes"] = torch.tensor(image.labelled_classes, dtype=torch.int64)
        pixels = sample["image"].as_subclass(Tensor)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return Sample(pixels, target, index, image.image_id, skipped, exif)

    def _read(self, index: int) -> tuple[SampleDict, int]:
        image = self.annotated.images[index]
        pixels, exif = load_photo(image, in_channels=self.in_channels)
        try:
            return to_sample_dict(image, pixels, self.annotated.keypoint_names), exif
        except ValueError as error:
            raise UnusablePhoto(f"its annotations cannot be used: {error}") from None

    def _augment(self, sample: SampleDict, labelled_classes: tuple[int, ...] | None) -> SampleDict:
        """The transformed sample, with objects of another one pasted onto it by chance."""
        if self.transforms is not None:
            sample = self.transforms(sample)
        if self.copy_paste and happens(self.copy_paste):
            try:
                donor, _ = self._read(draw_index(len(self)))
            except UnusablePhoto:  # logged when it is loaded for itself
                return sample
            if self.transforms is not None:
                donor = self.transforms(donor)
            sample = paste_objects(sample, donor, labelled_classes=labelled_classes)
        return sample


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of everything random about one sample: a 64-bit hash, so that neighbours are independent."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0])


def sample_at(position: int, *, num_samples: int, seed: int) -> tuple[int, int]:
    """(epoch, index) at a position of the endless stream of samples; each epoch is a new permutation of all."""
    epoch, rank_in_epoch = divmod(position, num_samples)
    return epoch, int(_permutation(num_samples, seed, epoch)[rank_in_epoch])


@functools.lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
