"""Storage settings, secrets, and what every `Storage` does with its primitives."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.base import Secret, StorageError, StorageSettings
from pipeline.storage.local import LocalStorage
from tests.chaos.s3 import settings_for


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret_key": None}, "only one of"),
        ({"anonymous": True}, "anonymous"),
        ({"num_retries": -1}, "num_retries is -1"),
        ({"max_parallel": 0}, "max_parallel is 0"),
        ({"read_timeout_s": 0.0}, "read_timeout_s is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        settings_for("http://127.0.0.1:1", **change)


def test_a_secret_is_equal_to_itself_only() -> None:
    assert Secret("a") == Secret("a") and Secret("a") != Secret("b") and Secret("a") != "a"
    assert f"{Secret('a')!s} {Secret('a')!r}" == "*** ***"


def test_credentials_given_as_text_become_secrets() -> None:
    settings = StorageSettings(access_key="key-hunter2", secret_key="hunter3")  # type: ignore[arg-type]  # as YAML does
    assert settings.access_key == Secret("key-hunter2") and settings.secret_key == Secret("hunter3")
    assert "hunter" not in f"{settings!r} {settings}"


def test_objects_are_read_in_the_order_of_the_keys(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for key in ("a", "b"):
        storage.write_bytes(key, key.encode())
    assert list(storage.read_many(["b", "a", "b"])) == [b"b", b"a", b"b"]
    contents = storage.read_many(["a", "gone"])
    assert next(contents) == b"a"
    with pytest.raises(FileNotFoundError):
        next(contents)


def test_uris_of_keys_have_one_slash_between(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.uri_of("a/b") == f"{tmp_path}/a/b"
    assert storage.uri_of("") == str(tmp_path)
    assert LocalStorage("/").uri_of("a") == "/a"


class OverwritingStorage(LocalStorage):
    """A store that ignores the condition of a conditional write."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self.write_bytes(key, data)
        return True


def test_a_store_with_two_winners_is_refused(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "good").check_put_if_absent("run.json", b"spec")
    assert LocalStorage(tmp_path / "good").read_bytes("run.json") == b"spec"
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        OverwritingStorage(tmp_path / "bad").check_put_if_absent("run.json", b"spec")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written there"):
        LocalStorage(tmp_path / "file").check_put_if_absent("run.json", b"spec")
