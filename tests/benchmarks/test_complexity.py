"""The table in docs/models.md is what its command prints."""

import pytest
import torch
from torchvision.models import detection

from benchmarks.complexity import members, num_flops, num_parameters, row
from model.network import build_model
from model.presets import preset
from tests.paths import DOCS

MODELS = DOCS / "models.md"


def test_every_member_has_its_row():
    rows = [line for line in MODELS.read_text().splitlines() if line.startswith("| ")]
    named = [line.split("|")[1].strip() for line in rows]
    assert [name for name in named if name in members()] == list(members())


# The others are made by the same lines of code; these are quick and of every kind.
@pytest.mark.parametrize(
    "name", ["tiny", "resnet18 FPN", "vgg16 FPN", "resnet50 C4", "resnet50 DC5 (stride 16)", "resnet50 FPN, keypoints"]
)
def test_rows_are_up_to_date(name):
    assert row(name, members()[name]) in MODELS.read_text()


def test_figures_are_torchvisions_own():
    """torchvision states 46,359,409 parameters and 333.577 GFLOPs, a multiply-add as one, for its V2."""
    meta = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta
    spec = preset("maskrcnn_resnet50_fpn_v2")
    with torch.device("meta"):
        model = build_model(spec).eval()
    assert num_parameters(model) == meta["num_params"]
    assert num_flops(model, spec) / 2e9 == pytest.approx(meta["_ops"], rel=1e-3)
