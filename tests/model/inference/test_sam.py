"""Masks of SAM: pixel for pixel those of transformers' own post-processing; memory, empty masks, no boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.heads.rpn import NonFiniteOutput
from model.inference import sam
from model.inference.mask_rle import Runs
from model.inference.sam import Frame, SamRefiner, trace_logits
from model.weights.sam import find_sam
from tests.model.weights.small_sam import build_small_sam2, processor_of, write_small_sam

SIZES = [(96, 128), (128, 96), (37, 211), (300, 200), (20, 17), (128, 128), (401, 399), (1, 50)]
ROUNDING = 2e-6  # of the largest logit: the library interpolates in float32 twice, we once


def masks_of(runs: Runs, image_size: tuple[int, int]) -> np.ndarray:
    """Run lengths as bool [N, H, W]."""
    lengths, counts = runs
    height, width = image_size
    masks = np.zeros((len(counts), width * height), bool)
    for mask, part in zip(masks, np.split(lengths, np.cumsum(counts)[:-1]) if len(counts) else []):
        assert part.sum() == height * width and (part[1:] > 0).all(), "the shortest form"
        mask[:] = np.repeat(np.arange(len(part)) % 2 == 1, part)
    return masks.reshape(-1, width, height).transpose(0, 2, 1)


def assert_equal_but_for_rounding(masks: np.ndarray, logits: Any, threshold: float = 0.0) -> None:
    """`logits` are the library's interpolated ones, [N, H, W]; only pixels within rounding of the threshold differ."""
    logits = logits.numpy()
    differ = masks != (logits > threshold)
    bound = ROUNDING * max(1e-30, float(np.abs(logits).max()))
    assert (np.abs(logits[differ] - threshold) <= bound).all()
    assert differ.mean() < 1e-3


def random_boxes(rng: np.random.Generator, count: int, image_size: tuple[int, int]) -> np.ndarray:
    height, width = image_size
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    return corners.reshape(count, 4).astype(np.float32)


@pytest.fixture(scope="module")
def folders(small_sam: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small SAM and a small SAM 2 on disk."""
    return {"sam": small_sam, "sam2": write_small_sam(tmp_path_factory.mktemp("sam2") / "small", build_small_sam2())}


def refiner_of(folder: Path, batch_size: int = 7, mask_threshold: float = 0.5) -> SamRefiner:
    return SamRefiner(find_sam(str(folder)), device="cpu", batch_size=batch_size, mask_threshold=mask_threshold)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_masks_are_those_of_the_library_on_two_hundred_boxes(kind: str, folders: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    refiner = refiner_of(folders[kind])
    network, images = refiner.network, processor_of(refiner.network)
    has_inside = has_outside = 0
    for size in SIZES:
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        boxes = random_boxes(rng, 200 // len(SIZES), size)
        inputs = images(images=[image], input_data_format="channels_last", return_tensors="pt")
        resized = inputs["reshaped_input_sizes"][0].tolist() if kind == "sam" else [128, 128]
        scaled = boxes.astype(np.float64) * ([resized[1] / size[1], resized[0] / size[0]] * 2)
        with torch.no_grad():
            outputs = network(
                pixel_values=inputs["pixel_values"], input_boxes=torch.tensor(scaled)[None], multimask_output=False
            )
        more = {"reshaped_input_sizes": [resized]} if kind == "sam" else {}
        (logits,) = images.post_process_masks([outputs.pred_masks[0]], [size], binarize=False, **more)
        masks = masks_of(refiner.refine(image, boxes), size)
        assert_equal_but_for_rounding(masks, logits[:, 0])
        has_inside += int(masks.any())
        has_outside += int(not masks.all())
    assert has_inside == has_outside == len(SIZES), "masks with an outline are compared"


@pytest.mark.parametrize("size", [(768, 1024), (1500, 900), (33, 2000), (1024, 1024), (100, 75), (3, 2)])
def test_small_masks_of_the_published_size_are_enlarged_as_the_library_does(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import SamImageProcessor

    monkeypatch.setattr(sam, "_PIECE_PX", 40_000)  # several pieces to a mask
    torch.manual_seed(0)
    coarse = torch.randn(9, 1, 12, 12)
    logits = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic")
    logits[5:8, :, :100] = logits[5:8, :, 150:] = logits[6:8, ..., :40] = -1.0  # instances that fill no image
    logits[7:] = -1.0  # nothing
    logits[8, :, 17, 19] = 1.0  # or one value
    scale = 1024 / max(size)
    resized = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    (expected,) = SamImageProcessor().post_process_masks([logits], [size], [resized], binarize=False)
    masks = masks_of(trace_logits(logits[:, 0], Frame(size, resized, (1024, 1024)), 0.0), size)
    assert_equal_but_for_rounding(masks, expected[:, 0])
    assert not masks[7].any() and masks[:5].any() and not masks[:5].all()


def test_whole_and_empty_masks_and_masks_from_border_to_border_have_their_runs() -> None:
    logits = torch.full((4, 8, 8), -1.0)
    logits[0] = 1.0
    logits[2, :, 2:4] = 1.0  # whole columns go on in the next one
    logits[3, 4:] = 1.0  # ends with every column
    lengths, counts = trace_logits(logits, Frame((8, 8), (8, 8), (8, 8)), 0.0)
    parts = [part.tolist() for part in np.split(lengths, np.cumsum(counts)[:-1])]
    assert parts == [[0, 64], [64], [16, 16, 32], [4, 4] * 8]


@pytest.mark.parametrize(("mask_threshold", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_thresholds_at_the_ends_take_all_pixels_or_none(
    mask_threshold: float, share: float, folders: dict[str, Path]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    runs = refiner_of(folders["sam"], mask_threshold=mask_threshold).refine(
        image, np.array([[3, 4, 30, 39]], np.float32)
    )
    assert masks_of(runs, (40, 60)).mean() == share


def test_the_threshold_is_one_of_probabilities(folders: dict[str, Path]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    boxes = random_boxes(np.random.default_rng(1), 5, (40, 60))
    low, middle, high = (
        masks_of(refiner_of(folders["sam"], mask_threshold=each).refine(image, boxes), (40, 60))
        for each in (0.3, 0.5, 0.7)
    )
    assert (high <= middle).all() and (middle <= low).all() and high.sum() < middle.sum() < low.sum()


def test_no_boxes_give_no_masks_and_ask_no_network(folders: dict[str, Path]) -> None:
    refiner = refiner_of(folders["sam"])
    refiner.network = None
    lengths, counts = refiner.refine(np.zeros((40, 60, 3), np.uint8), np.zeros((0, 4), np.float32))
    assert len(lengths) == len(counts) == 0


def test_out_of_memory_halves_the_batch_of_boxes_and_gives_the_same_masks(folders: dict[str, Path]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    boxes = random_boxes(np.random.default_rng(1), 11, (40, 60))
    refiner = refiner_of(folders["sam"], batch_size=11)
    expected = masks_of(refiner.refine(image, boxes), (40, 60))
    network, sizes = refiner.network, []

    class SmallGpu:
        get_image_embeddings = network.get_image_embeddings

        def __call__(self, **inputs: Any) -> Any:
            sizes.append(inputs["input_boxes"].shape[1])
            if sizes[-1] > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(**inputs)

        most = 3

    refiner.network = SmallGpu()
    assert np.mean(masks_of(refiner.refine(image, boxes), (40, 60)) != expected) < 1e-4
    assert sizes == [11, 5, 2, 3, 6, 3, 3]
    refiner.network.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        refiner.refine(image, boxes)


def test_an_image_that_sam_would_resize_to_nothing_is_told(folders: dict[str, Path]) -> None:
    box = np.array([[0, 0, 9, 1]], np.float32)
    for size in ((1, 257), (500, 1)):
        image = np.zeros((*size, 3), np.uint8)
        with pytest.raises(ValueError, match=rf"an image of {size[0]} x {size[1]} px is too narrow"):
            refiner_of(folders["sam"]).refine(image, box)
        assert masks_of(refiner_of(folders["sam2"]).refine(image, box), size).shape == (1, *size), "it is stretched"
    assert len(refiner_of(folders["sam"]).refine(np.zeros((1, 256, 3), np.uint8), box)[1]) == 1


def test_output_that_is_not_finite_is_told(folders: dict[str, Path]) -> None:
    refiner = refiner_of(folders["sam"])
    with torch.no_grad():
        next(refiner.network.mask_decoder.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteOutput, match="SAM gave masks that are not finite"):
        refiner.refine(np.zeros((40, 60, 3), np.uint8), np.array([[3, 4, 30, 39]], np.float32))
