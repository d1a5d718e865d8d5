"""What other formats cannot hold of a data set and COCO can: keypoints, ids, lists of labelled classes, channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.dataset.types import AnnotatedSet


def count_losses(
    annotated: AnnotatedSet, file_names: Sequence[str], *, image_ids: Sequence[int | str], category_ids: Sequence[int]
) -> Counter[str]:
    """Counts what is lost by description; nothing is counted as 0.

    Args:
        file_names: of the copy of each photo.
        image_ids: the id that each image has when it is read back.
        category_ids: the same for each category.
    """
    losses: Counter[str] = Counter()
    for image, file_name, image_id in zip(annotated.images, file_names, image_ids, strict=True):
        losses["photos renamed"] += image.file_name != file_name
        losses["image ids numbered anew or replaced by names"] += image.image_id != image_id
        losses["keypoints"] += sum(instance.keypoints is not None for instance in image.instances)
        losses["lists of labelled classes"] += image.labelled_classes is not None
        losses["extra channels"] += len(image.extra_paths)
    if [category.id for category in annotated.categories] != list(category_ids):
        losses["category ids numbered anew"] += len(category_ids)
    return +losses
