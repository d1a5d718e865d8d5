"""Users' predictors by name: found in their folder, told by their code, refused in words where they cannot be used."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.predictors.source import (
    MOST_BYTES,
    MOST_FILES,
    PredictorError,
    PredictorSource,
    check_settings,
    hash_files,
    read_folder,
)
from pipeline.run_spec import RunCategory, RunModel
from tests.paths import ROOT
from tests.pipeline.predictors.written import FAULTY, USER_CODE, source_of, write_code, write_example

MINIMAL = """
from maskfleet import Category

class Mine:
    categories = [Category(1, "a")]
    def predict(self, images): return {answer!r}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, and the import path as it was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "cache"


def test_the_example_of_the_page_opens_and_answers(tmp_path: Path) -> None:
    opened = source_of(write_example(tmp_path / "code"), "colours:Colours", min_share=0.1).open()
    assert opened.model.categories == (RunCategory(1, "red"), RunCategory(2, "green"), RunCategory(3, "blue"))
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 5:, 1] = 200
    opened.load("cpu")
    (answer,) = opened.segmenter.predict([image])
    assert answer.labels == [2] and np.array_equal(answer.masks[0], image[..., 1] > 0)
    with pytest.raises(
        PredictorError, match=r"segment\.predictor_settings: colours:Colours refuses them: ValueError: min"
    ):
        source_of(tmp_path / "code", "colours:Colours", min_share=2).open()


def test_the_identity_is_the_class_its_settings_its_code_and_what_it_says(tmp_path: Path) -> None:
    def model_of(text: str, folder: str = "code", name: str = "mine:Mine", **settings: object) -> RunModel:
        code = (
            'class Other(Mine):\n    def __init__(self, a=1): self.a = a\n    def identity(self): return "w" * self.a\n'
        )
        return source_of(write_code(tmp_path / folder, mine=text + code), name, **settings).open().model

    first = model_of(MINIMAL.format(answer=[]))
    assert first == model_of(MINIMAL.format(answer=[]), "elsewhere"), "where the code lies is no part of it"
    others = [
        model_of(MINIMAL.format(answer=[1]), "other"),
        model_of(MINIMAL.format(answer=[]).replace('"a"', '"b"'), "third"),
        model_of(MINIMAL.format(answer=[]), name="mine:Other"),
        model_of(MINIMAL.format(answer=[]), name="mine:Other", a=2),
    ]
    assert len({each.sha256 for each in [first, *others]}) == 5
    predictor = others[-1].predictor
    assert predictor is not None and (predictor.identity, predictor.settings) == ("ww", {"a": 2})
    assert others[0].predictor is not None and others[0].categories == first.categories


def test_two_folders_with_modules_of_one_name_are_two_predictors_in_one_process(tmp_path: Path) -> None:
    for number in (1, 2, 1):
        folder = write_code(tmp_path / str(number), mine=MINIMAL.format(answer=[number]), helper=f"NUMBER = {number}")
        (folder / "mine.py").write_text((folder / "mine.py").read_text() + "        \nimport helper\n")
        opened = source_of(folder, "mine:Mine").open()
        answer: list[object] = list(opened.segmenter.predict([]))
        assert answer == [number] and sys.modules["helper"].NUMBER == number


def test_packages_and_data_beside_the_code_are_taken_along(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "code" / "own" / "deep", mine=MINIMAL.format(answer=[])).parents[1]
    (folder / "own" / "deep" / "mine.py").write_text(
        MINIMAL.format(answer=[]).replace('"a"', 'open(__file__[:-7] + "name.txt").read()')
    )
    (folder / "own" / "deep" / "name.txt").write_text("cat")
    (folder / ".hidden").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / "own" / "loop").symlink_to(folder)
    files = read_folder(folder)
    assert sorted(files) == ["own/deep/mine.py", "own/deep/name.txt"]
    model = PredictorSource("own.deep.mine:Mine", {}, files).open().model
    assert model.categories == (RunCategory(1, "cat"),)
    assert {path.name for path in folder.rglob("*.pyc")} == {"x.pyc"}, "nothing is written into the user's folder"
    (folder / "own" / "deep" / "name.txt").write_text("dog")
    assert PredictorSource("own.deep.mine:Mine", {}, read_folder(folder)).open().model.sha256 != model.sha256


def test_a_folder_of_a_package_that_is_gone_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray leaves such ones among the modules."""
    (tmp_path / "site" / "outer" / "inner").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.import_module("outer.inner")
    monkeypatch.delitem(sys.modules, "outer")
    source_of(write_example(tmp_path / "code"), "colours:Colours").open()
    monkeypatch.undo()
    del sys.modules["outer"], sys.modules["outer.inner"]


def test_a_folder_that_is_no_code_is_refused_in_words(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "code", mine="")
    with (folder / "weights.pt").open("wb") as file:
        file.truncate(MOST_BYTES)
    assert read_folder(folder).keys() == {"mine.py", "weights.pt"}
    (folder / "more.txt").write_text("x")
    with pytest.raises(PredictorError, match=r"holds more than 8 MiB or 1,000 files .* name weights and data in"):
        read_folder(folder)
    many = write_code(tmp_path / "many", **{f"m{i}": "" for i in range(MOST_FILES)})
    assert len(read_folder(many)) == MOST_FILES
    (many / "one_more.py").write_text("")
    with pytest.raises(PredictorError, match="holds more than"):
        read_folder(many)
    os.mkfifo(folder / "pipe")
    (folder / "more.txt").unlink()
    with pytest.raises(PredictorError, match="pipe' is no file with a printable name"):
        read_folder(folder)
    odd = write_code(tmp_path / "odd", mine="")
    Path(os.fsdecode(os.fsencode(odd) + b"/a\xff.txt")).write_text("")
    with pytest.raises(PredictorError, match="is no file with a printable name"):
        read_folder(odd)
    (tmp_path / "empty").mkdir()
    for place, words in ((tmp_path / "none", "is not a folder"), (tmp_path / "empty", "holds no Python file")):
        with pytest.raises(PredictorError, match=words):
            read_folder(place)


def test_the_copy_in_the_cache_is_the_code(tmp_path: Path, cache: Path) -> None:
    source = source_of(write_code(tmp_path / "code", mine=MINIMAL.format(answer=[])), "mine:Mine")
    source.open()
    assert source.files is not None
    copy = cache / "maskfleet" / f"predictor-{hash_files(source.files)}" / "mine.py"
    copy.write_text(MINIMAL.format(answer=["other"]))
    with pytest.raises(PredictorError, match="was changed; delete"):
        source.open()


MODULES = {
    "broken": "import no_such_package",
    "torn": "class Mine(:",
    "leaving": "import sys\nsys.exit(3)",
    "types": MINIMAL,
    "pieces": """
        from maskfleet import Category
        class Silent:
            categories = [Category(1, "a")]
        class Value(Silent):
            predict = 3
        class Nameless:
            def predict(self, images): ...
        class Texts(Nameless):
            categories = ["a"]
        class NoClass(Nameless):
            categories = []
        class Twice(Nameless):
            categories = [Category(1, "a"), Category(1, "b")]
        class Wide(Nameless):
            categories = [Category(2**31, "a")]
        class Loading(Nameless):
            categories = [Category(1, "a")]
            load = "now"
        class Numbered(Nameless):
            categories = [Category(1, "a")]
            def identity(self): return 7
        class Failing(Numbered):
            def identity(self): raise OSError("no weights")
        class Deep(Nameless):
            categories, in_channels = [Category(1, "a")], 0
        class Leaving(Numbered):
            def __init__(self): raise SystemExit("bye")
        class Abstract(Numbered):
            def identity(self): return ""
            def load(self, device): raise FileNotFoundError("weights.pt")
        mine = Nameless()
    """,
}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("absent:Mine", {}, "absent:Mine cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        ("broken:Mine", {}, "broken:Mine cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("torn:Mine", {}, "torn:Mine cannot be imported: SyntaxError: invalid syntax (torn.py, line 1)"),
        ("leaving:Mine", {}, "leaving:Mine cannot be imported: SystemExit: 3"),
        ("pieces:Mine", {}, "pieces:Mine: Mine is not there; allowed is package.module:Class"),
        ("pieces:mine", {}, "pieces:mine: mine is no class"),
        ("pieces:Silent", {}, "pieces:Silent lacks the method 'predict'"),
        ("pieces:Value", {}, "pieces:Value has no method but a value 'predict'"),
        ("pieces:Loading", {}, "pieces:Loading has no method but a value 'load'"),
        ("pieces:Nameless", {}, "pieces:Nameless needs categories, a list of maskfleet.Category(id, name)"),
        ("pieces:Texts", {}, "pieces:Texts needs categories"),
        ("pieces:NoClass", {}, "at least one is needed"),
        ("pieces:Twice", {}, "each id and name once"),
        ("pieces:Wide", {}, "has the category (2147483648, 'a')"),
        ("pieces:Numbered", {}, "pieces:Numbered.identity() gives int, no text"),
        ("pieces:Failing", {}, "pieces:Failing.identity() failed: OSError: no weights"),
        ("pieces:Deep", {}, "pieces:Deep.in_channels is 0; allowed is 1 to 64"),
        ("pieces:Leaving", {}, "pieces:Leaving refuses them: SystemExit: bye"),
        ("pieces:Nameless", {"size": 3}, "segment.predictor_settings: pieces:Nameless refuses them: TypeError: "),
    ],
)
def test_a_predictor_that_cannot_be_used_is_refused_in_words(
    name: str, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    modules = {key: text for key, text in MODULES.items() if key != "types"}
    with pytest.raises(PredictorError) as caught:
        source_of(write_code(tmp_path / "code", **modules), name, **settings).open()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_module_in_whose_place_another_would_be_imported_is_refused(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "code", types="", mine=MINIMAL.format(answer=[]))
    with pytest.raises(
        PredictorError, match=r"its module 'types' has the name of .*types\.py, which is imported in its"
    ):
        source_of(folder, "mine:Mine").check(60)
    assert source_of(folder, "mine:Mine").open(), "a worker may have loaded more, and the folder may have more"
    with pytest.raises(PredictorError, match=r"model is not in segment\.predictor_path; .*model/__init__\.py would be"):
        source_of(write_code(tmp_path / "other", model=MINIMAL.format(answer=[])), "model:Mine").check(60)
    helped = write_code(tmp_path / "helped", wave="X = 1", mine="import wave\n" + MINIMAL.format(answer=[]))
    with pytest.raises(PredictorError, match=r"its module 'wave' has the name of .*wave\.py, which is imported in its"):
        source_of(helped, "mine:Mine").check(60)
    with pytest.raises(PredictorError, match=r"json is not in segment\.predictor_path"):
        source_of(write_code(tmp_path / "third", mine=""), "json:JSONDecoder").open()


def test_an_installed_predictor_is_told_by_its_package(tmp_path: Path) -> None:
    """As another process sees it, on whose import path the package is."""
    package = write_code(tmp_path / "site" / "own" / "deep", __init__="", mine=MINIMAL.format(answer=[])).parent
    (package / "__init__.py").write_text("")
    program = (
        "from pipeline.predictors.source import PredictorSource\n"
        "print(PredictorSource('own.deep.mine:Mine', {}, None).open().model.predictor.code_sha256)"
    )

    def hashed() -> str:
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path += [{str(ROOT)!r}, {str(tmp_path / 'site')!r}]\n{program}",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    first = hashed()
    assert len(first.strip()) == 64 and hashed() == first
    (package / "helper.py").write_text("X = 1")
    assert hashed() != first
    with pytest.raises(PredictorError, match=r"cannot be imported.*give the folder: segment\.predictor_path=FOLDER"):
        PredictorSource("no_such_module:Mine", {}, None).open()
    with pytest.raises(PredictorError, match="lacks the method 'predict'"):
        PredictorSource("subprocess:Popen", {"args": ["false"]}, None).open()


def test_what_the_code_starts_prints_and_breaks_stays_in_the_process_that_checks_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = "import ctypes, threading, time\nprint('imported')\n" + MINIMAL.format(answer=[])
    endings = {
        "noisy": "    def __init__(self): print('built')",
        "busy": "    def __init__(self): threading.Thread(target=time.sleep, args=(3600,)).start()",
        "crash": "    def __init__(self): ctypes.string_at(0)",
        "slow": "    def __init__(self): time.sleep(3600)",
        "wrong": "    def __init__(self): raise ValueError('no')",
    }
    code = write_code(tmp_path / "code", **{name: head + ending for name, ending in endings.items()})
    checked = source_of(code, "noisy:Mine").check(60)
    assert capfd.readouterr() == ("", "imported\nbuilt\n") and "noisy" not in sys.modules
    assert checked == source_of(code, "noisy:Mine").open().model
    source_of(code, "busy:Mine").check(60)
    with pytest.raises(PredictorError, match=r"crash:Mine crashes the process that imports it \(exit code -11\)"):
        source_of(code, "crash:Mine").check(60)
    with pytest.raises(
        PredictorError, match=r"slow:Mine is not imported and built within .*=3; what takes time belongs"
    ):
        source_of(code, "slow:Mine").check(3)
    with pytest.raises(PredictorError, match=r"refuses them: ValueError: no$"):
        source_of(code, "wrong:Mine").check(60)


def test_what_load_raises_is_said_in_words(tmp_path: Path) -> None:
    opened = source_of(write_code(tmp_path / "code", pieces=MODULES["pieces"]), "pieces:Abstract").open()
    with pytest.raises(PredictorError, match=r"pieces:Abstract cannot load: FileNotFoundError: weights\.pt"):
        opened.load("cpu")


def test_settings_belong_to_the_run_and_not_to_the_predictor(tmp_path: Path) -> None:
    text = MINIMAL.format(answer=[]) + "    def __init__(self, names): names.append(3)\n"
    source = source_of(write_code(tmp_path / "code", mine=text), "mine:Mine", names=[1])
    first = source.open().model
    assert source.settings == {"names": [1]} and source.open().model == first
    assert replace(source, settings={"names": [2]}).open().model.sha256 != first.sha256


def test_other_settings_than_json_are_refused() -> None:
    check_settings({"a": [1, 2.5, None, True, {"b": "c"}]})
    for wrong, words in (
        ({"a": {1: 2}}, "predictor_settings.a has the key 1"),
        ({"a": [float("nan")]}, r"predictor_settings\.a\[0\] is nan"),
        ({"a": b"x"}, "predictor_settings.a is b'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            check_settings(wrong)


def test_the_folder_of_the_tests_opens() -> None:
    assert [each.id for each in source_of(USER_CODE, FAULTY, form="rles").open().model.categories] == [3, 5]
