"""What fast mode and scaled decoding cost in AP, on labelled photos and a trained checkpoint.

    python -m benchmarks.bench_accuracy --checkpoint demo/model --images demo/data/val --truth demo/data/val.json

The bulk run four times over the same photos: exact and fast, each with JPEGs decoded whole and at the size that is
looked at, and COCO's AP of each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.bench_predict import segment_ours, start_ray
from benchmarks.figures import print_figures
from pipeline.dataset.formats.reading import load_annotations
from pipeline.evaluation.metrics import evaluate_run

WAYS = {
    "exact": ("exact", "false"),
    "exact scaled": ("exact", "true"),
    "fast whole": ("fast", "false"),
    "fast": ("fast", "true"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a trained checkpoint's folder")
    parser.add_argument("--images", required=True, help="folder of its photos")
    parser.add_argument("--truth", required=True, help="their annotations, in any format that is read")
    parser.add_argument("--default-category", help="for a format that names none")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    truth = load_annotations(options.truth, default_category=options.default_category)
    start_ray(options.threads)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (mode, scaled) in WAYS.items():
            out = Path(folder) / name.replace(" ", "_")
            found = segment_ours(
                options.images,
                options.checkpoint,
                out,
                f"decode.scaled={scaled}",
                mode=mode,
                batch_size=4,
                num_threads=options.threads,
            )
            metrics = evaluate_run(str(out), truth)
            figures[f"{name} images a second"] = sum(found["statuses"].values()) / found["seconds"]
            for kind in ("bbox", "segm"):
                figures[f"{name} {kind} AP"] = 100 * metrics.overall(kind, "AP")
                if name != "exact":
                    figures[f"{name} {kind} AP difference"] = figures[f"{name} {kind} AP"] - figures[f"exact {kind} AP"]
    print_figures(figures)


if __name__ == "__main__":
    main()
