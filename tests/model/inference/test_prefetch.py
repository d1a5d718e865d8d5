"""Prefetch of images: batches arrive on the device unchanged and in order; a GPU predicts what a CPU predicts."""

import numpy as np
import pytest
import torch

from model.inference.predictor import Predictor
from model.inference.prefetch import to_tensor, upload_ahead
from model.network import build_model
from model.spec import ModelSpec

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA GPU, and torch.cuda.is_available() is False: streams, pinned copies and CUDA kernels run on "
    "nothing else; what the same calls do on a CPU is tested here, in test_predictor.py and in test_transfers.py",
)


def draw(*shapes):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, shape, np.uint8) for shape in shapes]


def test_memory_is_shared_where_it_can_be():
    plain, flipped, frozen = draw((6, 8, 3), (6, 8, 3), (6, 8, 3))
    flipped, frozen.flags.writeable = flipped[::-1], False
    assert to_tensor(plain).data_ptr() == plain.ctypes.data
    for image in (flipped, frozen):
        np.testing.assert_array_equal(to_tensor(image), image)
    tensor = torch.zeros(2, 2, 3)
    assert to_tensor(tensor) is tensor


def test_on_a_cpu_no_batch_is_read_ahead():
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield draw((4, 4, 3))

    uploaded = upload_ahead(batches(), torch.device("cpu"))
    assert read == []
    next(uploaded)
    assert read == [0]
    assert len(list(uploaded)) == 2


def test_on_a_cpu_batches_are_yielded_unchanged():
    batches = [draw((4, 4, 3)), draw((4, 5, 3), (4, 6, 3))]
    uploaded = upload_ahead(batches, torch.device("cpu"))
    assert all(yielded is batch for yielded, batch in zip(uploaded, batches, strict=True))


@needs_gpu
@pytest.mark.parametrize("num_batches", [0, 1, 5])
def test_a_gpu_gets_the_same_bytes_while_it_computes(num_batches):
    device = torch.device("cuda")
    batches = [draw((300, 200 + n, 3), (7, 5, 3)) for n in range(num_batches)]
    busy = torch.rand(2048, 2048, device=device)
    arrived: list[list[torch.Tensor]] = []
    for images in upload_ahead(batches, device):
        busy = busy @ busy / busy.norm()
        arrived.append([to_tensor(image).clone() for image in images])
    assert len(arrived) == num_batches
    for images, batch in zip(arrived, batches, strict=True):
        for image, array in zip(images, batch, strict=True):
            assert image.is_cuda and image.dtype == torch.uint8
            np.testing.assert_array_equal(image.cpu(), array)


@needs_gpu
def test_a_batch_that_does_not_fit_stays_on_the_host():
    device = torch.device("cuda")
    batches = [draw((2000, 2000, 3)), draw((2000, 2000, 3))]
    torch.cuda.set_per_process_memory_fraction(1e-6, device)
    try:
        torch.cuda.empty_cache()
        uploaded = [to_tensor(image) for images in upload_ahead(batches, device) for image in images]
        assert [image.device.type for image in uploaded] == ["cpu", "cpu"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@needs_gpu
def test_a_gpu_predicts_what_the_cpu_predicts():
    torch.manual_seed(1)
    spec = ModelSpec.tiny(num_classes=3, score_threshold=0.0, max_detections=20)
    network = build_model(spec).eval()
    images = draw((100, 130, 3), (99, 131, 3))
    (uploaded,) = upload_ahead([images], torch.device("cuda"))
    on_cpu = Predictor(network, spec).predict(images)
    on_gpu = Predictor(network, spec, device="cuda").predict(uploaded)
    for detections, reference in zip(on_gpu, on_cpu, strict=True):
        assert len(detections.scores) == len(reference.scores) > 0
        np.testing.assert_allclose(detections.scores, reference.scores, atol=1e-3)
        np.testing.assert_allclose(detections.boxes, reference.boxes, atol=0.05)
