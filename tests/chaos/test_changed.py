"""Inputs that change between two calls of a run: the weights under the same name, the plan, the photos."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.bulk.verify import verify_run
from pipeline.manifest import RunError, from_sealed_json, open_run, to_sealed_json
from pipeline.tables import load_images
from tests.chaos.runs import finish, segment_here, start

pytestmark = pytest.mark.usefixtures("ray_cluster")


def unfinished(run: Path, out: Path) -> Path:
    """A copy of a run without its seal and the commits of two shards."""
    shutil.copytree(run, out)
    for name in ("manifest.parquet", "final.json", "commits/000000/000000014.json", "commits/000000/000000007.json"):
        (out / name).unlink()
    return out


def contents(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.long
def test_other_weights_under_the_same_name_are_refused(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, checkpoint = unfinished(undisturbed, tmp_path / "run"), tmp_path / "tiny"
    original = load_checkpoint(tiny_checkpoint)
    network = original.build()
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    save_checkpoint(checkpoint, model=network, spec=original.spec, categories=original.categories, progress={})
    before = contents(out)
    output = finish(start(checkpoint, photos, out), code=2)
    assert "model.sha256" in output and original.sha256[:32] in output
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    assert "model.safetensors" in finish(start(checkpoint, photos, out), code=2)
    assert contents(out) == before, "nothing was written"


@pytest.mark.long
def test_photos_that_come_go_and_change_after_the_plan_was_sealed(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos / "roll-0", folder)
    segment_here(tiny_checkpoint, folder, out)
    for name in ("manifest.parquet", "final.json", "commits/000000/000000000.json"):
        (out / name).unlink()
    done = load_images(str(out))["image_id"]
    gone, changed, unchanged = sorted({path.name for path in folder.iterdir()} - set(done))
    shutil.copy(folder / changed, folder / "new.png")
    (folder / gone).unlink()
    with open(folder / changed, "ab") as file:
        file.write(b"more")
    totals = segment_here(tiny_checkpoint, folder, out)
    assert totals.statuses == {"ok": len(done) + 1, "not_found": 1, "changed": 1}
    statuses = load_images(str(out)).set_index("image_id")["status"]
    assert (statuses[gone], statuses[changed], statuses[unchanged]) == ("not_found", "changed", "ok")
    assert list(verify_run(open_run(str(out)))) == []


@pytest.mark.long
def test_a_plan_of_other_shards_is_detected_and_nothing_is_sealed(
    tiny_checkpoint: Path, photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = unfinished(undisturbed, tmp_path / "run")
    plan = from_sealed_json((out / "plan.json").read_bytes())
    (out / "plan.json").write_bytes(to_sealed_json({**plan, "shard_size": 4}))
    with pytest.raises(RunError, match="does not fit the plan"):
        segment_here(tiny_checkpoint, photos, out)
    assert not (out / "final.json").exists()
    assert any("not those of the plan" in fault.reason for fault in verify_run(open_run(str(out))))
