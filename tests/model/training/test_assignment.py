"""Assignment with missing labels: regions and classes without annotations give the losses no negatives.

Most tests look at losses or gradients: where an anchor or RoI is no negative, its score gets no gradient.
"""

import pytest
import torch

from model.heads.roi_heads import Samples
from model.spec import ModelSpec
from model.training.assignment import (
    allowed_classes,
    drop_ignored,
    has_rpn_negatives,
    intersection_over_box,
    separate_ignored,
)
from tests.model.small_trainings import QUICK, build, check_training_step, samples

SPEC = ModelSpec.tiny(num_classes=3, **{**QUICK, "image_min_size": 128, "image_max_size": 128})
WHOLE = torch.tensor([[0.0, 0, 128, 128]])


def empty_target(**more):
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 128, 128, dtype=torch.uint8),
        **more,
    }


def image():
    return torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))


def losses_of(target, spec=SPEC):
    torch.manual_seed(0)
    return build(spec).train()([image()], [target])


# --- images without annotations -------------------------------------------------------------------------------------


def test_an_image_without_annotations_is_all_background():
    losses = losses_of(empty_target())
    assert losses["loss_classifier"] > 0 and losses["loss_objectness"] > 0
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_batch_without_annotations_still_gives_every_head_a_gradient(norm):
    """The gradient is zero, not absent: with several workers an absent gradient would block the reduction."""
    spec = SPEC.replace(head_norm=norm, num_keypoints=3)
    model = build(spec).train()
    losses = model([image()], [empty_target(keypoints=torch.zeros(0, 3, 3))])
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    for name, buffer in model.named_buffers():
        assert torch.isfinite(buffer).all(), name


def test_a_batch_may_mix_images_with_and_without_annotations():
    images, targets = samples()
    model = build(ModelSpec.tiny(num_classes=2, **QUICK))
    targets[1] = {name: value[:0] for name, value in targets[1].items()}
    check_training_step(model, images, targets)


# --- crowd and ignored regions --------------------------------------------------------------------------------------


def test_an_ignored_region_gives_no_negatives():
    """With the whole image and its surroundings ignored, no anchor or RoI is a negative."""
    around = torch.tensor([[-500.0, -500, 500, 500]])
    losses = losses_of(empty_target(ignore_boxes=around))
    assert losses["loss_classifier"] == 0 and losses["loss_objectness"] == 0
    assert losses_of(empty_target(ignore_boxes=around + 2000))["loss_objectness"] > 0


def test_anchors_beside_an_ignored_region_stay_negatives():
    rpn = build(SPEC).rpn
    anchors = torch.tensor([[0.0, 0, 32, 32], [40, 0, 72, 32], [64, 64, 96, 96], [20, 20, 52, 52]])
    target = {
        "boxes": torch.tensor([[64.0, 64, 96, 96]]),
        "ignore_boxes": torch.tensor([[0.0, 0, 40, 40], [60, 60, 99, 99]]),
    }
    (labels,), _ = rpn.assign_targets_to_anchors([anchors], [target])
    # The first lies in a region; so does the third, but it is an object; the last does with less than half its area.
    assert labels.tolist() == [-1, 0, 1, 0]


def crowd_target():
    """One crowd instance over all of the image."""
    return {
        "boxes": WHOLE,
        "labels": torch.tensor([2]),
        "masks": torch.ones(1, 128, 128, dtype=torch.uint8),
        "iscrowd": torch.tensor([1]),
    }


def test_a_crowd_is_no_positive_either():
    losses = losses_of(crowd_target())
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0


def test_objects_in_an_ignored_region_stay_positive():
    _, targets = samples(num_classes=3)
    target = {name: value[:1] for name, value in targets[0].items()}
    target["masks"] = torch.zeros(1, 128, 128, dtype=torch.uint8)
    with_region = losses_of({**target, "ignore_boxes": WHOLE})
    assert with_region["loss_box_reg"] > 0 and with_region["loss_mask"] > 0 and with_region["loss_classifier"] > 0


def test_ignored_regions_are_resized_with_their_image():
    """An image of 64 px is resized to 128: a region over all of its 64 px then covers all of the 128 px."""
    target = empty_target(ignore_boxes=torch.tensor([[0.0, 0, 64, 64]]), masks=torch.zeros(0, 64, 64).byte())
    losses = build(SPEC).train()([image()[:, :64, :64]], [target])
    assert losses["loss_classifier"] == 0


def test_crowds_become_ignored_regions():
    target = {
        "boxes": torch.tensor([[0.0, 0, 1, 1], [2, 2, 4, 4], [5, 5, 9, 9]]),
        "labels": torch.tensor([1, 2, 3]),
        "masks": torch.arange(3).reshape(3, 1, 1).byte(),
        "iscrowd": torch.tensor([0, 1, 0]),
        "ignore_boxes": torch.tensor([[7.0, 7, 8, 8]]),
        "image_id": torch.tensor([5]),
    }
    split = separate_ignored(target)
    assert split["labels"].tolist() == [1, 3] and split["masks"].flatten().tolist() == [0, 2]
    assert split["boxes"].tolist() == [[0, 0, 1, 1], [5, 5, 9, 9]]
    assert split["ignore_boxes"].tolist() == [[7, 7, 8, 8], [2, 2, 4, 4]]
    assert split["image_id"].tolist() == [5] and len(target["labels"]) == 3


def test_only_negatives_that_lie_inside_are_dropped():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 0, 15, 10], [6, 0, 16, 10], [50, 50, 60, 60]])
    labels = torch.tensor([0, 2, 0, 0, 0])
    target = {"ignore_boxes": torch.tensor([[0.0, 0, 10, 10]])}
    assert drop_ignored(labels, boxes, target, overlap=0.5).tolist() == [-1, 2, -1, 0, 0]
    assert drop_ignored(labels, boxes, {}, overlap=0.5) is labels
    assert drop_ignored(labels[:0], boxes[:0], target, overlap=0.5).shape == (0,)


def test_intersection_over_box_is_the_covered_fraction_of_the_box():
    boxes = torch.tensor([[0.0, 0, 4, 2], [1, 1, 1, 1]])
    regions = torch.tensor([[2.0, 0, 9, 1], [0, 0, 9, 9]])
    assert intersection_over_box(boxes, regions).tolist() == [[0.25, 1], [0, 0]]


# --- classes that were not annotated ----------------------------------------------------------------------------------


def class_gradient(spec, labels, target):
    """Gradient of the classification loss with respect to the logits of RoIs with these labels."""
    heads = build(spec).roi_heads
    logits = torch.zeros(len(labels), 4, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(len(labels), 1)
    rois = Samples([boxes], [torch.tensor(labels)], [torch.zeros(len(labels)).long()], [boxes])
    deltas = torch.zeros(len(labels), 16)
    heads.box_losses(logits, deltas, rois, [target])["loss_classifier"].backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_background_is_no_negative_of_a_class_that_was_not_annotated(class_loss):
    spec = SPEC.replace(class_loss=class_loss)
    gradient = class_gradient(spec, [0, 1], {"labelled_classes": torch.tensor([1, 3])})
    # A positive gradient lowers the logit: not for class 2, but for the classes that were annotated.
    assert gradient[0, 2] == 0 and (gradient[0, [1, 3]] > 0).all()
    # An object of class 1 is a negative of class 2.
    assert gradient[1, 2] > 0 and gradient[1, 1] < 0
    all_annotated = class_gradient(spec, [0, 1], {})
    assert (all_annotated[0, 1:] > 0).all()


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_an_object_of_a_class_that_was_not_annotated_is_a_positive_and_its_class_has_no_negatives(class_loss):
    """As in LVIS, where some of an image's objects of a class may be annotated and others not."""
    spec = SPEC.replace(class_loss=class_loss)
    gradient = class_gradient(spec, [2, 0], {"labelled_classes": torch.tensor([1, 3])})
    assert gradient[0, 2] < 0 and (gradient[0, [1, 3]] > 0).all()
    assert gradient[1, 2] == 0 and (gradient[1, [1, 3]] > 0).all()
    _, targets = samples(num_classes=3)
    target = {name: value[:1] for name, value in targets[0].items()}
    target |= {"masks": torch.ones(1, 128, 128, dtype=torch.uint8), "labelled_classes": torch.tensor([2])}
    losses = losses_of(target)
    assert losses["loss_box_reg"] > 0 and losses["loss_mask"] > 0 and losses["loss_rpn_box_reg"] > 0


def test_an_image_in_which_no_class_was_annotated_has_no_negatives():
    target = empty_target(labelled_classes=torch.zeros(0, dtype=torch.int64))
    losses = losses_of(target)
    assert losses["loss_objectness"] == 0 and losses["loss_classifier"] == 0


def test_the_rpn_takes_negatives_from_partly_annotated_images_if_the_spec_says_so():
    target = empty_target(labelled_classes=torch.tensor([1]))
    assert losses_of(target)["loss_objectness"] > 0
    assert losses_of(target, SPEC.replace(rpn_partial_negatives=False))["loss_objectness"] == 0
    fully_annotated = empty_target(labelled_classes=torch.tensor([3, 1, 2]))
    assert losses_of(fully_annotated, SPEC.replace(rpn_partial_negatives=False))["loss_objectness"] > 0
    assert has_rpn_negatives({}, 3, partial=False)


def test_background_of_partly_annotated_images_is_limited_to_the_annotated_classes():
    targets = [{"labelled_classes": torch.tensor([2])}, {}]
    labels = [torch.tensor([0, 2]), torch.tensor([0])]
    allowed = allowed_classes(targets, labels, 3)
    assert allowed is not None
    assert allowed.int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert allowed_classes([{}, {}], labels, 3) is None
