"""`maskfleet demo`: draws images, trains, segments, evaluates and renders pictures, on this machine, in minutes.

OUT/data        drawn train, val and unlabelled images, with exact masks
OUT/training    output of the training: checkpoints, metrics
OUT/model       the trained checkpoint
OUT/run         the 200 unlabelled images, segmented
OUT/val_run     the validation images, segmented
OUT/evaluation  figures of OUT/val_run against its ground truth: metrics.json, metrics.parquet
OUT/pictures    segmented images with their masks drawn over them
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from jobs.checkpoints import find_checkpoint
from jobs.cluster.start import cluster
from jobs.config.demo import DemoConfig
from jobs.config.load import load_config
from jobs.config.results import EvaluateConfig
from jobs.config.segment import SegmentConfig
from jobs.config.train import TrainConfig
from jobs.evaluate import prepare_evaluate, run_evaluate, to_rich_table
from jobs.progress import ProgressLine
from jobs.segment import prepare_segment, run_segment
from jobs.training.train import prepare_train, run_train
from model.checkpoint_folder import CHECKPOINT_MARKER, is_checkpoint
from pipeline.dataset.shapes import draw_shapes
from pipeline.results.render import save_overlays
from pipeline.storage.uri import local_path
from pipeline.tables import load_images, load_instances

TRAIN_CONFIG, SEGMENT_CONFIG = "train/tiny_cpu", "segment/tiny_cpu"  # they ship with the program
NUM_PICTURES = 12


def run_demo(config: DemoConfig, *, say: Callable[[str], None], print_table: Callable[[Any], None]) -> None:
    """Runs each command of the project once, in order; steps that an earlier call has finished are not repeated.

    Args:
        say: writes one line of text.
        print_table: writes a rich table.
    """
    out = local_path(config.output.uri)
    sizes = config.demo
    say(f"1/5 drawing {sizes.num_train} training, {sizes.num_val} validation, {sizes.num_unlabelled} unlabelled images")
    data = out / "data"
    draw_shapes(
        str(data),
        num_train=sizes.num_train,
        num_val=sizes.num_val,
        num_unlabelled=sizes.num_unlabelled,
        seed=sizes.seed,
    )
    with cluster(config.cluster):
        say(f"2/5 training {sizes.max_steps} steps (Ray Train)")
        _train(config, data, out)
        say(f"3/5 segmenting {sizes.num_unlabelled} unlabelled images (Ray Data)")
        _segment(out / "model", data / "unlabelled", out / "run")
        say(f"4/5 segmenting and evaluating {sizes.num_val} validation images")
        _segment(out / "model", data / "val", out / "val_run")
    metrics, _ = run_evaluate(
        prepare_evaluate(
            load_config(
                EvaluateConfig,
                None,
                [
                    f"run.uri={out / 'val_run'}",
                    f"ground_truth.uri={data / 'val.json'}",
                    f"output.uri={out / 'evaluation'}",
                ],
            )
        )
    )
    print_table(to_rich_table(metrics))

    say("5/5 drawing pictures of the result")
    instances = load_instances(str(out / "run"))
    say(_describe(instances, load_images(str(out / "run"))))
    pictures = save_overlays(str(out / "run"), out / "pictures", num_images=NUM_PICTURES)
    say("")
    for name, content in (
        ("model", "the trained checkpoint"),
        ("run/images", "one row for each of the unlabelled images"),
        ("run/instances", "one row for each instance: box, score, mask as RLE"),
        ("evaluation", "the figures above as JSON and Parquet"),
        ("pictures", f"segmented images with their masks; begin with {pictures[0].name}"),
    ):
        say(f"  {config.output.uri}/{name:<14} {content}")
    say("")
    say(f"bbox AP {metrics.overall('bbox', 'AP'):.3f}")
    say(f"segm AP {metrics.overall('segm', 'AP'):.3f}")


def _train(config: DemoConfig, data: Path, out: Path) -> None:
    settings = load_config(
        TrainConfig,
        TRAIN_CONFIG,
        [
            f"data.train={data / 'train.json'}",
            f"data.val={data / 'val.json'}",
            f"output.uri={out / 'training'}",
            f"train.max_steps={config.demo.max_steps}",
            f"train.seed={config.demo.seed}",
        ],
    )
    with ProgressLine("train") as line:
        run_train(prepare_train(settings), on_progress=line.take)
    if not is_checkpoint(out / "model"):
        _copy_checkpoint(Path(find_checkpoint(str(out / "training"))), out / "model")


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint, its marker last: a copy that is cut off does not count as a checkpoint."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(CHECKPOINT_MARKER), dirs_exist_ok=True)
    shutil.copy2(source / CHECKPOINT_MARKER, target / CHECKPOINT_MARKER)


def _segment(model: Path, images: Path, run: Path) -> None:
    settings = load_config(
        SegmentConfig, SEGMENT_CONFIG, [f"model.checkpoint={model}", f"input.uri={images}", f"output.uri={run}"]
    )
    with ProgressLine("segment") as line:
        run_segment(prepare_segment(settings), line.show_run)


def _describe(instances: pd.DataFrame, images: pd.DataFrame) -> str:
    """The best rows of the instances table, and counts, mean score and mean area by category, as pandas prints them."""
    columns = ["image_id", "category", "score", "x1", "y1", "x2", "y2", "area_px", "rle_counts"]
    best = instances.sort_values("score", ascending=False)[columns].head(8)
    best = best.astype({name: "float64" for name in ("score", "x1", "y1", "x2", "y2")}).round(2)
    best["rle_counts"] = best["rle_counts"].str.slice(0, 12) + "..."
    confident = instances[instances["score"] > 0.5]
    by_category = confident.groupby("category").agg(
        instances=("score", "size"), mean_score=("score", "mean"), mean_area_px=("area_px", "mean")
    )
    with pd.option_context("display.width", 120, "display.max_columns", None):
        return (
            f"\nrun/instances: {len(instances):,} rows of {len(images):,} images; the best:\n"
            f"{best.to_string(index=False)}\n\n"
            f"with a score above 0.5:\n{by_category.round(2)}"
        )
