"""Images on their way to the device."""

import numpy as np
import pytest
import torch

from model.inference.mask_rle import Paste, mask_runs
from model.inference.predictor import Predictor
from model.inference.prefetch import to_tensor, upload_ahead
from model.network import build_model
from model.spec import ModelSpec

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU, and torch.cuda.is_available() is False: streams, pinned copies and CUDA kernels run on "
    "nothing else; what the same calls do on a CPU is tested here, in test_exact.py and in test_mask_runs.py",
)


def draw(*shapes):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, shape, np.uint8) for shape in shapes]


def test_memory_is_shared_where_it_can_be():
    plain, turned, frozen = draw((6, 8, 3), (6, 8, 3), (6, 8, 3))
    turned, frozen.flags.writeable = turned[::-1], False
    assert to_tensor(plain).data_ptr() == plain.ctypes.data
    for image in (turned, frozen):
        np.testing.assert_array_equal(to_tensor(image), image)
    tensor = torch.zeros(2, 2, 3)
    assert to_tensor(tensor) is tensor


def test_a_cpu_takes_no_batch_before_its_turn():
    taken = []
    batches = (taken.append(number) or draw((4, 4, 3)) for number in range(3))
    uploaded = upload_ahead(batches, torch.device("cpu"))
    assert taken == []
    next(uploaded)
    assert taken == [0]
    assert len(list(uploaded)) == 2


def test_on_a_cpu_batches_stay_what_they_are():
    batches = [draw((4, 4, 3)), draw((4, 5, 3), (4, 6, 3))]
    assert all(one is other for one, other in zip(upload_ahead(batches, torch.device("cpu")), batches, strict=True))


@needs_gpu
@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_a_gpu_gets_the_same_bytes_while_it_is_at_work(num_batches):
    device = torch.device("cuda")
    batches = [draw((300, 200 + n, 3), (7, 5, 3)) for n in range(num_batches)]
    busy = torch.rand(2048, 2048, device=device)
    arrived = []
    for images in upload_ahead(batches, device):
        busy = busy @ busy / busy.norm()
        arrived.append([image.clone() for image in images])
    assert len(arrived) == num_batches
    for images, batch in zip(arrived, batches, strict=True):
        for image, array in zip(images, batch, strict=True):
            assert image.is_cuda and image.dtype == torch.uint8
            np.testing.assert_array_equal(image.cpu(), array)


@needs_gpu
def test_a_batch_without_room_stays_on_the_host():
    device = torch.device("cuda")
    batches = [draw((2000, 2000, 3)), draw((2000, 2000, 3))]
    torch.cuda.set_per_process_memory_fraction(1e-6, device)
    try:
        torch.cuda.empty_cache()
        assert [image.device.type for images in upload_ahead(batches, device) for image in images] == ["cpu", "cpu"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@needs_gpu
def test_a_gpu_finds_what_the_cpu_finds():
    torch.manual_seed(1)
    spec = ModelSpec.tiny(num_classes=3, score_threshold=0.0, max_detections=20)
    network = build_model(spec).eval()
    images = draw((100, 130, 3), (99, 131, 3))
    (uploaded,) = upload_ahead([images], torch.device("cuda"))
    for want, found in zip(
        Predictor(network, spec).predict(images), Predictor(network, spec, device="cuda").predict(uploaded), strict=True
    ):
        assert len(found.scores) == len(want.scores) > 0
        np.testing.assert_allclose(found.scores, want.scores, atol=1e-3)
        np.testing.assert_allclose(found.boxes, want.boxes, atol=0.05)


@needs_gpu
def test_a_gpu_gives_the_cpus_run_lengths():
    random = torch.Generator().manual_seed(0)
    masks, corners = torch.rand(40, 28, 28, generator=random), torch.rand(40, 2, generator=random) * 400 - 50
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=random) * 200 + 1], dim=1)
    for fused in (True, False):
        want = mask_runs(masks, boxes, (300, 400), Paste(0.5, fused))
        found = mask_runs(masks.cuda(), boxes.cuda(), (300, 400), Paste(0.5, fused))
        assert all(torch.equal(one, other.cpu()) for one, other in zip(want, found, strict=True))
