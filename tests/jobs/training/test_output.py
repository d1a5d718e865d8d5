"""The output of a training: incomplete and altered checkpoints, pruning, and the types of metrics.parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from jobs.training.output import TrainingOutput
from model.categories import Category
from model.checkpoint import save_checkpoint
from model.checkpoint_folder import CHECKPOINT_MARKER
from model.network import build_model
from tests.specs import small_spec

SPEC = small_spec(1)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(SPEC)


def write(output: TrainingOutput, step: int, model: torch.nn.Module) -> None:
    """Saves a checkpoint of `model` as that of a step."""
    output.save(
        step,
        lambda folder: save_checkpoint(
            folder, model=model, spec=SPEC, categories=[Category(1, "a")], progress={"step": step}
        ),
    )


def test_the_newest_readable_checkpoint_is_loaded_and_bad_ones_are_set_aside(tmp_path: Path, model: torch.nn.Module):
    output = TrainingOutput(str(tmp_path))
    assert output.load_newest() is None and output.steps() == []
    for step in (5, 100, 20):
        write(output, step, model)
    (tmp_path / "checkpoints/step-00000100/model.safetensors").write_bytes(b"torn")
    (tmp_path / "checkpoints/step-00000300").mkdir()
    (tmp_path / "checkpoints/step-00000300/spec.json").write_text("{}")

    assert output.steps() == [5, 20, 100]
    newest = output.load_newest()  # without on_bad nothing is moved
    assert newest is not None and newest[0] == 20 and (tmp_path / "checkpoints/step-00000300").exists()

    sentences: list[str] = []
    newest = output.load_newest(on_bad=sentences.append)
    assert newest is not None and newest[0] == 20 and newest[1].progress == {"step": 20}
    assert len(sentences) == 2
    assert "step-00000300 is incomplete" in sentences[0] and "model.safetensors has 4 bytes" in sentences[1]
    assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["step-00000100-1", "step-00000300-1"]
    assert output.steps() == [5, 20] and output.torn_names() == []


def test_a_complete_checkpoint_is_never_written_again_and_an_incomplete_one_is(tmp_path: Path, model: torch.nn.Module):
    output = TrainingOutput(str(tmp_path))
    write(output, 1, model)
    output.save(1, lambda folder: pytest.fail("a complete checkpoint is there"))
    marker = tmp_path / "checkpoints/step-00000001" / CHECKPOINT_MARKER
    marker.unlink()
    write(output, 1, model)
    assert marker.is_file()


def test_pruning_keeps_the_newest_and_the_chosen(tmp_path: Path, model: torch.nn.Module):
    output = TrainingOutput(str(tmp_path))
    for step in range(1, 6):
        write(output, step, model)
    assert output.prune(None) == []
    assert output.prune(2, keep=[1]) == [2, 3]
    assert output.steps() == [1, 4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000001",
        "step-00000004",
        "step-00000005",
    ]


def test_metrics_keep_their_rows_types_and_missing_values(tmp_path: Path):
    output = TrainingOutput(str(tmp_path))
    assert output.read_metrics() == []
    rows = [{"step": 1, "epoch": 0, "loss": 1.5, "n": 2}, {"step": 2, "epoch": 0.5, "segm_AP": 0.25}]
    output.write_metrics(rows)
    assert output.read_metrics() == rows
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "step": "int64",
        "epoch": "double",
        "loss": "double",
        "n": "int64",
        "segm_AP": "double",
    }
    assert table["loss"].to_pylist() == [1.5, None]


def test_settings_are_read_back_and_a_file_that_holds_none_is_named(tmp_path: Path):
    output = TrainingOutput(str(tmp_path))
    assert output.read_config() is None
    output.write_config({"train": {"max_steps": 3, "clip_norm": None}})
    assert output.read_config() == {"train": {"max_steps": 3, "clip_norm": None}}
    (tmp_path / "config.yaml").write_text("- a list")
    with pytest.raises(ValueError, match=r"config\.yaml holds list, not a mapping"):
        output.read_config()
