"""Quantised parts: near the float network, in integers that no processor overflows, the same for each call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.inference import openvino_engine
from model.inference.openvino_engine import EngineError, load_files
from model.inference.predictor import Predictor
from model.inference.quantize import QuantizedParts, check_quantizer, quantize_parts
from model.network import MaskRCNN
from model.spec import ModelSpec
from tests.model.inference.test_openvino_engine import KINDS, SMALL, network_of, pictures
from tests.paths import ROOT
from tests.specs import small_spec

pytest.importorskip("nncf", reason="needs the extra quantize")

# One map, as a pyramid takes twice as long to convert; pyramids are among KINDS.
SPEC = small_spec(
    3,
    neck="c5",
    anchor_sizes=((16, 32),),
    num_keypoints=2,
    keypoint_head_channels=(8,),
    score_threshold=0.0,
    max_detections=12,
)
IMAGES = pictures(4)
Progress = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def network() -> MaskRCNN:
    return network_of(SPEC)


@pytest.fixture(scope="module")
def progress() -> Progress:
    """What was said while the parts were made."""
    return []


@pytest.fixture(scope="module")
def parts(network: MaskRCNN, progress: Progress) -> QuantizedParts:
    return quantize_parts(network, SPEC, IMAGES, len(IMAGES), lambda *state: progress.append(state))


def assert_near(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """They differ by a fraction of the values' spread."""
    for values, reference in zip(found, expected, strict=True):
        error = (values - reference).square().mean().sqrt()
        assert float(error) < 0.2 * float(reference.std()) + 1e-4


@torch.inference_mode()
def test_each_part_is_near_torchs(network: MaskRCNN, parts: QuantizedParts) -> None:
    assert parts.names == ("maps", "box", "mask", "keypoint") and parts.in_int8.keys() == parts.in_float.keys()
    quantized, reference = load_files(parts.files(()), 1), network.dense_parts()
    image = torch.from_numpy(IMAGES[0]).permute(2, 0, 1)[None, :, :64, :128]
    maps = reference.maps(image)
    assert_near(quantized.maps(image), maps)
    assert not torch.equal(quantized.maps(image)[0], maps[0])
    boxes = [torch.tensor([[5.0, 3.0, 60.0, 40.0], [20.0, 10.0, 110.0, 63.0]]).repeat(10, 1)]
    heads, labels = network.roi_heads, torch.arange(20) % 3 + 1
    small, large = (pool({"0": maps[0]}, boxes) for pool in (heads.box_roi_pool, heads.mask_roi_pool))
    assert_near(quantized.box(small), reference.box(small))
    assert quantized.mask is not None and reference.mask is not None
    assert quantized.keypoint is not None and reference.keypoint is not None
    masks, heat_maps = quantized.mask(large, labels), quantized.keypoint(large)
    assert_near([masks, heat_maps], [reference.mask(large, labels), reference.keypoint(large)])
    assert min(len(masks.unique()), len(heat_maps.unique())) > 1000, "outputs are not rounded to 256 values"


def test_weights_are_integers_of_seven_bits_so_that_sums_of_two_products_fit_in_sixteen(parts: QuantizedParts) -> None:
    core = openvino_engine.import_openvino().Core()
    for name in parts.names:
        model = core.read_model(parts.in_int8[f"{name}.xml"], parts.in_int8[f"{name}.bin"])
        constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        weights = [op.data for op in constants if op.get_element_type().get_type_name() == "i8"]
        assert weights, name
        assert max(int(np.abs(each.astype(int)).max()) for each in weights) <= 64, name
        assert len(parts.in_int8[f"{name}.bin"]) < 0.5 * len(parts.in_float[f"{name}.bin"]), name


def test_parts_can_be_left_in_float(parts: QuantizedParts) -> None:
    files = parts.files(("box", "keypoint"))
    for name in parts.names:
        source = parts.in_float if name in ("box", "keypoint") else parts.in_int8
        assert files[f"{name}.xml"] == source[f"{name}.xml"] and files[f"{name}.bin"] == source[f"{name}.bin"]
    assert parts.files(parts.names) == parts.in_float


def test_progress_is_said_to_the_end(parts: QuantizedParts, progress: Progress) -> None:
    titles = list(dict.fromkeys(title for title, _, _ in progress))
    assert titles == [
        "calibration of the backbone and RPN head",
        "RoIs to calibrate the heads with",
        "calibration of the box head",
        "calibration of the mask head",
        "calibration of the keypoint head",
    ]
    assert all((title, 4, 4) in progress for title in titles)


def test_an_image_gives_the_same_whatever_its_batchmates_and_the_number_of_threads(
    network: MaskRCNN, parts: QuantizedParts
) -> None:
    together = Predictor(network, SPEC, parts=load_files(parts.files(()), 2)).predict(IMAGES)
    alone = Predictor(network, SPEC, parts=load_files(parts.files(()), 1))
    for image, batched in zip(IMAGES, together, strict=True):
        (found,) = alone.predict([image])
        assert len(found.scores) > 5
        for name in ("boxes", "scores", "labels", "mask_probs", "keypoints"):
            np.testing.assert_array_equal(getattr(found, name), getattr(batched, name))


def test_without_nncf_it_is_refused_in_one_sentence(network: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    check_quantizer()
    monkeypatch.setattr("model.inference.quantize.importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"NNCF.* is not installed here; pip install 'maskfleet\[quantize\]'"):
        quantize_parts(network, SPEC, IMAGES, len(IMAGES), lambda *state: None)


@pytest.mark.long
def test_the_same_images_give_the_same_parts_and_a_head_that_sees_nothing_stays_in_float(
    network: MaskRCNN, parts: QuantizedParts
) -> None:
    again = quantize_parts(network, SPEC, IMAGES, len(IMAGES), lambda *state: None)
    for ours, other in ((again.in_float, parts.in_float), (again.in_int8, parts.in_int8)):  # layers' names are counted
        assert {name: data for name, data in ours.items() if name.endswith(".bin")} == {
            name: data for name, data in other.items() if name.endswith(".bin")
        }
    nothing = quantize_parts(network, SPEC.replace(score_threshold=1.0), IMAGES, 4, lambda *state: None)
    assert nothing.in_int8.keys() == {"maps.xml", "maps.bin", "box.xml", "box.bin"}
    assert nothing.names == parts.names and nothing.files(())["mask.bin"] == parts.in_float["mask.bin"]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.long) for kind in KINDS])
def test_every_kind_of_layer_is_quantised(kind: str) -> None:
    one_map = {"anchor_sizes": ((16, 32, 64),)} if "neck" in KINDS[kind] else {}
    spec = ModelSpec(**{**SMALL, **one_map, **KINDS[kind]})
    network = network_of(spec)
    images = pictures(2, spec.in_channels)
    parts = quantize_parts(network, spec, images, len(images), lambda *state: None)
    assert f"{'box' if kind.startswith('no masks') else 'mask'}.xml" in parts.in_int8
    (found,) = Predictor(network, spec, parts=load_files(parts.files(()), 1)).predict(images[:1])
    assert len(found.scores) > 5 and np.isfinite(found.boxes).all()


WATCHED = """
import sys, threading
calls = []
sys.addaudithook(lambda event, args: calls.append((event, args)) if event.startswith("socket.") else None)
import numpy as np
from model.inference.quantize import quantize_parts
from model.network import build_model
from tests.specs import small_spec
images = [np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8) for seed in range(2)]
spec = small_spec(1, score_threshold=0.0)
quantize_parts(build_model(spec).eval(), spec, images, 2, lambda *state: None)
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(20)
print("sockets:", [event for event, _ in calls], "telemetry:", "openvino_telemetry" in sys.modules)
"""


@pytest.mark.long
def test_nothing_is_sent_and_nothing_printed_while_it_quantises(tmp_path: Path) -> None:
    """In a process without pytest, in which NNCF would send nothing anyway."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if name != "CI"}, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.splitlines() == ["sockets: [] telemetry: False"], done.stdout + done.stderr[-2000:]
    assert not list(tmp_path.iterdir()), "no client id is left either"
