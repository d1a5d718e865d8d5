"""Where annotations are, and how they are read: the settings that every command on annotations shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.dataset.types import FORMATS
from pipeline.settings import Settings, setting
from pipeline.storage.uri import Uri

AnnotationFormat = Literal[("auto", *FORMATS)]  # type: ignore[valid-type]
UnknownCategories = Literal["refuse", "ignore", "drop"]


@dataclass(frozen=True, kw_only=True)
class OptionalSource(Settings):
    """Annotations that may be left out."""

    uri: Uri | None = setting(None, "Annotations of any format: a file, or the folder they lie in; see format. Null is none.")
    format: AnnotationFormat = setting("auto", "Format of the annotations; auto recognises it.")
    image_root: Uri | None = setting(None, "Folder of the images; null looks beside the annotations.")
    default_category: str = setting(
        "object", "Category name of all objects in VIA annotations that have no classes.", min_length=1
    )


@dataclass(frozen=True, kw_only=True)
class AnnotationSource(OptionalSource):
    """An annotated data set: for VOC its folder or one of its lists of names."""

    uri: Uri = setting(description="Annotations of any format: a file, or the folder they lie in; see format.", min_length=1)
