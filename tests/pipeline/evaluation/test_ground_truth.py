"""Ground truth from COCO JSON: its masks, the classes looked for, and how its images and classes meet a run's."""

from __future__ import annotations

import pytest

from pipeline.evaluation.ground_truth import EvaluationError, Truth, check_categories, match_images, to_rle
from tests.pipeline.evaluation.random_cases import SIZE, random_case


def test_masks_in_one_piece_are_those_of_the_list():
    for seed in range(4):
        truth = random_case(seed)[0]
        far_away = [1e7, 0.0, 1e7, 5.0, 1.0, 5.0]
        truth.annotations[7]["segmentation"] = [far_away]
        if seed == 3:
            truth.annotations[:] = [entry for entry in truth.annotations if isinstance(entry["segmentation"], dict)]
        text, offsets, sizes = truth.rle_text
        for index, rle in enumerate(truth.rles):
            counts = rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"]
            assert text[offsets[index] : offsets[index + 1]].tobytes() == counts
            assert sizes[index].tolist() == list(rle["size"])
        assert len(offsets) == len(truth.annotations) + 1 and offsets[-1] == len(text)


def test_polygons_are_filled_as_pycocotools_fills_them():
    truth = random_case(5)[0]
    for entry, rle in zip(truth.annotations, truth.rles, strict=True):
        want = to_rle(entry["segmentation"], *SIZE)  # by pycocotools
        assert rle["size"] == want["size"]
        counts = [c.encode() if isinstance(c, str) else c for c in (rle["counts"], want["counts"])]
        assert counts[0] == counts[1]
    with pytest.raises(KeyError, match="segmentation"):
        to_rle(None, *SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "val.json has no list 'images', so it is no COCO annotation file"),
        ({"images": [{"id": 1}, {"id": 2}, {"id": 1}]}, "val.json names images id 1 twice"),
        ({"categories": [{"id": 7}, {"id": 7}]}, "val.json names categories id 7 twice"),
    ],
)
def test_what_is_no_coco_file_is_refused_by_name(change, message):
    with pytest.raises(EvaluationError, match=message):
        Truth.from_coco({"images": [], "annotations": [], "categories": [], **change}, "val.json")


def test_the_labelled_classes_of_lvis():
    image = {"id": 1, "neg_category_ids": [3], "not_exhaustive_category_ids": [2]}
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3, 4)]
    annotations = [{"image_id": 1, "category_id": i} for i in (1, 2)]
    truth = Truth.from_coco({"images": [image, {"id": 2}], "annotations": annotations, "categories": categories})
    assert truth.labelled == {1: {1, 3}}
    assert [entry["category_id"] for entry in truth.annotations] == [1] and truth.num_not_labelled == 1


def test_classes_take_the_ids_that_a_run_gives_their_names():
    truth = Truth(
        [{"id": 1, "labelled_category_ids": [2, 3]}, {"id": 2}],
        [{"image_id": 1, "category_id": 2}, {"image_id": 2, "category_id": 1}],
        [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}],
    )
    got = truth.with_ids_of({2: "cat", 40: "dog", 41: "horse"})
    assert got.names == {2: "cat", 40: "dog", 42: "cow"}  # an id that neither side uses
    assert [entry["category_id"] for entry in got.annotations] == [40, 2]
    assert got.labelled == {1: {40, 42}}
    assert truth.names == {1: "cat", 2: "dog", 3: "cow"}


def test_a_class_means_the_same_on_both_sides():
    check_categories({1: "cat", 9: "horse"}, {1: "cat", 2: "dog"})
    with pytest.raises(EvaluationError, match="1 is 'dog' in the run and 'cat' in the ground truth"):
        check_categories({1: "dog"}, {1: "cat"})
    with pytest.raises(EvaluationError, match="'cat' is 5 in the run and 1 in the ground truth"):
        check_categories({5: "cat"}, {1: "cat"})


@pytest.mark.parametrize(
    ("keys", "names", "want"),
    [
        (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"], {"a/1.jpg": 0, "b/1.jpg": 1}),
        (["deep/a/1.jpg", "2.jpg"], ["1.jpg", "val/2.jpg"], {"deep/a/1.jpg": 0, "2.jpg": 1}),
        (["x/1.jpg", "1.jpg"], ["1.jpg"], {"1.jpg": 0}),  # the whole name wins, the other is simply not in the truth
        ([], ["1.jpg"], {}),
    ],
)
def test_images_are_matched_whole_first_then_by_base_name(keys, names, want):
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    assert match_images(keys, images).truth_id == want


@pytest.mark.parametrize(
    ("keys", "names", "message"),
    [
        (["a/1.jpg", "b/1.jpg"], ["1.jpg"], "'1.jpg' is 'a/1.jpg', 'b/1.jpg' in the run"),
        (["1.jpg"], ["a/1.jpg", "b/1.jpg"], "'a/1.jpg', 'b/1.jpg' in the ground truth"),
        (["1.jpg"], ["2.jpg"], "no image in common"),
    ],
)
def test_a_base_name_of_several_images_is_an_error_that_lists_them(keys, names, message):
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    with pytest.raises(EvaluationError, match=message):
        match_images(keys, images)
