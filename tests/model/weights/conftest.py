"""Published weights without a network connection."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import torch


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder in which torch looks for downloaded files; downloads fail."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"
