"""Transfers: what the host sends and reads, and that a prediction on a GPU waits as often for 1 image as for 16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model.inference.predictor import Detections, Predictor
from model.network import MaskRCNN, build_model
from model.spec import ModelSpec
from model.transfers import row_of_each, to_device, to_host, true_columns
from tests.model.pretend_gpu import PretendGpu, PretendTensor
from tests.specs import small_spec

CPU = torch.device("cpu")
MOST_WAITS = 12


def test_rows_and_columns_of_a_batch() -> None:
    assert row_of_each([2, 0, 3], CPU).tolist() == [0, 0, 2, 2, 2]
    assert row_of_each([0, 0], CPU).tolist() == []
    table = torch.tensor([[True, False, True], [False, False, False], [False, True, True]])
    assert [columns.tolist() for columns in true_columns(table, [2, 0, 2])] == [[0, 2], [], [1, 2]]
    assert [columns.tolist() for columns in true_columns(table[:, :0], [0, 0, 0])] == [[], [], []]


def test_tensors_of_the_host_stay_what_they_are() -> None:
    tensor = torch.arange(3)
    assert to_host(tensor, tensor)[1] is tensor
    assert to_device([[1, 2], [3, 4]], CPU, torch.float32).tolist() == [[1, 2], [3, 4]]


def test_a_gpu_is_waited_for_once_for_all_that_is_read_and_not_for_what_is_sent(monkeypatch: Any) -> None:
    with PretendGpu(monkeypatch) as gpu:
        sent = to_device([1.0, 2.0], torch.device("cuda"))
        assert isinstance(sent, PretendTensor) and sent.is_cuda and not gpu.waits and gpu.transfers == 1
        read = to_host(sent, sent * 2, sent[:0])
    assert [tensor.tolist() for tensor in read] == [[1, 2], [2, 4], []]
    assert gpu.waits == {"synchronize": 1} and gpu.transfers == 4


def test_the_pretended_gpu_sees_what_would_make_the_host_wait(monkeypatch: Any) -> None:
    """Otherwise the counts below would show nothing."""
    with PretendGpu(monkeypatch) as gpu:
        values = torch.arange(6.0, device="cuda")
        for work in (
            lambda: values[values > 2],
            lambda: torch.where(values > 2),
            lambda: bool(values.sum() > 2),
            lambda: values.masked_select(values > 2),
            lambda: values.long().repeat_interleave(values.long()),
            lambda: values.new_tensor([1.0, 2.0]),
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: values[[0, 1]],
            lambda: torch.where(values > 2, values, torch.tensor(0.0)),
            lambda: values.cpu(),
            lambda: torch.zeros(3).to("cuda"),
            lambda: values.long().bincount(),
        ):
            before = sum(gpu.waits.values())
            work()
            assert sum(gpu.waits.values()) == before + 1, gpu.waits


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)


def network_of(spec: ModelSpec) -> MaskRCNN:
    """Random weights that find many instances, whose masks are no rectangles."""
    torch.manual_seed(0)
    network = build_model(spec).eval()
    with torch.no_grad():
        network.get_parameter("roi_heads.box_predictor.cls_score.weight").mul_(100)
        if spec.mask_head != "none":
            network.get_parameter("roi_heads.mask_predictor.mask_fcn_logits.weight").mul_(500)
    return network


def predict(
    monkeypatch: Any, spec: ModelSpec, batch_size: int, *, device: str = "cuda", runs_at: float | None = 0.5
) -> tuple[list[Detections], int]:
    """Detections of drawn images, and how often the host waits for them; the images are on the device already."""
    network = network_of(spec)
    images: list[Any] = [image_of(seed) for seed in range(batch_size)]
    with PretendGpu(monkeypatch) as gpu:
        predictor = Predictor(network, spec, device=device)
        predictor.predict(images[:1], runs_at=runs_at)  # anchors are moved to the device once
        uploaded = [torch.from_numpy(image).to(device) for image in images]
        gpu.waits.clear()
        detections = predictor.predict(uploaded, runs_at=runs_at)
    return detections, sum(gpu.waits.values())


FPN = small_spec(3, score_threshold=0.05)


@pytest.mark.parametrize("most", [0, 10, 100])
def test_waits_grow_neither_with_the_batch_nor_with_the_detections(most: int, monkeypatch: Any) -> None:
    spec = FPN.replace(score_threshold=1.0) if most == 0 else FPN.replace(max_detections=most)
    waits = set()
    for batch_size in (1, 4, 16):
        detections, number = predict(monkeypatch, spec, batch_size)
        found = [len(image.scores) for image in detections]
        assert max(found) <= most and (most == 0 or min(found) >= most / 2), found
        waits.add(number)
    assert len(waits) == 1 and waits.pop() <= MOST_WAITS


@pytest.mark.parametrize(
    ("spec", "runs_at", "most"),
    [
        (FPN, None, 10),  # masks as probabilities, as slices are read
        (FPN.replace(mask_head="none"), 0.5, MOST_WAITS),
        (ModelSpec.tiny(num_classes=3, image_min_size=48, image_max_size=64), 0.5, MOST_WAITS),
    ],
    ids=["slices", "no masks", "tiny"],
)
def test_other_predictions_wait_no_more_often(spec: ModelSpec, runs_at: float | None, most: int, monkeypatch: Any):
    assert predict(monkeypatch, spec, 4, runs_at=runs_at)[1] <= most


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(FPN, id="fpn"),
        pytest.param(FPN.replace(nms="soft_linear"), id="soft", marks=pytest.mark.long),
        pytest.param(FPN.replace(num_keypoints=4, keypoint_head_channels=(8,)), id="keypoints", marks=pytest.mark.long),
    ],
)
def test_a_gpus_branches_give_the_cpus_detections(spec: ModelSpec, monkeypatch: Any) -> None:
    """One suppression for all groups, maps in place of tables, masks traced; the pretended GPU rounds as the CPU."""
    on_cpu, _ = predict(monkeypatch, spec, 3, device="cpu", runs_at=None)
    on_gpu, _ = predict(monkeypatch, spec, 3, runs_at=None)
    traced, _ = predict(monkeypatch, spec, 3)
    for ours, reference, runs in zip(on_gpu, on_cpu, traced, strict=True):
        assert len(reference.scores) > 5
        np.testing.assert_array_equal(ours.labels, reference.labels)
        np.testing.assert_allclose(ours.boxes, reference.boxes, atol=0.05)
        np.testing.assert_allclose(ours.scores, reference.scores, atol=1e-3)
        np.testing.assert_allclose(ours.mask_probs, reference.mask_probs, atol=1e-2)
        np.testing.assert_array_equal(runs.boxes, ours.boxes)
        assert runs.runs is not None and len(runs.runs[1]) == len(ours.scores)
        np.testing.assert_array_equal(np.add.reduceat(runs.runs[0], np.cumsum(runs.runs[1]) - runs.runs[1]), 64 * 96)


def test_pixels_are_sent_as_bytes_and_prepared_as_one_batch(monkeypatch: Any) -> None:
    """Images of the host: no wait more than for those that were uploaded before, and one resize for one size."""
    images = [image_of(seed) for seed in range(4)]
    with PretendGpu(monkeypatch) as gpu:
        predictor = Predictor(network_of(FPN), FPN, device="cuda")
        predictor.predict(images[:1], runs_at=0.5)
        uploaded = [to_device(image, torch.device("cuda")) for image in images]
        gpu.calls.clear()
        gpu.waits.clear()
        expected = predictor.predict(uploaded, runs_at=0.5)
        waits, resizes = sum(gpu.waits.values()), gpu.calls["aten::upsample_bilinear2d"]
        given = predictor.predict(images, runs_at=0.5)
        assert sum(gpu.waits.values()) == 2 * waits and uploaded[0].dtype == torch.uint8 and resizes == 1
    for ours, reference in zip(given, expected, strict=True):
        np.testing.assert_array_equal(ours.boxes, reference.boxes)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, False), (torch.bfloat16, True)])
def test_exact_mode_does_not_round_to_tf32(dtype: torch.dtype, allowed: bool, monkeypatch: Any) -> None:
    seen = []
    with PretendGpu(monkeypatch):
        predictor = Predictor(network_of(FPN), FPN, device="cuda", dtype=dtype)
        predictor.model.backbone.register_forward_hook(
            lambda *_: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        )
        predictor.predict([image_of(0)])
    assert seen == [(allowed, False)]
