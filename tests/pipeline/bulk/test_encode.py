"""Rows of images that are not what they claim to be."""

from __future__ import annotations

import os

from pipeline.bulk.encode import ImageResult, to_tables
from pipeline.bulk.listing import PlannedImage


def test_a_header_that_claims_any_size_and_a_name_that_is_no_text_are_rows() -> None:
    odd = os.fsdecode(b"caf\xe9")
    results = [
        ImageResult(PlannedImage("a", "/a"), "corrupt", "cut short", height=2_600_468_528, width=2**31 - 1),
        ImageResult(PlannedImage("b", "/b"), "unreadable", f"{odd} is not a regular file", height=-3, width=0),
        ImageResult(PlannedImage("c", "/c"), "not_found"),
    ]
    images, instances = to_tables(results, shard=0, run_id="run")
    assert images["height"].to_pylist() == [None, None, None]
    assert images["width"].to_pylist() == [2**31 - 1, 0, None]
    assert images["error"].to_pylist() == ["cut short", "caf\\udce9 is not a regular file", None]
    assert instances.num_rows == 0
