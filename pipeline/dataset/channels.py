"""Aligned files with further channels (depth, infrared) beside the photos of a data set."""

from __future__ import annotations

from dataclasses import replace

from pipeline import files
from pipeline.dataset.annotations import AnnotatedSet, AnnotationError


def with_extra_channels(annotated: AnnotatedSet, pattern: str) -> AnnotatedSet:
    """The set with one more file for each photo, whose bands follow those that are there.

    Args:
        annotated: the set.
        pattern: where the file lies: a URI in which `{stem}` stands for the photo's name without its extension and
            `{folder}` for the photo's folder, such as `{folder}/../depth/{stem}.png`.

    Raises:
        AnnotationError: a pattern without `{stem}`, or in which something else stands in braces. Files that are not
            there are found when the photo is read.
    """
    try:
        path = [
            files.plain_uri(pattern.format(stem=files.stem(image.path), folder=files.parent_uri(image.path)))
            for image in annotated.images
        ]
    except (KeyError, IndexError, ValueError):
        path = None
    if path is None or "{stem}" not in pattern:
        raise AnnotationError(
            f"the pattern {pattern!r} must have {{stem}}, may have {{folder}}, and nothing else in {{}}"
        )
    images = tuple(
        replace(image, extra_paths=(*image.extra_paths, extra))
        for image, extra in zip(annotated.images, path, strict=True)
    )
    return replace(annotated, images=images)
