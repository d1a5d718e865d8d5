"""COCO AP of fast mode and of scaled JPEG decoding against exact mode with full-size decoding, on labelled photos.

    python -m benchmarks.bench_accuracy --checkpoint demo/model --images demo/data/val --truth demo/data/val.json

Needs a trained checkpoint. Segments the same photos four times with the bulk run, in exact and in fast mode, each with
JPEGs decoded at full size and at the size that the network needs, and computes COCO's AP of each run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.bench_predict import segment_ours, start_ray
from benchmarks.figures import print_figures
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.source import AnnotationSource
from pipeline.evaluation.metrics import evaluate_run

# Name of the variant: (segment.mode, decode.scaled).
VARIANTS = {
    "exact": ("exact", "false"),
    "exact scaled": ("exact", "true"),
    "fast whole": ("fast", "false"),
    "fast": ("fast", "true"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a trained checkpoint's folder")
    parser.add_argument("--images", required=True, help="folder of the labelled photos")
    parser.add_argument(
        "--truth", required=True, help="annotations of the photos, in any format that `maskfleet` reads"
    )
    parser.add_argument("--default-category", help="category of annotations whose format has no category names")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    truth = load_annotations(AnnotationSource(uri=options.truth, default_category=options.default_category))
    start_ray(options.threads)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (mode, scaled) in VARIANTS.items():
            out = Path(folder) / name.replace(" ", "_")
            totals = segment_ours(
                options.images,
                options.checkpoint,
                out,
                f"decode.scaled={scaled}",
                mode=mode,
                batch_size=4,
                num_threads=options.threads,
            )
            metrics = evaluate_run(str(out), truth)
            figures[f"{name} images a second"] = sum(totals["statuses"].values()) / totals["seconds"]
            for kind in ("bbox", "segm"):
                figures[f"{name} {kind} AP"] = 100 * metrics.overall(kind, "AP")
                if name != "exact":
                    figures[f"{name} {kind} AP difference"] = figures[f"{name} {kind} AP"] - figures[f"exact {kind} AP"]
    print_figures(figures)


if __name__ == "__main__":
    main()
