"""Masks and boxes: COCO RLE, polygons, contours, box conventions, Boundary IoU, and their compiled kernels."""
