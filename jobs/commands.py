"""The commands by name: which configuration each takes, and which settings its words and options are short for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jobs.config.demo import DemoConfig
from jobs.config.load import is_override, load_config
from jobs.config.manifests import ManifestsConfig
from jobs.config.results import (
    CheckDataConfig,
    CompareConfig,
    ConvertConfig,
    EvaluateConfig,
    ExportConfig,
    HistoryConfig,
    ReportConfig,
    VerifyConfig,
)
from jobs.config.schedule import ScheduleConfig
from jobs.config.segment import SegmentConfig
from jobs.config.sweep import SweepConfig
from jobs.config.train import TrainConfig


@dataclass(frozen=True)
class Command:
    """A command that is configured.

    Attributes:
        config: the configuration it takes.
        words: the keys that leading words without '=' stand for, in order.
        options: its own options (as Python names them) and the key that each stands for.
    """

    config: type[BaseModel]
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


COMMANDS: Mapping[str, Command] = {
    "train": Command(TrainConfig),
    "sweep": Command(SweepConfig),
    "segment": Command(SegmentConfig),
    "evaluate": Command(EvaluateConfig, ("run.uri",)),
    "compare": Command(CompareConfig, ("run_a.uri", "run_b.uri"), {"ground_truth": "ground_truth.uri"}),
    "history": Command(HistoryConfig, ("history.uri",)),
    "report": Command(ReportConfig, ("run.uri",)),
    "export": Command(ExportConfig, ("run.uri",), {"to": "export.to"}),
    "verify": Command(VerifyConfig, ("run.uri",)),
    "check-data": Command(CheckDataConfig, ("data.uri",)),
    "demo": Command(DemoConfig),
    "schedule": Command(ScheduleConfig),
    "manifests": Command(ManifestsConfig),
    "convert": Command(ConvertConfig, ("data.uri", "output.uri"), {"to": "convert.to"}),
}


def read_settings(name: str, file: Path | None, words: Sequence[str] | None, **options: str | None) -> Any:
    """The validated configuration of a command's line.

    Args:
        name: of COMMANDS.
        file: of `--config`.
        words: `key=value`, and leading words that stand for a key.
        options: the command's own options; None is one that was not given.

    Raises:
        ConfigError: as `load_config`.
    """
    command = COMMANDS[name]
    given = list(words or [])
    for place, key in enumerate(command.words):
        if place < len(given) and not is_override(given[place]):
            given[place] = f"{key}={given[place]}"
    given += [f"{command.options[option]}={value}" for option, value in options.items() if value is not None]
    return load_config(command.config, file, given, folder=name)
