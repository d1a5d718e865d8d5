"""Results for people: overlays, exports, the HTML report, the history of evaluations, drift, costs.

Configurations name these figures, and must not load pandas for it.
"""

FIGURES = ("bbox AP", "segm AP", "keypoints AP")  # of a history, as "kind of IoU, metric"
