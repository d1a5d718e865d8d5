"""Image transform: sizes as torchvision computes them, targets resized with their image, channel order, padding."""

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.spec import ModelSpec
from model.transform import ImageTransform, padded_size, resized_size
from tests.model.small_trainings import backbone_spec, build

SPEC = ModelSpec.tiny(num_classes=2, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))


def torchvisions_transform(spec):
    return GeneralizedRCNNTransform(
        spec.image_min_size, spec.image_max_size, list(spec.image_mean), list(spec.image_std)
    ).eval()


@pytest.mark.parametrize("size", [(100, 130), (130, 100), (64, 64), (500, 333), (37, 90), (128, 256), (100, 400)])
def test_images_become_what_torchvision_makes_of_them(size):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    batch, _ = ImageTransform(SPEC).eval()([image])
    reference, _ = torchvisions_transform(SPEC)([image])
    assert batch.image_sizes == reference.image_sizes
    assert batch.image_sizes == [resized_size(*size, min_size=128, max_size=256)]
    assert tuple(batch.tensors.shape[-2:]) == padded_size(*size, min_size=128, max_size=256)
    torch.testing.assert_close(batch.tensors, reference.tensors)


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((400, 800), (128, 256), (128, 256)),  # the shorter side becomes 128
        ((100, 400), (64, 256), (64, 256)),  # the longer side stops at 256
        ((129, 128), (129, 128), (160, 128)),
        ((1, 5000), (1, 256), (32, 256)),  # torchvision would make it 0 pixels high
    ],
)
def test_sizes_by_hand(size, resized, padded):
    assert resized_size(*size, min_size=128, max_size=256) == resized
    assert padded_size(*size, min_size=128, max_size=256) == padded


def test_targets_are_resized_with_their_image():
    """An image of 64 x 64 px becomes 128 x 128 px: every coordinate doubles."""
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:20, 30:50] = 1
    target = {
        "boxes": torch.tensor([[30.0, 10, 50, 20]]),
        "ignore_boxes": torch.tensor([[0.0, 0, 5, 6]]),
        "keypoints": torch.tensor([[[31.0, 12, 2]]]),
        "labels": torch.tensor([1]),
        "masks": masks,
    }
    _, resized = ImageTransform(SPEC).train().resize(torch.rand(3, 64, 64), target)
    assert resized["boxes"].tolist() == [[60, 20, 100, 40]]
    assert resized["ignore_boxes"].tolist() == [[0, 0, 10, 12]]
    assert resized["keypoints"].tolist() == [[[62, 24, 2]]]
    expected = torch.zeros(1, 128, 128, dtype=torch.uint8)
    expected[0, 20:40, 60:100] = 1
    assert resized["masks"].dtype == torch.uint8 and torch.equal(resized["masks"], expected)
    assert target["boxes"].tolist() == [[30, 10, 50, 20]], "the caller's target stays as it is"


def test_a_target_without_instances_is_resized():
    target = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 64, 64, dtype=torch.uint8)}
    _, resized = ImageTransform(SPEC).train().resize(torch.rand(3, 64, 64), target)
    assert resized["boxes"].shape == (0, 4) and resized["masks"].shape == (0, 128, 128)


def test_training_samples_that_have_their_size_already_keep_it():
    transform = ImageTransform(SPEC)
    transform.resizes_in_training = False
    image = torch.rand(3, 40, 50)
    assert transform.train().resize(image)[0] is image
    assert transform.eval().resize(image)[0].shape == (3, 128, 160)


def test_a_smaller_version_is_resized_to_the_size_of_its_original():
    transform = ImageTransform(SPEC).eval()
    batch = transform.for_prediction(iter([torch.rand(3, 50, 75)]), [(200, 300)])
    assert batch.image_sizes == [resized_size(200, 300, min_size=128, max_size=256)]


def test_bgr_networks_see_the_first_three_channels_in_reverse_order():
    means = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)}
    rgb = build(backbone_spec("tiny", **means)).eval()
    reversed_means = {name: values[::-1] for name, values in means.items()}
    bgr = build(backbone_spec("tiny", channel_order="bgr", **reversed_means)).eval()
    image = torch.rand(3, 64, 64)
    torch.testing.assert_close(rgb.transform([image])[0].tensors, bgr.transform([image])[0].tensors.flip(1))
