"""docs/engines.md lists every published network, and each part that it lists is converted still."""

from __future__ import annotations

import pytest

from model.presets import preset
from tests.policy.engines_page import HEAD, NETWORKS, PAGE, compare

LIMITS = (0.01, 1e-4, 1e-3, 0.01)


needs_the_page = pytest.mark.skipif(
    not PAGE.exists(), reason="not measured yet: python -m tests.policy.engines_page, some minutes on an idle machine"
)


def rows_of_the_page() -> dict[str, list[str]]:
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}


@needs_the_page
def test_the_page_has_every_network_with_all_its_parts() -> None:
    assert PAGE.read_text().startswith(HEAD), "run: python -m tests.policy.engines_page"
    rows = rows_of_the_page()
    assert tuple(rows) == NETWORKS
    for name, cells in rows.items():
        spec = preset(name)
        present = [True, True, spec.mask_head != "none", spec.num_keypoints > 0]
        assert cells[:4] == ["openvino" if each else "" for each in present], name
        for figure, limit in zip(cells[4:], LIMITS, strict=True):
            assert not figure or float(figure) <= limit, name


@pytest.mark.long
@pytest.mark.parametrize("name", NETWORKS)
def test_each_part_of_each_network_is_converted_and_near_torch(name: str) -> None:
    pytest.importorskip("openvino", reason="there is no OpenVINO for this machine")
    comparison, spec = compare(preset(name)), preset(name)
    present = [True, True, spec.mask_head != "none", spec.num_keypoints > 0]
    assert comparison.engines == tuple("openvino" if each else None for each in present)
    for difference, limit in zip(comparison.differences, LIMITS, strict=True):
        assert difference is None or difference <= limit
