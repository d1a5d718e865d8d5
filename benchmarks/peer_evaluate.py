"""Peer of `maskfleet evaluate`: a script that evaluates boxes and masks with pycocotools from COCO JSON files.

python benchmarks/peer_evaluate.py TRUTH_JSON RESULTS_JSON
"""

from __future__ import annotations

import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def main() -> None:
    truth = COCO(sys.argv[1])
    results = truth.loadRes(sys.argv[2])
    for iou_type in ("bbox", "segm"):
        evaluator = COCOeval(truth, results, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()


if __name__ == "__main__":
    main()
