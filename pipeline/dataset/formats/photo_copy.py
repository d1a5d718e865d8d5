"""Photos beside written annotations: their file names, their copies, or references to the originals."""

from __future__ import annotations

import os
import posixpath
from collections import Counter

from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage import files
from pipeline.storage.uri import file_stem, is_local, local_path


def flat_names(annotated: AnnotatedSet) -> dict[int, str]:
    """A file name without folders for the image at each index, for formats that keep all photos in one folder.

    Raises:
        AnnotationError: two names would be the same, or differ only in their extension.
    """
    names = {index: image.file_name.replace("/", "__") for index, image in enumerate(annotated.images)}
    stems = Counter(file_stem(name) for name in names.values())
    if duplicates := [name for name, count in stems.items() if count > 1]:
        raise AnnotationError(f"two photos are named {duplicates[0]}, and the format has one folder for all photos")
    return names


def name_below(image: AnnotatedImage) -> str:
    """A file name for the photo's copy, with its folders where these stay below the folder of the copies.

    Others become part of the name: `../rgb/a.png` is `..__rgb__a.png`, so that no copy is written elsewhere.
    """
    name = posixpath.normpath(image.file_name)
    is_outside = name.startswith(("../", "/")) or "://" in image.file_name
    return image.file_name.replace("/", "__") if is_outside else name


def copy_photo(image: AnnotatedImage, target: str, losses: Counter[str]) -> None:
    """Copies the photo's bytes; a photo that cannot be read is left out and counted in `losses`."""
    try:
        files.write_bytes(target, files.read_bytes(image.path))
    except OSError:
        losses["photos that cannot be read"] += 1


def reference_to(image: AnnotatedImage, folder: str) -> str:
    """The photo's name for a file in `folder`: a relative path if both are on the local disk, else its URI."""
    if is_local(image.path) and is_local(folder):
        return os.path.relpath(local_path(image.path), local_path(folder)).replace(os.sep, "/")
    return image.path
