"""Extra channels: adds files aligned with the photos of a data set (depth, infrared) as further bands."""

from __future__ import annotations

from dataclasses import replace

from pipeline.dataset.types import AnnotatedSet, AnnotationError
from pipeline.storage.uri import aligned_uri


def with_extra_channels(annotated: AnnotatedSet, pattern: str) -> AnnotatedSet:
    """The set with one more extra file for each photo; its bands follow the bands that are there.

    Args:
        annotated: the set.
        pattern: where the file is, see `storage.uri.aligned_uri`.

    Raises:
        AnnotationError: a pattern without `{stem}`, or with another field than that and `{folder}`. Absent files are
            reported when the photo is read.
    """
    try:
        extras = [image.path.at(aligned_uri(pattern, image.path.uri)) for image in annotated.images]
    except ValueError as error:
        raise AnnotationError(str(error)) from None
    images = tuple(
        replace(image, extra_paths=(*image.extra_paths, extra))
        for image, extra in zip(annotated.images, extras, strict=True)
    )
    return replace(annotated, images=images)
