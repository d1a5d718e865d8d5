"""Masks and boxes: COCO RLE, polygons, contours, box conventions, and their compiled kernels."""
