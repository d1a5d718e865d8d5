"""Loading a configuration: which file a name means, overrides, and one sentence for each wrong key or value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.config.load import ConfigError, config_hash, find_config, is_override, load_config, read_yaml, to_yaml
from jobs.config.segment import SegmentConfig
from jobs.config.train import TrainConfig
from jobs.home import shipped_configs

PLACES = ["model.checkpoint=m", "input.uri=in", "output.uri=out"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["segment.score_treshold=0.3"],
            "segment.score_treshold: there is no such key; did you mean segment.score_threshold?",
        ),
        (["segmnt.batch_size=3"], "segmnt.batch_size: there is no such key; did you mean segment.batch_size?"),
        (["segment.score_threshold=1.5"], "segment.score_threshold: 1.5 is not allowed: input should be less than"),
        (["segment.batch_size=many"], "segment.batch_size: 'many' is not allowed: input should be a valid integer"),
        (["segment.slice.overlap=100"], "segment.slice.size: missing; Side of a slice in pixels"),
        (["segment.mode=quick"], "segment.mode: 'quick' is not allowed: input should be 'exact', 'fast' or 'int8'"),
        (["input=5"], "input: 5 is not allowed"),
        (["input.uri="], "input.uri: None is not allowed"),
        (["batch size"], "'batch size' is not understood"),
        (["decode.formats=[GIFF]"], "decode.formats"),
        (["segment.batch_size=[a"], "segment.batch_size: '[a' is not allowed"),
    ],
)
def test_a_wrong_word_is_named(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SegmentConfig, None, [*PLACES, *words])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("segment.score_thresholds.cat=3", "segment.score_thresholds.cat: 3 is not allowed: input should be less than"),
        ("segment.score_thresholds=[2]", "segment.score_thresholds: [2] is not allowed: input should be a valid dict"),
    ],
)
def test_a_setting_of_several_types_gives_one_sentence(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SegmentConfig, None, ["model.checkpoint=m", "input.uri=i", "output.uri=o", word])
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_a_missing_key_says_what_it_is_for() -> None:
    with pytest.raises(ConfigError, match=r"output\.uri|output: missing") as caught:
        load_config(SegmentConfig, None, PLACES[:2])
    assert "input.uri" not in str(caught.value)


def test_nested_dataclass_keys_are_checked_too() -> None:
    places = ["data.train=x", "output.uri=y", "train.max_steps=1"]
    with pytest.raises(ConfigError, match=r"model\.spec.*backbon"):
        load_config(TrainConfig, None, [*places, "model.spec.backbon=tiny"])
    with pytest.raises(ConfigError, match="backbone"):
        load_config(TrainConfig, None, [*places, "model.spec.backbone=resnet51"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\xff"])
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(SegmentConfig, file, PLACES)


def test_words_win_over_the_file_and_the_printed_form_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("segment: {batch_size: 3, score_threshold: 0.1}\ninput: {uri: a}\n")
    config = load_config(SegmentConfig, file, [*PLACES, "segment.batch_size=5", "input.pattern=*.jpg"])
    assert (config.segment.batch_size, config.segment.score_threshold, config.input.uri) == (5, 0.1, "in")
    file.write_text(to_yaml(config))
    again = load_config(SegmentConfig, file)
    assert again == config and config_hash(again) == config_hash(config)
    assert yaml.safe_load(to_yaml(config))["input"]["pattern"] == "*.jpg"


def test_overrides_do_not_reach_the_values_they_override() -> None:
    base = {"model": {"checkpoint": "m"}, "input": {"uri": "in"}, "output": {"uri": "out"}}
    config = load_config(SegmentConfig, None, ["input.uri=elsewhere"], base=base)
    assert config.input.uri == "elsewhere" and base["input"] == {"uri": "in"}


@pytest.mark.parametrize("text", ["*.jpg", "2026", "2026-11-20", "[a", "s3://b/x: y"])
def test_text_stays_text(text: str) -> None:
    assert load_config(SegmentConfig, None, [*PLACES, f"input.pattern={text}"]).input.pattern == text


def test_a_uri_with_an_equals_sign_is_no_override() -> None:
    assert is_override("run.uri=x=y")
    assert not is_override("s3://bucket/date=2026/run") and not is_override("/data/a=b")


class TestFindConfig:
    @pytest.fixture(autouse=True)
    def folder_without_configs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        "name", ["tiny_cpu", "tiny_cpu.yaml", "train/tiny_cpu", "configs/train/tiny_cpu.yaml", "configs/train/tiny_cpu"]
    )
    def test_a_shipped_file_is_found_from_any_folder(self, name: str) -> None:
        assert find_config(name, "train") == shipped_configs() / "train/tiny_cpu.yaml"
        assert find_config(Path(name), "train").is_file()

    def test_the_commands_own_folder_comes_first(self) -> None:
        assert find_config("tiny_cpu", "segment") == shipped_configs() / "segment/tiny_cpu.yaml"
        assert find_config("train/tiny_cpu", "segment") == shipped_configs() / "train/tiny_cpu.yaml"

    def test_a_file_of_the_users_comes_before_a_shipped_one(self, tmp_path: Path) -> None:
        (tmp_path / "tiny_cpu").write_text("train: {max_steps: 3}\n")
        assert find_config("tiny_cpu", "train") == Path("tiny_cpu")
        assert read_yaml(find_config("tiny_cpu", "train")) == {"train": {"max_steps": 3}}

    def test_a_directory_of_that_name_does_not_hide_it(self, tmp_path: Path) -> None:
        (tmp_path / "tiny_cpu").mkdir()
        (tmp_path / "configs/train").mkdir(parents=True)
        assert find_config("tiny_cpu", "train") == shipped_configs() / "train/tiny_cpu.yaml"
        assert find_config("configs/train/tiny_cpu.yaml", "train") == shipped_configs() / "train/tiny_cpu.yaml"

    def test_an_unknown_name_lists_what_ships_for_the_command(self) -> None:
        with pytest.raises(ConfigError) as caught:
            find_config("tinycpu", "train")
        assert str(caught.value).startswith("--config tinycpu: there is no such file; these ship with the program: ")
        assert "train/tiny_cpu" in str(caught.value) and "segment/" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"sweep\.base tinycpu: there is no such file"):
            find_config("tinycpu", "train", "sweep.base")

    @pytest.mark.parametrize(
        "name",
        [
            "../train/tiny_cpu",
            "configs/../train/tiny_cpu.yaml",
            "..",
            "/train/tiny_cpu",
            str(shipped_configs() / "train/tiny_cpu"),  # exists only with its ending
            "configs//etc/passwd",
            "/",
            "",
            ".",
            "configs/",
            "tiny_cpu.json",
        ],
    )
    def test_names_that_leave_the_shipped_folder_or_are_none_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="there is no such file"):
            find_config(name, "train")

    def test_load_config_takes_the_name(self) -> None:
        config = load_config(TrainConfig, "tiny_cpu", ["data.train=x", "output.uri=y"], folder="train")
        assert config == load_config(
            TrainConfig, shipped_configs() / "train/tiny_cpu.yaml", ["data.train=x", "output.uri=y"]
        )
