"""Parts of groups: the same arrays, cut at whole groups."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.kernel_types import Groups


def test_parts_hold_the_groups_between_their_bounds():
    groups = Groups(
        rows=np.arange(6),
        starts=np.array([0, 1, 4, 6]),
        first=np.array([0, 0, 2]),
        end=np.array([0, 2, 3]),
        truths=np.arange(3),
        pairs=np.array([0, 0, 6, 8]),
    )
    part = groups.part(1, 3)
    assert part.starts.tolist() == [1, 4, 6] and part.pairs.tolist() == [0, 6, 8]
    assert part.first.tolist() == [0, 2] and part.end.tolist() == [2, 3]
    assert part.rows is groups.rows and part.truths is groups.truths
    assert len(groups.part(2, 2).first) == 0
