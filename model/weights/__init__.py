"""Published weights: from torchvision, from detectron2, from files of either."""
