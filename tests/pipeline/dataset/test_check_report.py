"""Pictures of faults show the object at fault in red."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.dataset.check import check_data
from pipeline.dataset.check_report import draw_offenders


def test_pictures_show_the_offender_in_red(faulty_file: Path, tmp_path: Path) -> None:
    report = check_data(str(faulty_file))
    written = draw_offenders(report, str(tmp_path / "pictures"))
    names = {Path(uri).name for uri in written}
    assert {"polygon_outside_01.png", "empty_box_00.png", "size_disagrees_00.png"} <= names
    assert not any(name.startswith("unreadable_photo") for name in names)
    with Image.open(tmp_path / "pictures/polygon_outside_01.png") as picture:
        assert picture.size == (30 + 16, 20 + 16)  # a border of 8 px
        red = np.argwhere((np.array(picture) == (255, 0, 0)).all(axis=2))
    # From the corner at (x 5, y 4) of the photo down to the point that lies outside it.
    assert red.min(axis=0).tolist() == [12, 13] and red[:, 0].max() > 8 + 20
    assert len(draw_offenders(report, str(tmp_path / "first_two"), max_pictures=2)) == 2
