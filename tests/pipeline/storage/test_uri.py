"""URIs joined, taken apart and turned into paths."""

from __future__ import annotations

import pytest

from pipeline.storage.uri import base_name, file_stem, join_uri, parent_uri


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("a/b", "c.png", "a/b/c.png"),
        ("a/b", "../c.png", "a/c.png"),
        ("/a", "/c.png", "/c.png"),
        ("/", "c.png", "/c.png"),
        (".", "c.png", "c.png"),
        ("s3://lab/a", "../b/c.png", "s3://lab/b/c.png"),
        ("s3://lab", "c.png", "s3://lab/c.png"),
        ("/a", "s3://lab/c.png", "s3://lab/c.png"),
        ("file:///a%20b", "c%20d.png", "/a b/c%20d.png"),
    ],
)
def test_names_are_joined_and_taken_apart(folder: str, name: str, expected: str) -> None:
    joined = join_uri(folder, name)
    assert joined == expected
    assert base_name(joined) == expected.rpartition("/")[2]
    assert parent_uri(joined) in (expected.rpartition("/")[0], "/", ".")


def test_stems_of_odd_names() -> None:
    assert [file_stem(name) for name in ("a/b.tar.gz", "a/.hidden", "a/b", "s3://x/y.png")] == [
        "b.tar",
        ".hidden",
        "b",
        "y",
    ]
