"""The worked examples of docs/architecture.md name files, functions and lists that exist where they say."""

from __future__ import annotations

import re

import pytest

from pipeline.dataset.types import FORMATS
from tests.paths import DOCS, ROOT

NAMES = {
    "pipeline/schema.py": ("STATUSES", "RETRYABLE"),
    "pipeline/bulk/fetch.py": ("fetch_bytes",),
    "pipeline/images/decode_image.py": ("STATUSES", "DecodeLimits", "_decode_opened", "_decode_tiff", "Outcome"),
    "jobs/config/segment.py": ("DecodeSection",),
    "jobs/segment.py": ("bulk_job", "run_spec"),
    "tests/pipeline/images/test_decode_image.py": ("check_fails",),
    "pipeline/dataset/types.py": ("FORMATS", "Instance", "mask_to_instance", "IGNORE_NAME"),
    "jobs/config/train.py": ("TrainDataSection",),
    "pipeline/dataset/formats/labelme.py": ("load_labelme", "write_labelme"),
    "pipeline/dataset/formats/common/photo_copy.py": ("flat_names", "place_photo"),
    "pipeline/dataset/formats/reading.py": ("load_annotations", "detect_format"),
    "pipeline/dataset/formats/common/records.py": ("to_record",),
    "pipeline/dataset/formats/common/losses.py": ("count_losses",),
    "pipeline/dataset/convert.py": ("convert_annotations", "write_annotations"),
    "tests/pipeline/dataset/test_convert.py": ("TARGETS",),
}
EXAMPLES = (DOCS / "architecture.md").read_text().split("## Your first change")[1].split("## Every module")[0]


@pytest.mark.parametrize("file", NAMES)
def test_the_names_of_the_examples_are_defined_in_their_files(file: str) -> None:
    assert f"`{file}`" in EXAMPLES
    text = (ROOT / file).read_text()
    for name in NAMES[file]:
        assert re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", text, re.M), name
        assert f"`{name}" in EXAMPLES or name.endswith("_labelme"), name


def test_convert_has_a_writer_for_each_format() -> None:
    body = (ROOT / "pipeline/dataset/convert.py").read_text().split("def write_annotations(")[1]
    assert set(re.findall(r"\bwrite_(\w+)", body)) == set(FORMATS)
