"""Photos on their way into the folders of another format."""

from __future__ import annotations

import os
from collections import Counter

from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage import files
from pipeline.storage.uri import file_stem, is_local, local_path


def flat_names(annotated: AnnotatedSet) -> dict[int, str]:
    """A file name without folders for each image (by its place), for formats that keep all photos in one
    folder.

    Raises:
        AnnotationError: two images would get the same name, or differ in their extension only.
    """
    names = {place: image.file_name.replace("/", "__") for place, image in enumerate(annotated.images)}
    stems = Counter(file_stem(name) for name in names.values())
    if twice := [name for name, count in stems.items() if count > 1]:
        raise AnnotationError(f"two photos are named {twice[0]}, and the format has one folder for all photos")
    return names


def copy_photo(image: AnnotatedImage, target: str, losses: Counter[str]) -> None:
    """Copies the photo's bytes; one that cannot be read is counted and left out."""
    try:
        files.write_bytes(target, files.read_bytes(image.path))
    except OSError:
        losses["photos that cannot be read"] += 1


def reference_to(image: AnnotatedImage, folder: str) -> str:
    """How a file in `folder` names the photo where it is: relative on the same disk, else its URI."""
    if is_local(image.path) and is_local(folder):
        return os.path.relpath(local_path(image.path), local_path(folder)).replace(os.sep, "/")
    return image.path
