"""Which store a URI opens, and with which settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage.base import StorageError, StorageSettings
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3 import S3Storage
from pipeline.storage.stores import open_storage, use_settings


@pytest.fixture
def no_settings() -> Iterator[None]:
    """Settings of the process that a test may change."""
    use_settings(None)
    yield
    use_settings(None)


def test_a_path_and_a_file_uri_open_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    opened = {uri: open_storage(uri) for uri in ("a b", "./a b", f"{tmp_path}/a b", f"file://{tmp_path}/a%20b")}
    for uri, storage in opened.items():
        assert isinstance(storage, LocalStorage) and storage.root == tmp_path / "a b", uri
    assert open_storage("~/a").uri == str(tmp_path / "home" / "a")


def test_a_bucket_is_reached_with_the_settings_given_else_those_of_the_process(no_settings: None) -> None:
    def settings_of(given: StorageSettings | None = None) -> StorageSettings:
        storage = open_storage("s3://bucket/prefix", given)
        assert isinstance(storage, S3Storage) and storage.uri == "s3://bucket/prefix"
        return storage.settings

    of_process, of_call = StorageSettings(num_retries=3), StorageSettings(num_retries=4)
    assert settings_of() == StorageSettings()
    use_settings(of_process)
    assert settings_of() is of_process
    assert settings_of(of_call) is of_call


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "gopher://x"])
def test_unusable_uris_are_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        open_storage(uri)
