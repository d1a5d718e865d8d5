"""Photos beside written annotations: file names for their copies, and the copies, or links to the photos."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable

from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage.files import Location
from pipeline.storage.uri import PHOTO_SUFFIXES, file_stem, is_full, is_local, is_photo, local_path

PHOTO_CHOICES = ("copy", "link", "refer")
"""Photos beside written annotations: copies, symbolic links, or none, and the annotations name them where they are."""
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


def check_photo_endings(names: Iterable[str], format: str) -> None:
    """Refuses names that do not end like a photo's, for formats whose photos are found by looking at the folder."""
    if odd := [name for name in names if not is_photo(name)]:
        raise AnnotationError(
            f"a photo is named {odd[0]!r}, and the photos of {format} are told by their ending; allowed are names that "
            f"end in {', '.join(PHOTO_SUFFIXES)}, and do not begin with a dot"
        )


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


def check_photo_choice(photos: str, annotated: AnnotatedSet, target: Location, *, can_refer: bool, format: str) -> None:
    """Refuses a choice of PHOTO_CHOICES that cannot be carried out.

    Args:
        can_refer: whether the format can name photos that lie elsewhere.

    Raises:
        AnnotationError: no such choice, links between buckets, or a format that keeps its photos in folders of its own.
    """
    if photos not in PHOTO_CHOICES:
        raise AnnotationError(f"photos: {photos!r} is no choice; allowed are {', '.join(PHOTO_CHOICES)}")
    if photos == "refer" and not can_refer:
        raise AnnotationError(f"{format} keeps its photos in folders of its own, so they must be copied or linked")
    if photos == "link":
        for place in (target, *(image.path for image in annotated.images)):
            if not is_local(place.uri):
                raise AnnotationError(f"photos can be linked on a local disk only, and {place} is not on one")


def place_photo(photo: Location, target: Location, photos: str, losses: Counter[str]) -> None:
    """Copies the photo's bytes or links to it; nothing for "refer".

    A photo that cannot be read is left out and counted in `losses`.

    Raises:
        OSError: the copy or link cannot be written.
    """
    if photos == "refer":
        return
    if photos == "link" and photo.is_file():
        link = local_path(target.uri)
        if link.exists() and os.path.samefile(link, local_path(photo.uri)) and not link.is_symlink():
            return  # the photo itself
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.realpath(local_path(photo.uri)))
        return
    try:
        data = photo.read_bytes()
    except (OSError, ValueError):  # ValueError: a name with NUL, a URI of no store
        losses["photos that cannot be read"] += 1
    else:
        target.write_bytes(data)
