"""The settings of annotations: what is left out has a default, what cannot be is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from pipeline.dataset.source import AnnotationFormat, AnnotationSource, OptionalSource
from pipeline.dataset.types import FORMATS


def test_a_uri_alone_is_a_source_and_no_uri_is_an_optional_one() -> None:
    source = AnnotationSource(uri="balloon/train")
    assert (source.format, source.image_root, source.default_category) == ("auto", None, "object")
    assert OptionalSource().uri is None
    with pytest.raises(TypeError, match="uri"):
        AnnotationSource()


def test_an_empty_uri_or_category_is_refused() -> None:
    with pytest.raises(ValueError, match="uri is ''; it must be at least 1 long"):
        AnnotationSource(uri="")
    with pytest.raises(ValueError, match="default_category is ''"):
        AnnotationSource(uri="x", default_category="")


def test_every_format_that_is_read_can_be_named() -> None:
    assert get_args(AnnotationFormat) == ("auto", *FORMATS)
