"""Table of commands: the configuration of each, and the settings that its positional words give the values of."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        earlier_word: key of a setting that the words before the last one are the list of; "" for none.
    """

    module: str
    class_name: str
    words: tuple[str, ...] = ()
    list_word: str = ""
    earlier_word: str = ""

    @property
    def config(self) -> type[BaseModel]:
        """The class of the command's configuration."""
        return getattr(import_module(self.module), self.class_name)

    @property
    def metavar(self) -> str:
        """Its words, as its help shows them: 'RUN_A RUN_B key=value'."""
        named = [key.removesuffix(".uri").replace(".", "_").upper() for key in self.words]
        listed = [f"{self.list_word.rpartition('.')[2].upper()}..."] if self.list_word else []
        named[-1:] = [f"{name}..." if self.earlier_word else name for name in named[-1:]]
        return " ".join([*named, *listed, "key=value"])


COMMANDS: Mapping[str, Command] = {
    "train": Command("jobs.config.train", "TrainConfig"),
    "sweep": Command("jobs.config.sweep", "SweepConfig"),
    "segment": Command("jobs.config.segment", "SegmentConfig"),
    "quantize": Command("jobs.config.quantize", "QuantizeConfig"),
    "predict": Command("jobs.config.predict", "PredictConfig", list_word="input.photos"),
    "evaluate": Command("jobs.config.results", "EvaluateConfig", ("run.uri",), earlier_word="run.earlier"),
    "compare": Command("jobs.config.results", "CompareConfig", ("run_a.uri", "run_b.uri")),
    "history": Command("jobs.config.results", "HistoryConfig", ("history.uri",)),
    "report": Command("jobs.config.results", "ReportConfig", ("run.uri",), earlier_word="run.earlier"),
    "export": Command("jobs.config.results", "ExportConfig", ("run.uri",), earlier_word="run.earlier"),
    "verify": Command("jobs.config.results", "VerifyConfig", ("run.uri",)),
    "check-data": Command("jobs.config.results", "CheckDataConfig", ("data.uri",)),
    "demo": Command("jobs.config.demo", "DemoConfig"),
    "schedule": Command("jobs.config.schedule", "ScheduleConfig"),
    "manifests": Command("jobs.config.manifests", "ManifestsConfig"),
    "convert": Command("jobs.config.results", "ConvertConfig", ("data.uri", "output.uri")),
}
# Those that have settings. The settings of retry are read from the run that it repairs, so they are in no file.
CONFIGURED: Mapping[str, Command] = {**COMMANDS, "retry": Command("jobs.config.segment", "RetryConfig")}


OPTIONS = ("--config", "--print-config", "--dry-run", "--quiet", "--help")  # of every command that has settings


def read_settings(name: str, file: Path | None, words: Sequence[str] | None) -> Any:
    """The validated configuration of one command line.

    Args:
        name: of the command, a key of COMMANDS.
        file: value of `--config`.
        words: `key=value` and the words that the command takes, in any order. They win over the file.

    Raises:
        ConfigError: as `load_config`; where keys are missing, the last line is the command's usage.
    """
    from jobs.config.load import IncompleteError, load_config, required_keys  # pydantic; `--help` does not need it

    command = COMMANDS[name]
    try:
        return load_config(command.config, file, _overrides(name, words), folder=name)
    except IncompleteError as error:
        given = (*command.words, command.list_word)
        keys = [f"{key}=..." for key in required_keys(command.config) if key not in given]
        line = f"{command.metavar.removesuffix('key=value')}{' '.join([*keys, '[key=value]...'])}"
        raise IncompleteError(f"{error}\nusage: maskfleet {name} [--config FILE] {line}") from None


def print_settings(name: str, file: Path | None, words: Sequence[str] | None) -> str:
    """The configuration of one command line as commented YAML; keys may be missing. Arguments as `read_settings`."""
    from jobs.config.load import print_config

    return print_config(COMMANDS[name].config, file, _overrides(name, words), name)


def split_retry(words: Sequence[str] | None) -> tuple[str, list[str]]:
    """The run's URI and the settings, from the words of `maskfleet retry`, in any order.

    Raises:
        ConfigError: there is not exactly one URI.
    """
    from jobs.config.load import ConfigError, is_override

    uris = [word for word in words or () if not is_override(word)]
    if len(uris) != 1:
        raise ConfigError("retry: name one run, as in: maskfleet retry RUN [key=value]...")
    return uris[0], [word for word in words or () if is_override(word)]


def _overrides(name: str, words: Sequence[str] | None) -> list[str]:
    """The words of a command line as `key=value`."""
    from jobs.config.load import ConfigError, is_override, similar_key

    command = COMMANDS[name]
    overrides = [word for word in words or () if is_override(word)]
    plain_words = [word for word in words or () if not is_override(word)]
    dash = "--" if command.list_word else "-"  # a photo's name may begin with one
    if option := next((word for word in plain_words if word.startswith(dash)), None):
        key = similar_key(command.config, option.strip("-").partition("=")[0].replace("-", "_"))
        hint = next(iter(difflib.get_close_matches(option, OPTIONS, 1)), key and f"{key}=...")
        raise ConfigError(f"{option}: {name} has no such option{f'; did you mean {hint}?' if hint else ''}")
    if command.list_word and plain_words:
        # As JSON, which is YAML: a name may hold any character.
        return [*overrides, f"{command.list_word}={json.dumps(plain_words)}"]
    if command.earlier_word and len(plain_words) > 1:
        earlier, plain_words = plain_words[:-1], plain_words[-1:]
        overrides.append(f"{command.earlier_word}={json.dumps(earlier)}")
    free_keys = [key for key in command.words if not any(word.startswith(f"{key}=") for word in overrides)]
    overrides += [f"{key}={word}" for key, word in zip(free_keys, plain_words)]
    return overrides + plain_words[len(free_keys) :]  # one too many is not understood, and said to be
