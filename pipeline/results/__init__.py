"""Results for people: overlays, exports, the HTML report, the history of evaluations, drift.

Configurations name these formats and figures, and must not load pandas for it.
"""

EXPORT_FORMATS = ("coco", "coco-results", "yolo", "labelme", "png")
FIGURES = ("bbox AP", "segm AP", "keypoints AP")  # of a history, as "kind of IoU, metric"
