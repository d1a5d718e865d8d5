"""Published weights: loads torchvision's, detectron2's or any state dict file into a network."""
