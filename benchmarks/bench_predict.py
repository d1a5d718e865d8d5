"""Bulk segmentation, images a second and peak memory, against a plain Ray Data pipeline with torchvision.

    python -m benchmarks.bench_predict [--images DIR] [--runs 3] [--threads 2]
    python -m benchmarks.bench_predict --tiny [--count 2000]

Both sides have the same photos, weights and cores; the time is that from the ready actor to the written Parquet.
Without --images, the photos are 12 synthetic ones of 0.7 to 3 megapixels. The network is R50-FPN at 800 px with random
weights whose class scores are peaked, so that each photo yields 100 instances. --tiny takes the tiny network and
synthetic JPEGs of 640 x 480 px instead. Each round runs in turn: the peer; our bulk run in exact mode and, where the
processor computes in bfloat16, in fast mode; and our predictor alone on the decoded photos in memory. Each has one
actor on `--threads` cores. Prints a line of JSON for each round, then one of medians.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

from benchmarks.bench_decode import draw_jpegs
from benchmarks.figures import print_figures
from benchmarks.peer_segment import segment_as_peer
from jobs.config.load import load_config
from jobs.config.segment import SegmentConfig
from jobs.segment import bulk_job, prepare_segment
from model.categories import Category
from model.checkpoint import load_checkpoint, save_checkpoint
from model.inference.predictor import native_dtype, native_engine
from model.network import build_model
from model.spec import ModelSpec
from pipeline import malloc
from pipeline.bulk.encode import encode_instances
from pipeline.bulk.predict import ImagePredictor, Prediction
from pipeline.bulk.run import segment_corpus
from pipeline.run_spec import SegmentSpec, Slicing

SCORE_THRESHOLD = 0.05
MAX_DETECTIONS = 100
# Height and width of the drawn photos: 0.7 to 3 megapixels.
PHOTO_SIZES = [(683, 1024), (768, 1024), (1024, 768), (853, 1280), (1200, 900), (960, 1280)]
PHOTO_SIZES += [(1067, 1600), (1600, 1200), (1152, 1728), (1365, 2048), (2048, 1365), (1500, 2000)]


class TimedPredictor(ImagePredictor):
    """A predictor that writes to a file when it was ready and the peak memory of its process."""

    def __init__(self, *args: Any, note: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.note, self.ready = note, time.time()

    def predict(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        predictions = super().predict(images, sizes)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        Path(self.note).write_text(json.dumps({"ready": self.ready, "peak_mib": peak_mib}))
        return predictions


def make_checkpoint(folder: Path, spec: ModelSpec) -> None:
    """Saves random weights that find the maximum number of instances; such a network is as fast as a trained one."""
    torch.manual_seed(0)
    network = build_model(spec)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.mul_(60.0 * 2)
        network.roi_heads.box_predictor.bbox_pred.weight.mul_(0.1)
    categories = tuple(Category(k, f"class {k}") for k in range(1, spec.num_classes + 1))
    save_checkpoint(folder, model=network, spec=spec, categories=categories, progress={})


def draw_pixels(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 RGB [H, W, 3]: smooth shapes with noise, which compress like photos."""
    coarse = Image.fromarray(random.integers(0, 256, (height // 64, width // 64, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return (pixels + random.integers(-8, 9, pixels.shape, np.int16)).clip(0, 255).astype(np.uint8)


def draw_photos(folder: Path) -> None:
    """Writes one synthetic JPEG of each of `PHOTO_SIZES`."""
    random = np.random.default_rng(0)
    for index, (height, width) in enumerate(PHOTO_SIZES):
        Image.fromarray(draw_pixels(random, height, width)).save(folder / f"{index:02d}.jpg", quality=90)


def start_ray(num_cpus: int) -> None:
    """Starts a new local Ray, even if a cluster runs on the machine."""
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
    )


def segment_ours(
    images: str, checkpoint: str, out: Path, *overrides: str, mode: str, batch_size: int, num_threads: int
) -> dict[str, Any]:
    """Totals of the bulk run with these configuration `overrides`; `seconds` counts from its actor's being ready."""
    settings = [
        *overrides,
        *(f"model.checkpoint={checkpoint}", f"input.uri={images}", f"output.uri={out}", f"segment.mode={mode}"),
        *(f"segment.batch_size={batch_size}", f"segment.cpus_per_worker={num_threads}", "segment.num_workers=[1, 1]"),
        *(f"segment.score_threshold={SCORE_THRESHOLD}", f"segment.max_detections={MAX_DETECTIONS}"),
        f"segment.decode_children={num_threads}",
    ]
    plan = prepare_segment(load_config(SegmentConfig, None, settings))
    note_path = out.with_suffix(".note")
    job = bulk_job(plan)
    job = type(job)(**{**vars(job), "predictor": functools.partial(TimedPredictor, note=str(note_path))})
    totals = segment_corpus(job)
    ended = time.time()
    note = json.loads(note_path.read_text())
    return {
        "seconds": ended - note["ready"],
        "num_instances": totals.num_instances,
        "peak_mib": note["peak_mib"],
        "statuses": totals.statuses,
    }


def make_predictor(
    checkpoint: str,
    *,
    max_detections: int = MAX_DETECTIONS,
    precision: str = "float32",
    slicing: Slicing | None = None,
    device: str = "cpu",
    engine: str | None = None,
    **settings: Any,
) -> ImagePredictor:
    """Our predictor with a checkpoint's weights and the benchmarks' thresholds; no engine is what a run would take."""
    return ImagePredictor(
        checkpoint,
        sha256=load_checkpoint(checkpoint).sha256,
        segment=SegmentSpec(
            score_threshold=SCORE_THRESHOLD,
            max_detections=max_detections,
            precision=precision,
            slice=slicing,
            engine=engine or native_engine(precision, device),
        ),
        device=device,
        **settings,
    )


def segment(predictor: ImagePredictor, images: list[np.ndarray]) -> int:
    """Predicts and encodes, from pixels in memory to RLE strings; returns the number of instances."""
    count = 0
    for prediction, image in zip(predictor.predict(images), images, strict=True):
        assert not isinstance(prediction, str), prediction
        count += len(encode_instances(prediction, predictor.categories, image.shape[:2], 0.5)["rle_counts"])
    return count


def predict_alone(images: str, checkpoint: str, *, batch_size: int, num_threads: int) -> float:
    """Seconds of the exact predictor on decoded photos in memory. Runs as a Ray task with an actor's malloc."""
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(Path(images).iterdir())]
    predictor = make_predictor(checkpoint, batch_size=batch_size, num_threads=num_threads)
    window = 4 * batch_size
    predictor.predict(pixels[:1])
    started = time.perf_counter()
    for start in range(0, len(pixels), window):
        predictor.predict(pixels[start : start + window])
    return time.perf_counter() - started


def run_round(images: str, checkpoint: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of one round: the peer, our modes and the predictor alone, in turn."""
    threads, count = options.threads, len(list(Path(images).iterdir()))
    peer = segment_as_peer(
        images,
        checkpoint,
        str(folder / "peer"),
        batch_size=options.peer_batch,
        num_threads=threads,
        score_threshold=SCORE_THRESHOLD,
        max_detections=MAX_DETECTIONS,
    )
    row: dict[str, Any] = {"peer_images_per_s": count / peer["seconds"], "peer_peak_mib": peer["peak_mib"]}
    row["instances_an_image"] = peer["num_instances"] / count
    settings = {"batch_size": options.batch, "num_threads": threads}
    for mode in ("exact", "fast") if native_dtype("fast", "cpu")[1] is None else ("exact",):
        ours = segment_ours(images, checkpoint, folder / mode, mode=mode, **settings)
        assert ours["statuses"] == {"ok": count}, ours
        row |= {
            f"{mode}_images_per_s": count / ours["seconds"],
            f"{mode}_ratio": peer["seconds"] / ours["seconds"],
            f"{mode}_peak_mib": ours["peak_mib"],
            f"{mode}_memory_ratio": ours["peak_mib"] / peer["peak_mib"],
            f"{mode}_instances_an_image": ours["num_instances"] / count,
        }
    task_like_an_actor: Any = ray.remote(num_cpus=threads, max_calls=1, runtime_env={"env_vars": malloc.ENVIRONMENT})
    alone_s = ray.get(task_like_an_actor(predict_alone).remote(images, checkpoint, **settings))
    row["end_to_end_over_predictor_alone"] = row["exact_images_per_s"] / (count / alone_s)
    row["load_average"] = os.getloadavg()[0]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of photos; synthetic photos by default")
    parser.add_argument("--count", type=int, default=2000, help="number of synthetic JPEGs with --tiny")
    parser.add_argument("--tiny", action="store_true", help="the tiny network on JPEGs of 640 x 480")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, help="our batch size: 1, with --tiny 8")
    parser.add_argument("--peer-batch", type=int, help="the peer's: 1, with --tiny 4")
    options = parser.parse_args()
    options.batch = options.batch or (8 if options.tiny else 1)
    options.peer_batch = options.peer_batch or (4 if options.tiny else 1)
    start_ray(options.threads)
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        spec = ModelSpec.tiny(num_classes=3) if options.tiny else ModelSpec(num_classes=90, norm="batch")
        make_checkpoint(folder / "model", spec)
        images = options.images
        if images is None:
            images = str(folder / "photos")
            (folder / "photos").mkdir()
            if options.tiny:
                files = draw_jpegs(20)
                for index in range(options.count):
                    (folder / "photos" / f"{index:05d}.jpg").write_bytes(files[index % len(files)])
            else:
                draw_photos(folder / "photos")
        for number in range(options.runs):
            round_folder = folder / f"round-{number}"
            round_folder.mkdir()
            rounds.append(run_round(images, str(folder / "model"), round_folder, options))
            print(json.dumps({name: round(value, 3) for name, value in rounds[-1].items()}), flush=True)
    print_figures({name: statistics.median(row[name] for row in rounds) for name in rounds[0]})


if __name__ == "__main__":
    main()
