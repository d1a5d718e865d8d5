"""What SECURITY.md says of the code, checked on its text; what can be seen only while it runs has tests of its own."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from jobs.commands import COMMANDS
from jobs.config.load import ConfigError, load_config
from jobs.config.segment import SegmentConfig
from pipeline.storage.base import Secret, StorageSettings
from tests.paths import ROOT

SOURCES = sorted(path for layer in ("maskfleet", "jobs", "pipeline", "model") for path in (ROOT / layer).rglob("*.py"))
PLANTED = "planted-7f3a9c51-secret"
UNPICKLING = {
    "pickle.load",
    "pickle.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "pd.read_pickle",
    "pandas.read_pickle",
}
YAML = {f"yaml.{kind}load{all}" for kind in ("", "full_", "unsafe_") for all in ("", "_all")}
SHELLS = {"os.system", "os.popen", "asyncio.create_subprocess_shell"}
SHELLS |= {"subprocess.getoutput", "subprocess.getstatusoutput"}
EVALUATION = {"eval", "exec", "__import__"}


def faults_of(text: str) -> list[str]:
    """Calls in a source that could run what a file or a user has written."""
    faults = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in UNPICKLING | YAML | SHELLS | EVALUATION:
            faults.append(name)
        if name == "torch.load" and given.get("weights_only") != "True":
            faults.append("torch.load without weights_only=True")
        if given.get("shell", "False") != "False":
            faults.append(f"{name} with a shell")
        if given.get("allow_pickle", "False") != "False":
            faults.append(f"{name} with allow_pickle")
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_what_a_file_or_a_user_has_written(path: Path) -> None:
    assert faults_of(path.read_text()) == []


def test_the_rule_itself_sees_what_is_forbidden() -> None:
    text = "pickle.load(f)\nyaml.load(t)\ntorch.load(f)\nnp.load(f, allow_pickle=True)\nos.system(s)\neval(s)\n"
    assert len(faults_of(text + "subprocess.run(s, shell=True)\ntorch.load(f, weights_only=True)\n")) == 7


def test_every_credential_of_a_configuration_is_a_secret() -> None:
    for name in ("access_key", "secret_key", "session_token"):
        assert get_type_hints(StorageSettings)[name] == Secret | None


@pytest.mark.parametrize("name", sorted(name for name in COMMANDS if "storage" in COMMANDS[name].config.model_fields))
def test_a_configuration_never_shows_its_credentials(name: str) -> None:
    kind = COMMANDS[name].config
    secrets: Any = {"access_key": Secret(PLANTED), "secret_key": Secret(PLANTED), "session_token": Secret(PLANTED)}
    config: Any = kind.model_construct(storage=StorageSettings(**secrets))
    assert PLANTED not in repr(config) + str(config) + repr(config.storage) + config.model_dump_json()


@pytest.mark.parametrize(
    "word",
    [
        f"storage.secret_key=[{PLANTED}]",
        f"storage.session_token={{a: {PLANTED}}}",
        f"storage.secretkey={PLANTED}",
        f"Storage.secret_key={PLANTED}",
        f"storage.endpoint_url=https://user:{PLANTED}@store",
        f"storage.secret_key={PLANTED}",
    ],
)
def test_a_wrong_word_with_a_secret_in_it_is_refused_without_showing_it(word: str) -> None:
    places = ["model.checkpoint=m", "input.uri=i", "output.uri=o"]
    with pytest.raises(Exception) as caught:
        load_config(SegmentConfig, None, [*places, word])
    assert isinstance(caught.value, ValueError | ConfigError) and PLANTED not in str(caught.value)
