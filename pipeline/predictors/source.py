"""Source of a user's predictor: finds its class by name, installed or in a folder, and tells its code by a hash."""

from __future__ import annotations

import copy
import importlib
import json
import math
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.manifest import sha256_of, to_json
from pipeline.predictors.contract import Segmenter
from pipeline.run_spec import PredictorSpec, RunCategory, RunModel, RunSpec
from pipeline.storage.cache import cached_folder

MOST_BYTES = 8 << 20  # of a folder of code, which travels to every worker
MOST_FILES = 1_000
_COPY = "predictor-"  # begins the names of cache folders that hold a predictor's code, before its hash
_IN_COPY = re.compile(rf"/maskfleet/{_COPY}[0-9a-f]{{64}}(/|$)")
_MAX_INT32 = 2**31 - 1


class PredictorError(ValueError):
    """A predictor cannot be used; the message names the setting and the reason."""


@dataclass(frozen=True)
class PredictorSource:
    """Where a predictor comes from, as it travels to the workers.

    Attributes:
        name: "package.module:Class".
        settings: what the class is called with, JSON values by name.
        files: all files of `segment.predictor_path`, bytes by path inside it, for a module that lies there; None for
            one that is installed.
    """

    name: str
    settings: Mapping[str, Any]
    files: Mapping[str, bytes] | None

    def open(self) -> OpenPredictor:
        """Imports the class and builds a predictor, which has not loaded anything yet; its prints go where they go.

        A folder's code is imported from a copy in this machine's cache, at the end of the import path, and takes the
        place of what an earlier call has imported from another copy.

        Raises:
            PredictorError: the class cannot be imported, lacks what the contract asks for, or refuses its settings.
        """
        module_name, _, class_name = self.name.partition(":")
        module = self._import(module_name)
        segmenter = self._build(_class_of(module, class_name, self.name))
        code = _hash_installed(module) if self.files is None else hash_files(self.files)
        spec = PredictorSpec(
            name=self.name,
            settings=self.settings,
            code_sha256=code,
            identity=self._identity(segmenter),
            in_channels=self._in_channels(segmenter),
        )
        categories = self._categories(segmenter)
        sha256 = sha256_of(to_json({"predictor": asdict(spec), "categories": [asdict(each) for each in categories]}))
        return OpenPredictor(segmenter, RunModel(sha256=sha256, spec={}, categories=categories, predictor=spec))

    def check(self, timeout_s: float) -> RunModel:
        """What a run of the predictor holds in run.json, by `open` in a process of its own, which then ends.

        So whatever the code imports, prints (to stderr), starts or breaks does not stay. Nothing is loaded.

        Raises:
            PredictorError: as `open`; or the process crashes, or has no answer after `timeout_s`.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_answer, args=(self, theirs))
        child.start()
        theirs.close()
        try:
            if not ours.poll(timeout_s):
                raise PredictorError(
                    f"segment.predictor: {self.name} is not imported and built within segment.predictor_timeout_s="
                    f"{timeout_s:g}; what takes time belongs into load()"
                )
            answer = json.loads(ours.recv_bytes())
        except EOFError:
            child.join()
            raise PredictorError(
                f"segment.predictor: {self.name} crashes the process that imports it (exit code {child.exitcode})"
            ) from None
        finally:
            child.kill()
            child.join()
            ours.close()
        if isinstance(answer, str):
            raise PredictorError(answer)
        return RunSpec.from_json(answer).model

    def _import(self, module_name: str) -> ModuleType:
        """The module, in a folder's case from its copy and from nowhere else."""
        _forget_copies()
        if self.files is not None:
            sys.path.append(str(self._place(self.files)))
            importlib.invalidate_caches()
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            hint = ""
            if self.files is None and isinstance(error, ModuleNotFoundError) and _is_part(error.name, module_name):
                hint = "; of a module that is not installed, give the folder: segment.predictor_path=FOLDER"
            raise PredictorError(
                f"segment.predictor: {self.name} cannot be imported: {in_words(error)}{hint}"
            ) from error
        if self.files is not None and not _is_in_copy(module):
            raise PredictorError(
                f"segment.predictor: {module_name} is not in segment.predictor_path; {_place_of(module)} would be "
                "imported, rename yours or leave out the folder"
            )
        return module

    def check_names(self) -> None:
        """Raises PredictorError for a module of the folder that has the name of one that is imported in its place.

        Some may be imported for other reasons: this is for a process that does nothing else.
        """
        names = {name.split("/")[0].removesuffix(".py") for name in self.files or () if name.endswith(".py")}
        for name in sorted(names & sys.modules.keys()):
            if not _is_in_copy(sys.modules[name]):
                where = _place_of(sys.modules[name]) or "a part of Python"
                raise PredictorError(
                    f"segment.predictor_path: its module {name!r} has the name of {where}, which is imported in its "
                    "place; rename yours"
                )

    def _place(self, files: Mapping[str, bytes]) -> Path:
        """The folder of this machine's cache that holds a copy of the code."""

        def fill(folder: Path) -> None:
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)

        try:
            folder = cached_folder(f"{_COPY}{hash_files(files)}", fill)
            changed = next((name for name, data in files.items() if (folder / name).read_bytes() != data), None)
        except OSError as error:
            raise PredictorError(f"segment.predictor_path: its copy cannot be made: {error}") from error
        if changed is not None:
            raise PredictorError(f"segment.predictor_path: its copy {folder / changed} was changed; delete {folder}")
        return folder

    def _build(self, kind: Any) -> Segmenter:
        try:
            return kind(**copy.deepcopy(dict(self.settings)))
        except (Exception, SystemExit) as error:
            raise PredictorError(f"segment.predictor_settings: {self.name} refuses them: {in_words(error)}") from error

    def _identity(self, segmenter: Any) -> str:
        if not hasattr(segmenter, "identity"):
            return ""
        try:
            identity = segmenter.identity()
        except (Exception, SystemExit) as error:
            raise PredictorError(f"segment.predictor: {self.name}.identity() failed: {in_words(error)}") from error
        if not isinstance(identity, str):
            raise PredictorError(f"segment.predictor: {self.name}.identity() gives {type(identity).__name__}, no text")
        return identity

    def _in_channels(self, segmenter: Any) -> int:
        channels = getattr(segmenter, "in_channels", 3)
        if not isinstance(channels, int) or not 1 <= channels <= 64:
            raise PredictorError(f"segment.predictor: {self.name}.in_channels is {channels!r}; allowed is 1 to 64")
        return channels

    def _categories(self, segmenter: Any) -> tuple[RunCategory, ...]:
        try:
            pairs = [(each.id, each.name) for each in segmenter.categories]
        except Exception as error:
            raise PredictorError(
                f"segment.predictor: {self.name} needs categories, a list of maskfleet.Category(id, name): "
                f"{in_words(error)}"
            ) from error
        for number, name in pairs:
            is_id = isinstance(number, int) and not isinstance(number, bool) and abs(number) <= _MAX_INT32
            if not is_id or not isinstance(name, str) or not name:
                raise PredictorError(
                    f"segment.predictor: {self.name} has the category {(number, name)!r}; allowed is a whole number "
                    "and a name"
                )
        if not pairs or any(len(set(values)) < len(pairs) for values in zip(*pairs)):
            raise PredictorError(
                f"segment.predictor: {self.name} has the categories {pairs}; at least one is needed, and each id and "
                "name once"
            )
        return tuple(RunCategory(number, name) for number, name in pairs)


@dataclass(frozen=True)
class OpenPredictor:
    """A predictor that has accepted its settings and loaded nothing, and what a run of it holds in run.json."""

    segmenter: Segmenter
    model: RunModel

    def load(self, device: str) -> None:
        """Has it load what it computes with, where it has something to load.

        Raises:
            PredictorError: it failed.
        """
        try:
            getattr(self.segmenter, "load", lambda device: None)(device)
        except (Exception, SystemExit) as error:
            assert self.model.predictor is not None
            raise PredictorError(
                f"segment.predictor: {self.model.predictor.name} cannot load: {in_words(error)}"
            ) from error


def _answer(source: PredictorSource, parent: Connection) -> None:
    """Program of the process of `PredictorSource.check`: answers with the model's JSON, or a text that says why not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal it goes to the parent, too, which ends this process
    os.dup2(2, 1)
    try:
        source.check_names()
        answer: object = RunSpec(schema_version=0, model=source.open().model).to_json()
        source.check_names()
    except PredictorError as error:
        answer = str(error)
    parent.send_bytes(to_json(answer))
    parent.close()


def in_words(error: BaseException) -> str:
    """An error of the user's code in one line: its class, its text, and of a broken module the line."""
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}".rstrip(": ")


def read_folder(folder: Path) -> dict[str, bytes]:
    """All files of a folder of code, bytes by path inside it; hidden ones and what Python compiled are left out.

    Raises:
        PredictorError: it is no folder, cannot be read, holds no Python file, or more than code.
    """
    key = "segment.predictor_path"
    if not folder.is_dir():
        raise PredictorError(
            f"{key}: {str(folder)!r} is not a folder; allowed is one that holds the predictor's module"
        )
    files: dict[str, bytes] = {}
    size = 0
    try:
        for path in _iter_files(folder):
            if not path.is_file() or not str(path).isprintable():
                raise PredictorError(f"{key}: {str(path)!r} is no file with a printable name")
            size += path.stat().st_size
            if size > MOST_BYTES or len(files) == MOST_FILES:
                raise PredictorError(
                    f"{key}: {folder} holds more than {MOST_BYTES >> 20} MiB or {MOST_FILES:,} files (the last one "
                    f"read is {path}); allowed is a folder of code alone, which is hashed and sent to the workers: "
                    "name weights and data in segment.predictor_settings"
                )
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    except OSError as error:
        raise PredictorError(f"{key}: {folder} cannot be read: {error}") from error
    if not any(name.endswith(".py") for name in files):
        raise PredictorError(f"{key}: {folder} holds no Python file")
    return files


def hash_files(files: Mapping[str, bytes]) -> str:
    """The SHA-256 over the names and contents of files."""
    return sha256_of(to_json({name: sha256_of(data) for name, data in files.items()}))


def check_settings(value: Any, key: str = "predictor_settings") -> None:
    """Raises ValueError where settings hold what JSON does not."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{key} has the key {name!r}; allowed is text")
            check_settings(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_settings(item, f"{key}[{index}]")
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{key} is {value!r}; allowed are text, finite numbers, true, false, null, lists and mappings")


def _iter_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, folders behind links included, in the order of their names."""
    seen = set()

    def raise_it(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=raise_it, followlinks=True):
        real = os.path.realpath(place)
        is_new = real not in seen  # else a link back up
        seen.add(real)
        folders[:] = sorted(name for name in folders if is_new and not _is_left_out(name))
        yield from (Path(place, name) for name in sorted(names) if is_new and not _is_left_out(name))


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc")


def _forget_copies() -> None:
    """Takes what was imported from copies of code out of this process: two may have modules of one name."""
    sys.path[:] = [entry for entry in sys.path if not _IN_COPY.search(entry)]
    for name in [name for name, module in list(sys.modules.items()) if _is_in_copy(module)]:
        del sys.modules[name]


def _is_in_copy(module: ModuleType) -> bool:
    return _IN_COPY.search(_place_of(module)) is not None


def _place_of(module: Any) -> str:
    """The file of a module; of a package without one its folder; "" of what is built into Python."""
    names = getattr(module, "__dict__", {})  # without what some modules make of a name that they lack
    file = names.get("__file__")
    if isinstance(file, str):
        return file
    try:
        return next((str(each) for each in names.get("__path__", ())), "")
    except KeyError:  # of a folder without __init__.py in a package that is not loaded any more
        return ""


def _is_part(missing: str | None, module_name: str) -> bool:
    """Whether the module that was not found is the wanted one or a package around it."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _class_of(module: ModuleType, class_name: str, name: str) -> type:
    """The class of a module, which has what the contract asks for."""
    kind = getattr(module, class_name, None)
    if not isinstance(kind, type):
        fault = "is no class" if hasattr(module, class_name) else "is not there"
        raise PredictorError(f"segment.predictor: {name}: {class_name} {fault}; allowed is package.module:Class")
    for method, is_needed in (("predict", True), ("load", False), ("identity", False)):
        value = getattr(kind, method, None)
        if (is_needed or value is not None) and not callable(value):
            fault = "lacks the method" if value is None else "has no method but a value"
            raise PredictorError(f"segment.predictor: {name} {fault} {method!r}; see docs/predictors.md")
    return kind


def _hash_installed(module: ModuleType) -> str:
    """The SHA-256 over the Python files of the installed package that a module belongs to."""
    parts = module.__name__.split(".")
    names = (".".join(parts[: number + 1]) for number in range(len(parts)))
    top = next((name for name in names if getattr(sys.modules.get(name), "__file__", None)), None)
    if top is None:
        raise PredictorError(f"segment.predictor: {module.__name__} has no file; allowed is a module of Python code")
    file = Path(_place_of(sys.modules[top]))
    paths = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    try:
        return hash_files({path.relative_to(file.parent).as_posix(): path.read_bytes() for path in paths})
    except OSError as error:
        raise PredictorError(f"segment.predictor: its code cannot be read: {error}") from error
