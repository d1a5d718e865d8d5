"""Checkpoints: they are read as they were written, and incomplete, changed or foreign folders are refused."""

import functools
import hashlib
import json

import pytest
import torch

from model.categories import Category
from model.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER, CheckpointError, is_checkpoint
from model.network import build_model
from model.spec import ModelSpec

SPEC = ModelSpec.tiny(num_classes=2)
CATEGORIES = (Category(3, "cup"), Category(7, "bowl"))


@pytest.fixture
def folder(tmp_path):
    model = build_model(SPEC)
    state = {"optimizer": {"step": torch.tensor(5), "rates": [0.1, 0.2]}}
    save_checkpoint(
        tmp_path / "step-5",
        model=model,
        spec=SPEC,
        categories=CATEGORIES,
        progress={"step": 5},
        training_state=state,
    )
    return tmp_path / "step-5"


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    model = build_model(SPEC)
    sha256 = save_checkpoint(
        tmp_path / "c", model=model, spec=SPEC, categories=CATEGORIES, progress={"step": 7, "epoch": 1}
    )
    checkpoint = load_checkpoint(tmp_path / "c")
    assert (checkpoint.spec, checkpoint.categories, checkpoint.progress) == (
        SPEC,
        CATEGORIES,
        {"step": 7, "epoch": 1},
    )
    assert checkpoint.training_state is None
    assert sha256 == checkpoint.sha256 == hashlib.sha256((tmp_path / "c/model.safetensors").read_bytes()).hexdigest()
    built = checkpoint.build()
    assert not built.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor), name
    assert not [path for path in (tmp_path / "c").iterdir() if path.name.startswith(".")]


def test_training_state_holds_tensors_and_plain_containers_only(folder):
    assert load_checkpoint(folder, with_training_state=False).training_state is None
    state = load_checkpoint(folder).training_state
    assert state is not None
    assert state["optimizer"]["rates"] == [0.1, 0.2] and state["optimizer"]["step"] == 5

    class Other:
        pass

    with pytest.raises((AttributeError, CheckpointError)):
        target = folder.parent / "other"
        save_checkpoint(
            target,
            model=build_model(SPEC),
            spec=SPEC,
            categories=CATEGORIES,
            progress={},
            training_state={"object": Other()},
        )
        load_checkpoint(target)


def test_a_checkpoint_never_changes(folder):
    with pytest.raises(CheckpointError, match="never changes"):
        save_checkpoint(folder, model=build_model(SPEC), spec=SPEC, categories=CATEGORIES, progress={})


def test_a_cut_off_write_is_no_checkpoint_and_can_be_written_again(folder):
    (folder / CHECKPOINT_MARKER).unlink()
    assert not is_checkpoint(folder)
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(folder)
    save_checkpoint(folder, model=build_model(SPEC), spec=SPEC, categories=CATEGORIES, progress={"step": 6})
    assert load_checkpoint(folder).progress == {"step": 6}


@pytest.mark.parametrize("name", ["model.safetensors", "spec.json", "training_state.pt"])
def test_one_changed_byte_is_refused(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{folder}.*{name}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("damage", ["unlink", "cut"])
def test_a_missing_or_short_file_is_named(folder, damage):
    path = folder / "categories.json"
    if damage == "unlink":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"categories\.json"):
        load_checkpoint(folder)


def test_the_marker_cannot_name_files_elsewhere(folder):
    marker = json.loads((folder / CHECKPOINT_MARKER).read_text())
    marker["files"]["../other"] = {"bytes": 0, "sha256": ""}
    (folder / CHECKPOINT_MARKER).write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match="no file of the folder"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 2, "files": {}}', '{"format_version": 1, "files": 5}']
)
def test_a_malformed_marker_is_refused(folder, text):
    (folder / CHECKPOINT_MARKER).write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot read|format_version|not list"):
        load_checkpoint(folder)


def test_a_quantised_checkpoint_holds_both_and_its_hash_covers_both(tmp_path):
    model, parts = build_model(SPEC), {"maps.xml": b"<net/>", "maps.bin": bytes(8)}
    save = functools.partial(save_checkpoint, model=model, spec=SPEC, categories=CATEGORIES, progress={})
    plain = save(tmp_path / "plain")
    quantised = save(tmp_path / "int8", int8=parts)
    other = save(tmp_path / "other", int8={**parts, "maps.bin": bytes(9)})
    assert len({plain, quantised, other}) == 3
    checkpoint = load_checkpoint(tmp_path / "int8")
    assert checkpoint.int8 == parts and checkpoint.sha256 == quantised
    assert load_checkpoint(tmp_path / "plain").int8 == {}
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "int8")]
    assert weights[0] == weights[1]
    (tmp_path / "int8" / "int8-maps.bin").write_bytes(bytes(7) + b"1")
    with pytest.raises(CheckpointError, match=r"the sha256 of int8-maps.bin is not the one recorded"):
        load_checkpoint(tmp_path / "int8")
