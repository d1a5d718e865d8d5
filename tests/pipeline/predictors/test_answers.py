"""Answers of users' predictors: three forms of one mask give one row, and what breaks the contract is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from pipeline.masks.rle import decode_rle, encode_mask, encode_roi_masks
from pipeline.predictors.answers import AnswerError, to_masked
from pipeline.predictors.contract import Instances
from pipeline.run_spec import SegmentSpec

SIZE = HEIGHT, WIDTH = 40, 60
SEGMENT = SegmentSpec(score_threshold=0.1, max_detections=3)
RANDOM = np.random.default_rng(0)
MASKS = RANDOM.random((4, HEIGHT, WIDTH)) > 0.7
SCORES = np.array([0.3, 0.9, 0.05, 0.6])
LABELS = np.array([1, 2, 1, 3])
RLES = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in MASKS]
CLASSES = ["cat", "dog", "cow"]
KEPT = [1, 3, 0]  # best first; the third is below the threshold


def tight(mask: np.ndarray) -> list[int]:
    """The box XYXY of a mask, half-open."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def runs_of(mask: np.ndarray) -> list[int]:
    """A mask's run lengths, column-major, outside first."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]])
    edges = np.flatnonzero(np.diff(pixels.astype(int)))
    runs = np.diff([0, *edges]).tolist()
    return runs if not mask[0, 0] else [0, *runs[1:]]


@pytest.mark.parametrize(
    "masks",
    [
        {"masks": MASKS},
        {"masks": MASKS.astype(np.uint8) * 255},
        {"masks": list(MASKS)},
        {"masks": torch.from_numpy(MASKS)},
        {"rles": RLES},
        {"rles": [rle["counts"] for rle in RLES]},
        {"rles": [rle["counts"].decode() for rle in RLES]},
        {"rles": [{"size": list(SIZE), "counts": runs} for runs in map(runs_of, MASKS)]},
    ],
    ids=lambda masks: f"{next(iter(masks))} of {type(next(iter(masks.values()))).__name__}",
)
def test_every_form_of_a_full_mask_gives_the_same_rows(masks: dict[str, Any]) -> None:
    found = to_masked(Instances(scores=SCORES, labels=LABELS, **masks), CLASSES, SIZE, SEGMENT)
    assert found.counts == [encode_mask(MASKS[index]) for index in KEPT]
    assert found.areas.tolist() == [MASKS[index].sum() for index in KEPT]
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [2, 3, 1]
    assert found.scores.dtype == np.float32 and found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found.boxes.dtype == np.float32 and found.boxes.tolist() == [tight(MASKS[index]) for index in KEPT]
    assert found.keypoints is None


def test_probabilities_over_boxes_are_cut_as_those_of_our_own_network() -> None:
    probs = RANDOM.random((2, 28, 28))
    boxes = np.array([[5, 5, 30, 25], [40, 20, 70.5, 39]], np.float64)  # the second reaches beyond the image
    answer = Instances(scores=[0.5, 0.7], labels=[1, 1], boxes=boxes, mask_probs=probs)
    found = to_masked(answer, CLASSES[:1], SIZE, SegmentSpec(score_threshold=0.1, mask_threshold=0.4))
    narrow = probs.astype(np.float32)[::-1], boxes.astype(np.float32)[::-1]
    assert found.counts == encode_roi_masks(*narrow, SIZE, 0.4)
    assert found.boxes.tolist() == [[40, 20, WIDTH, 39], [5, 5, 30, 25]]


def test_tensors_of_any_kind_are_taken() -> None:
    answer = Instances(
        scores=torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True),
        labels=torch.tensor([3], dtype=torch.uint8),
        boxes=torch.tensor([[1, 2, 3, 4]]),
        mask_probs=torch.ones(1, 4, 4, dtype=torch.float16),
    )
    found = to_masked(answer, CLASSES, SIZE, SEGMENT)
    assert found.scores.tolist() == [0.5] and found.labels.tolist() == [3] and found.areas[0] > 0


@pytest.mark.parametrize(
    "masks",
    [
        {"rles": []},
        {"masks": []},
        {"masks": np.zeros((0, HEIGHT, WIDTH), bool)},
        {"masks": torch.zeros(0, 1, 1)},
        {"mask_probs": [], "boxes": []},
        {"mask_probs": np.zeros((0, 28, 28)), "boxes": np.zeros((0, 4))},
    ],
)
def test_an_image_without_instances_is_an_answer(masks: dict[str, Any]) -> None:
    found = to_masked(Instances(scores=[], labels=[], **masks), CLASSES, SIZE, SEGMENT)
    assert found.boxes.shape == (0, 4) and found.counts == [] and len(found.areas) == len(found.scores) == 0


def test_a_class_can_have_a_score_threshold_of_its_own() -> None:
    segment = replace(SEGMENT, score_thresholds={"dog": 0.95, "cat": 0.0, "cow": 0.6})
    found = to_masked(Instances(scores=SCORES, labels=LABELS, rles=RLES), CLASSES, SIZE, segment)
    assert found.labels.tolist() == [3, 1, 1] and found.scores.tolist() == pytest.approx([0.6, 0.3, 0.05])


def test_a_mask_without_pixels_is_one() -> None:
    found = to_masked(Instances(scores=[1], labels=[1], masks=np.zeros((1, *SIZE), bool)), CLASSES[:1], SIZE, SEGMENT)
    assert found.areas.tolist() == [0] and found.boxes.tolist() == [[0, 0, 0, 0]]
    assert not decode_rle(found.counts[0], *SIZE).any()


def whole(**changes: Any) -> Instances:
    """An answer of two instances, some fields of which are others."""
    return Instances(**{"scores": [0.5, 0.6], "labels": [1, 2], "masks": MASKS[:2], **changes})


BOXES = [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "it gave a NoneType for an image; maskfleet.Instances is wanted"),
        ({"scores": []}, "it gave a dict for an image"),
        (whole(scores=None), "scores is a NoneType; an array of numbers is wanted"),
        (whole(scores=[0.5]), "labels has the shape [2]; [1] is wanted"),
        (whole(scores=[[0.5], [0.6]]), "scores has the shape [2, 1]; [M] is wanted"),
        (whole(scores=["high", "low"]), "scores is <U4; real numbers are wanted"),
        (whole(scores=[0.5, float("nan")]), "scores has a value that is not finite"),
        (whole(scores=[0.5, float("inf")]), "scores has a value that is not finite"),
        (whole(scores=[0.5, 1e300]), "scores has a value of 1e+300, which is beyond float32"),
        (whole(scores=[0.5, 60]), "scores has a value of 60; 0..1 is wanted"),
        (whole(scores=[[0.5], [0.6, 0.7]]), "scores is no array"),
        (whole(scores=[object(), 1]), "scores is a list; an array of numbers is wanted"),
        (whole(labels=[1.0, 2.0]), "labels is float64; whole numbers are wanted"),
        (whole(labels=[0, 1]), "labels has a value of 0; 1..2 is wanted"),
        (whole(labels=[1, 3]), "labels has a value of 3; 1..2 is wanted"),
        (whole(boxes=BOXES[:1]), "boxes has the shape [1, 4]; [2, 4] is wanted"),
        (whole(boxes=[[10, 20, 5, 25], BOXES[1]]), "boxes[0] is [10.0, 20.0, 5.0, 25.0]; XYXY with x1 <= x2"),
        (whole(boxes=[BOXES[0], [61, 1, 80, 9]]), "boxes[1] is [61.0, 1.0, 80.0, 9.0]; which is outside of the image"),
        (whole(masks=None), "none of mask_probs, masks, rles is given; one of them is wanted"),
        (whole(rles=RLES[:2]), "masks and rles of mask_probs, masks, rles is given"),
        (whole(masks=MASKS[:2, :20]), "masks has the shape [2, 20, 60]; [2, 40, 60] is wanted"),
        (whole(masks=MASKS[:1]), "masks has the shape [1, 40, 60]; [2, 40, 60] is wanted"),
        (whole(masks=MASKS[:2].astype(float)), "masks is float64; bool or uint8 is wanted"),
        (whole(masks=None, mask_probs=np.ones((2, 4, 4))), "mask_probs is given without boxes"),
        (whole(masks=None, boxes=BOXES, mask_probs=np.ones((2, 4, 5))), "the shape [2, 4, 5]; [N, M, M] is wanted"),
        (whole(masks=None, boxes=BOXES, mask_probs=np.ones((2, 4))), "[2, 4]; [2, M, M] is wanted"),
        (whole(masks=None, boxes=BOXES, mask_probs=np.full((2, 4, 4), 255)), "a value of 255; 0..1 is wanted"),
        (whole(masks=None, rles=RLES[:1]), "rles is 1 entries; a list of 2 is wanted, as many as scores"),
        (whole(masks=None, rles="ab"), "rles is a str; a list of 2 is wanted"),
        (whole(masks=None, rles=[RLES[0], {"size": [60, 40], "counts": "ab"}]), "rles[1] has the size [60, 40]"),
        (whole(masks=None, rles=[RLES[0], "ab"]), "rles[1] is no RLE of an image of 40 x 60 px"),
        (whole(masks=None, rles=[RLES[0], {"size": [40, 60], "counts": [1, 2]}]), "rles[1] is no RLE"),
        (whole(masks=None, rles=[RLES[0], None]), "rles[1] is no RLE"),
        (whole(masks=None, rles=[RLES[0], {"size": 7}]), "rles[1] has the size 7; the image's [40, 60] is wanted"),
    ],
)
def test_what_breaks_the_contract_is_named(answer: Any, words: str) -> None:
    with pytest.raises(AnswerError) as caught:
        to_masked(answer, CLASSES[:2], SIZE, SEGMENT)
    assert words in str(caught.value)
