"""Table of commands: the configuration of each, and the settings that its positional words and options set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Command:
    """A command that takes a configuration.

    Attributes:
        module, class_name: where its configuration is declared; imported only when the command runs.
        words: keys of settings that words without 'key=' give the values of, in order.
        list_word: key of a setting that all words without 'key=' together are the list of; "" for none.
        options: its own options (as Python names them), each with the key of the setting that it sets.
    """

    module: str
    class_name: str
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    list_word: str = ""

    @property
    def config(self) -> type[BaseModel]:
        """The class of the command's configuration."""
        return getattr(import_module(self.module), self.class_name)


COMMANDS: Mapping[str, Command] = {
    "train": Command("jobs.config.train", "TrainConfig"),
    "sweep": Command("jobs.config.sweep", "SweepConfig"),
    "segment": Command("jobs.config.segment", "SegmentConfig"),
    "predict": Command("jobs.config.predict", "PredictConfig", list_word="input.photos"),
    "evaluate": Command("jobs.config.results", "EvaluateConfig", ("run.uri",)),
    "compare": Command(
        "jobs.config.results", "CompareConfig", ("run_a.uri", "run_b.uri"), {"ground_truth": "ground_truth.uri"}
    ),
    "history": Command("jobs.config.results", "HistoryConfig", ("history.uri",)),
    "report": Command("jobs.config.results", "ReportConfig", ("run.uri",)),
    "export": Command("jobs.config.results", "ExportConfig", ("run.uri",), {"to": "export.to"}),
    "verify": Command("jobs.config.results", "VerifyConfig", ("run.uri",)),
    "check-data": Command("jobs.config.results", "CheckDataConfig", ("data.uri",)),
    "demo": Command("jobs.config.demo", "DemoConfig"),
    "schedule": Command("jobs.config.schedule", "ScheduleConfig"),
    "manifests": Command("jobs.config.manifests", "ManifestsConfig"),
    "convert": Command("jobs.config.results", "ConvertConfig", ("data.uri", "output.uri"), {"to": "convert.to"}),
}


def read_settings(name: str, file: Path | None, words: Sequence[str] | None, **options: str | None) -> Any:
    """The validated configuration of one command line.

    Args:
        name: of the command, a key of COMMANDS.
        file: value of `--config`.
        words: `key=value` and the words that the command takes, in any order. They win over the file.
        options: values of the command's own options; None where one was not given. They win over the words.

    Raises:
        ConfigError: as `load_config`.
    """
    from jobs.config.load import is_override, load_config  # pydantic, which `--help` does not need

    command = COMMANDS[name]
    overrides = [word for word in words or () if is_override(word)]
    plain_words = [word for word in words or () if not is_override(word)]
    if command.list_word and plain_words:
        # As JSON, which is YAML: a name may hold any character.
        overrides.append(f"{command.list_word}={json.dumps(plain_words)}")
    else:
        free_keys = [key for key in command.words if not any(word.startswith(f"{key}=") for word in overrides)]
        overrides += [f"{key}={word}" for key, word in zip(free_keys, plain_words)]
        overrides += plain_words[len(free_keys) :]  # one too many is not understood, and said to be
    overrides += [f"{command.options[option]}={value}" for option, value in options.items() if value is not None]
    return load_config(command.config, file, overrides, folder=name)
