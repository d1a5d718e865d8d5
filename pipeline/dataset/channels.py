"""Aligned files with further channels (depth, infrared) beside the photos of a data set."""

from __future__ import annotations

from dataclasses import replace

from pipeline.dataset.types import AnnotatedSet, AnnotationError
from pipeline.storage.uri import aligned_uri


def with_extra_channels(annotated: AnnotatedSet, pattern: str) -> AnnotatedSet:
    """The set with one more file for each photo, whose bands follow those that are there.

    Args:
        annotated: the set.
        pattern: where the file lies, see `files.aligned_uri`.

    Raises:
        AnnotationError: a pattern that names no file. Files that are not there are found when the photo is read.
    """
    try:
        extras = [aligned_uri(pattern, image.path) for image in annotated.images]
    except ValueError as error:
        raise AnnotationError(str(error)) from None
    images = tuple(
        replace(image, extra_paths=(*image.extra_paths, extra))
        for image, extra in zip(annotated.images, extras, strict=True)
    )
    return replace(annotated, images=images)
