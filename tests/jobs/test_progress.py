"""The line on the terminal that says how far a bulk run is."""

from __future__ import annotations

from jobs.progress import describe
from pipeline.bulk.progress import Progress


def test_the_line_says_what_a_user_wants_to_know() -> None:
    progress = Progress(100, 10, {"ok": 40, "corrupt": 5}, 99, 9.0, num_workers=2, busy_share=0.8)
    assert describe(progress) == (
        "55/100 images  10 from before  5.0 images/s  99 instances  ETA 0:09  failed 5 (corrupt 5)  2 workers 80% busy"
    )
