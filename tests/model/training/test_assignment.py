"""Missing labels, on the losses themselves: what nobody labelled is not punished.

Most tests compare gradients: where an anchor or proposal is no negative, its score gets no gradient.
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
    """Of zero, but there: a worker of many must not be left without one."""
    spec = SPEC.replace(head_norm=norm, num_keypoints=3)
    model = build(spec).train()
    sum(model([image()], [empty_target(keypoints=torch.zeros(0, 3, 3))]).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    for name, buffer in model.named_buffers():
        assert torch.isfinite(buffer).all(), name


def test_a_batch_may_mix_both():
    images, targets = samples()
    model = build(ModelSpec.tiny(num_classes=2, **QUICK))
    targets[1] = {name: value[:0] for name, value in targets[1].items()}
    check_training_step(model, images, targets)


# --- crowd and ignored regions --------------------------------------------------------------------------------------


def test_an_ignored_region_gives_no_negatives():
    """With all around the image ignored, there is nothing to learn from it at all."""
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
    # The first lies in a region, the third is an object although it does; of the last, less than half does.
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


def test_ignored_regions_move_with_their_image():
    """An image of 64 px is resized to 128: a region given in its own pixels covers the same part of it."""
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


def test_intersection_over_box():
    boxes = torch.tensor([[0.0, 0, 4, 2], [1, 1, 1, 1]])
    regions = torch.tensor([[2.0, 0, 9, 1], [0, 0, 9, 9]])
    assert intersection_over_box(boxes, regions).tolist() == [[0.25, 1], [0, 0]]


# --- classes that nobody looked for ---------------------------------------------------------------------------------


def class_gradient(spec, labels, target):
    """Gradient of the classification loss with respect to the logits of RoIs with these labels."""
    heads = build(spec).roi_heads
    logits = torch.zeros(len(labels), 4, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(len(labels), 1)
    drawn = Samples([boxes], [torch.tensor(labels)], [torch.zeros(len(labels)).long()], [boxes])
    deltas = torch.zeros(len(labels), 16)
    heads.box_losses(logits, deltas, drawn, [target])["loss_classifier"].backward()
    return logits.grad


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_background_does_not_punish_a_class_that_was_not_labelled(class_loss):
    spec = SPEC.replace(class_loss=class_loss)
    gradient = class_gradient(spec, [0, 1], {"labelled_classes": torch.tensor([1, 3])})
    # Pushing down is a positive gradient; class 2 is left alone, the classes that were looked for are not.
    assert gradient[0, 2] == 0 and (gradient[0, [1, 3]] > 0).all()
    # What is an object of class 1 is none of class 2.
    assert gradient[1, 2] > 0 and gradient[1, 1] < 0
    everything = class_gradient(spec, [0, 1], {})
    assert (everything[0, 1:] > 0).all()


@pytest.mark.parametrize("class_loss", ["cross_entropy", "focal"])
def test_an_object_of_a_class_that_was_not_looked_for_is_learnt_and_its_class_not_punished(class_loss):
    """As in LVIS, where some of an image's objects of a class may be drawn without all of them being so."""
    spec = SPEC.replace(class_loss=class_loss)
    gradient = class_gradient(spec, [2, 0], {"labelled_classes": torch.tensor([1, 3])})
    assert gradient[0, 2] < 0 and (gradient[0, [1, 3]] > 0).all()
    assert gradient[1, 2] == 0 and (gradient[1, [1, 3]] > 0).all()
    _, targets = samples(num_classes=3)
    target = {name: value[:1] for name, value in targets[0].items()}
    target |= {"masks": torch.ones(1, 128, 128, dtype=torch.uint8), "labelled_classes": torch.tensor([2])}
    losses = losses_of(target)
    assert losses["loss_box_reg"] > 0 and losses["loss_mask"] > 0 and losses["loss_rpn_box_reg"] > 0


def test_nothing_labelled_teaches_nothing():
    target = empty_target(labelled_classes=torch.zeros(0, dtype=torch.int64))
    losses = losses_of(target)
    assert losses["loss_objectness"] == 0 and losses["loss_classifier"] == 0


def test_the_rpn_takes_negatives_of_partly_labelled_images_by_choice():
    target = empty_target(labelled_classes=torch.tensor([1]))
    assert losses_of(target)["loss_objectness"] > 0
    assert losses_of(target, SPEC.replace(rpn_partial_negatives=False))["loss_objectness"] == 0
    every = empty_target(labelled_classes=torch.tensor([3, 1, 2]))
    assert losses_of(every, SPEC.replace(rpn_partial_negatives=False))["loss_objectness"] > 0
    assert has_rpn_negatives({}, 3, partial=False)


def test_allowed_classes():
    targets = [{"labelled_classes": torch.tensor([2])}, {}]
    labels = [torch.tensor([0, 2]), torch.tensor([0])]
    allowed = allowed_classes(targets, labels, 3)
    assert allowed.int().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert allowed_classes([{}, {}], labels, 3) is None
