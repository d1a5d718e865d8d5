"""Settings of predict: photos are needed, the rest has defaults; photos are found by path, folder and pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config.load import ConfigError, load_config
from jobs.config.predict import PredictConfig, find_photos


def test_a_model_and_photos_are_enough() -> None:
    config = load_config(PredictConfig, None, ["model.checkpoint=coco", "input.photos=[a.jpg]"])
    assert (config.output.uri, config.predict.score_threshold, config.predict.device) == ("predictions", 0.5, None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("input.photos=[]", r"input\.photos: .* at least 1 item"),
        ("predict.score_threshold=2", r"predict\.score_threshold: 2 is not allowed"),
        ("predict.device=tpu", r"predict\.device: 'tpu' is not allowed"),
        ("predict.treshold=0.5", "there is no such key"),
    ],
)
def test_what_is_not_allowed_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(PredictConfig, None, ["model.checkpoint=coco", "input.photos=[a.jpg]", word])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/a.png", "sub/b.png", "notes.txt", ".hidden.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"")
    return tmp_path / "photos"


def found(*words: object, output: object = "out") -> list[str]:
    values = {"model": {"checkpoint": "m"}, "input": {"photos": list(map(str, words))}, "output": {"uri": str(output)}}
    return find_photos(PredictConfig.model_validate(values))


def test_photos_are_found_by_path_folder_and_pattern(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [str(photos / name) for name in ("a.png", "sub/a.png", "sub/b.png")]
    assert found(photos) == everything
    assert found(photos / "sub/*.png") == everything[1:]
    assert found(photos / "**/*") == everything
    assert found(photos / "notes.txt") == [str(photos / "notes.txt")], "named itself: its own fault"
    assert found(photos, output=photos / "sub") == everything[:1], "what an earlier call wrote is no input"
    assert found("s3://bucket/a.JPG") == ["s3://bucket/a.JPG"]
    assert found(photos / "sub/b.png", photos) == [everything[2], *everything[:2]], "each once"
    monkeypatch.chdir(photos)
    assert found("a.png") == ["a.png"]


@pytest.mark.parametrize("word", ["nosuch.jpg", "nosuch/*.jpg", ""])
def test_a_word_that_names_no_photo_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input\.photos: '.*' is "):
        found(tmp_path / word)
