"""Table of commands: the configuration of each, and the settings that its positional words and options set."""

from __future__ import annotations

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
        words: keys of settings that leading words without 'key=' give the values of, in order.
        options: its own options (as Python names them), each with the key of the setting that it sets.
    """

    module: str
    class_name: str
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> type[BaseModel]:
        """The class of the command's configuration."""
        return getattr(import_module(self.module), self.class_name)


COMMANDS: Mapping[str, Command] = {
    "train": Command("jobs.config.train", "TrainConfig"),
    "sweep": Command("jobs.config.sweep", "SweepConfig"),
    "segment": Command("jobs.config.segment", "SegmentConfig"),
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
        words: `key=value`, after the leading words that the command takes. They win over the file.
        options: values of the command's own options; None where one was not given. They win over the words.

    Raises:
        ConfigError: as `load_config`.
    """
    from jobs.config.load import is_override, load_config  # pydantic, which `--help` does not need

    command = COMMANDS[name]
    overrides = list(words or [])
    for i, key in enumerate(command.words):
        if i < len(overrides) and not is_override(overrides[i]):
            overrides[i] = f"{key}={overrides[i]}"
    overrides += [f"{command.options[option]}={value}" for option, value in options.items() if value is not None]
    return load_config(command.config, file, overrides, folder=name)
