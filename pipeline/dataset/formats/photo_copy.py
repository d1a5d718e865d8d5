"""Photos beside written annotations: file names for their copies, and the copies."""

from __future__ import annotations

import posixpath
from collections import Counter

from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage.files import Location
from pipeline.storage.uri import file_stem, is_full

_MAX_NAME_BYTES = 200  # file systems hold 255; what a format adds to the name must fit too


def flat_names(annotated: AnnotatedSet) -> list[str]:
    """A file name without folders for each image, for formats that keep all photos in one folder.

    Raises:
        AnnotationError: two names would be the same or differ only in their extension, or a name is none or too long.
    """
    names = [image.file_name.replace("/", "__") for image in annotated.images]
    stems = Counter(file_stem(name) for name in names)
    if duplicates := [name for name, count in stems.items() if count > 1]:
        raise AnnotationError(f"two photos are named {duplicates[0]}, and the format has one folder for all photos")
    for name in names:
        if name in ("", ".", "..") or "\0" in name or len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
            raise AnnotationError(
                f"a photo named {name!r} cannot be written; allowed are 1 to {_MAX_NAME_BYTES} bytes without NUL"
            )
    return names


def names_below(annotated: AnnotatedSet) -> list[str]:
    """A file name for each photo's copy, with its folders where these stay below the folder of the copies.

    Others become part of the name: `../rgb/a.png` is `..__rgb__a.png`, so that no copy is written elsewhere.

    Raises:
        AnnotationError: two photos would have one name.
    """
    photo_of: dict[str, AnnotatedImage] = {}
    for image in annotated.images:
        name = posixpath.normpath(image.file_name)
        if name.startswith("../") or is_full(image.file_name):
            name = image.file_name.replace("/", "__")
        if (first := photo_of.setdefault(name, image)) is not image:
            raise AnnotationError(
                f"the photos {first.file_name!r} and {image.file_name!r} would both be copied to {name!r}"
            )
    return list(photo_of)


def copy_photo(photo: Location, target: Location, losses: Counter[str]) -> None:
    """Copies the photo's bytes; a photo that cannot be read is left out and counted in `losses`.

    Raises:
        OSError: the copy cannot be written.
    """
    try:
        data = photo.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with NUL, a URI of no store
        losses["photos that cannot be read"] += 1
    else:
        target.write_bytes(data)
