"""Which store a URI opens, and with which settings."""

from __future__ import annotations

import pytest

from pipeline.storage.base import StorageError
from pipeline.storage.stores import open_storage


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "gopher://x"])
def test_unusable_uris_are_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        open_storage(uri)
