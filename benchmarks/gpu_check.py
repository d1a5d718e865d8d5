"""Check of the network on one GPU: what it must give, what the host waits for, and how fast it is, in minutes.

    make gpu-check [ONLY='predictor waits']       # or: python -m benchmarks.gpu_check [PART ...] [--out gpu_check.json]

Parts, in this order:

    predictor   exact mode against the CPU: boxes within 0.05 px, scores within 1e-3; one call twice, bit for bit
    masks       run lengths against torch's own resize on the CPU: other pixels only within 1e-6 of the threshold
    upload      pinned upload beside work of the device: the same bytes
    memory      a batch that really does not fit is halved, and gives the detections of its images alone
    training    losses of a step in float32 and bfloat16 against the CPU's; frozen tensors stay as they are
    waits       times that the host waits for the device in a call, by `torch.cuda.set_sync_debug_mode`
    exact, fast images/s by batch size from pixels to RLE strings, R50-FPN at 800 px; share of the masks and of the
                device's own speed (a large matrix product of the same run); memory
    latency     one image of 512 x 512 px
    train       images/s of training steps

It needs torch, torchvision, numpy and safetensors; pycocotools writes the RLE strings, and numba where there are many.
Without a GPU, or with --small, it runs on a CPU with small tensors, which shows that every part runs and nothing else.
Prints a line for each figure, writes all of them as JSON, and ends with 1 if a check failed. What was skipped is named.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.inference.mask_rle import Runs, paste_runs, place, trace_runs
from model.inference.predictor import Detections, Predictor, native_dtype
from model.inference.prefetch import to_tensor, upload_ahead
from model.network import MaskRCNN, build_model
from model.spec import ModelSpec
from model.training.train_step import MicroBatch, StepSettings, Trainer, build_optimizer
from model.transfers import to_device
from pipeline.masks.rle import runs_to_counts

TIME_LIMIT_S = 420.0  # no part begins after this, so that all ends within eight minutes
MASK_THRESHOLD = 0.5
MAX_WAITS = 12


@dataclass(frozen=True)
class Sizes:
    """How large the checks are.

    Attributes:
        spec: The network of the correctness checks; `speed_spec` that of the speeds.
        side: Height of its images, px; they are half as wide again.
        batches: Batch sizes.
        images: Images of a timed round, at least.
        runs: Repetitions of a short measurement.
        product_side: Rows of the large matrix product.
    """

    spec: ModelSpec
    speed_spec: ModelSpec
    side: int
    batches: tuple[int, ...]
    images: int
    runs: int
    product_side: int


def small_sizes() -> Sizes:
    """For a CPU, in seconds."""
    spec = ModelSpec.tiny(num_classes=3, image_min_size=64, image_max_size=96, score_threshold=0.02)
    return Sizes(spec, spec, side=64, batches=(1, 2), images=2, runs=2, product_side=64)


def full_sizes() -> Sizes:
    """For a GPU, in minutes."""
    spec = ModelSpec(num_classes=90, norm="batch", score_threshold=0.02)
    return Sizes(
        spec.replace(image_min_size=320, image_max_size=480),
        spec.replace(image_min_size=800, image_max_size=1333, score_threshold=0.05),
        side=800,
        batches=(1, 4, 8, 16),
        images=64,
        runs=20,
        product_side=8_192,
    )


@dataclass
class Report:
    """Figures of the parts, checks that failed, and what was skipped."""

    figures: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        """Notes and prints a figure, and whether it keeps its limit."""
        self.figures[name] = float(f"{value:.5g}")
        limits = [f"{word} {limit:g}" for word, limit in (("<=", at_most), (">=", at_least)) if limit is not None]
        # Written so that NaN fails.
        keeps = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        if not keeps:
            self.failed.append(f"{name} is {value:g}, not {' and '.join(limits)}")
        verdict = ("ok, " if keeps else "FAILED, ") + " and ".join(limits) if limits else ""
        print(f"{name:<64} {value:>12.5g}  {verdict}", flush=True)

    def skip(self, what: str) -> None:
        """Notes and prints what is left out, with the reason."""
        self.skipped.append(what)
        print(f"skipped: {what}", flush=True)


@dataclass(frozen=True)
class Bench:
    """What each part is given."""

    device: torch.device
    sizes: Sizes
    report: Report

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one call of `work`, until the device has finished it."""
        self.finish()
        started = time.perf_counter()
        work()
        self.finish()
        return time.perf_counter() - started

    def finish(self) -> None:
        """Waits until the device has done all that was asked of it."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)


def draw_images(count: int, height: int, width: int) -> list[np.ndarray]:
    """uint8 RGB [H, W, 3]: smooth shapes with noise."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, max(height // 64, 2), max(width // 64, 2), generator=random)
    pixels = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 239
    pixels += torch.randint(0, 16, pixels.shape, generator=random)
    return list(pixels.byte().permute(0, 2, 3, 1).contiguous().numpy())


def draw_network(spec: ModelSpec, peak: float) -> MaskRCNN:
    """Random weights; class scores are the further apart, the larger `peak` is."""
    torch.manual_seed(0)
    network = build_model(spec).eval()
    with torch.no_grad():
        network.get_parameter("roi_heads.box_predictor.cls_score.weight").mul_(peak)
        network.get_parameter("roi_heads.mask_predictor.mask_fcn_logits.weight").mul_(500)
    return network


def has(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def rle_strings(runs: Runs | None) -> list[str]:
    """COCO's strings of an image's masks; without numba a mask at a time, without pycocotools too an empty one each."""
    assert runs is not None, "the predictor was asked for run lengths"
    lengths, numbers = runs
    if has("numba"):
        return runs_to_counts(lengths, numbers)[0]
    if not has("pycocotools"):
        return [""] * len(numbers)
    parts = np.split(lengths, np.cumsum(numbers)[:-1])[: len(numbers)]
    return [runs_to_counts(part, np.array([len(part)]))[0][0] for part in parts]


def check_predictor(bench: Bench) -> None:
    network, spec = draw_network(bench.sizes.spec, peak=20.0), bench.sizes.spec
    images = draw_images(3, spec.image_min_size, spec.image_min_size * 3 // 2)
    expected = Predictor(network, spec).predict(images)
    predictor = Predictor(network, spec, device=bench.device)
    given, again = predictor.predict(images), predictor.predict(images)
    num_paired, box_error, score_error = 0, 0.0, 0.0
    for ours, reference in zip(given, expected, strict=True):
        for box, label, score in zip(reference.boxes, reference.labels, reference.scores):
            distances = np.abs(ours.boxes - box).max(axis=1, initial=0) + 1e6 * (ours.labels != label)
            if len(distances) == 0 or distances.min() > 1:
                continue
            pair = int(distances.argmin())
            num_paired += 1
            box_error = max(box_error, float(distances[pair]))
            score_error = max(score_error, float(abs(ours.scores[pair] - score)))
    num_expected = sum(len(reference.scores) for reference in expected)
    report = bench.report
    report.add("predictor: detections on the CPU", num_expected, at_least=1)
    report.add("predictor: share of them found", num_paired / max(num_expected, 1), at_least=0.99)
    report.add("predictor: largest error of a box, px", box_error, at_most=0.05)
    report.add("predictor: largest error of a score", score_error, at_most=1e-3)
    same = all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(given, again, strict=True)
        for name in ("boxes", "labels", "scores", "mask_probs")
    )
    report.add("predictor: a second call is equal bit for bit", same, at_least=1)


def pixels_that_differ(
    mask_probs: Tensor, boxes: Tensor, size: tuple[int, int], traced: Runs, threshold: float
) -> tuple[int, float]:
    """Pixels of one image's traced masks that are not those of torch's own resize on a CPU, and how far they are off.

    Returns:
        Their number, and the largest distance of one's interpolated probability from the threshold, 0.0 without any.
    """
    height, width = size
    pasted = paste_runs(mask_probs, boxes, size, threshold)
    number, farthest = 0, 0.0
    for index, (ours, reference) in enumerate(zip(*map(_masks, (traced, pasted)), strict=True)):
        wrong = (ours != reference).reshape(width, height).T
        if not wrong.any():
            continue
        placement = place(boxes[index : index + 1], torch.tensor([size]), mask_probs.shape[1])
        top, left, rows, columns = (
            int(part) for part in (placement.top, placement.left, placement.height, placement.width)
        )
        padded = F.pad(mask_probs[index][None, None], (1, 1, 1, 1))
        values = F.interpolate(padded, size=(rows, columns), mode="bilinear", align_corners=False)[0, 0]
        y, x = np.nonzero(wrong)
        distances = np.abs(values.double().numpy()[y - top, x - left] - np.float32(threshold))
        number += len(distances)
        farthest = max(farthest, float(distances.max()))
    return number, farthest


def _masks(runs: Runs) -> list[np.ndarray]:
    """The masks of run lengths, bool [pixels] each, column-major."""
    lengths, numbers = runs
    parts = np.split(lengths, np.cumsum(numbers)[:-1])[: len(numbers)]
    return [np.repeat(np.arange(len(part)) % 2 == 1, part) for part in parts]


def draw_masks(count: int, side: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Masks [N, M, M] like those of a mask head, smooth blobs with noise, and boxes [N, 4] that may cross borders."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    radius = random.uniform(0.2, 0.6, (count, 1, 1))
    logits = 8 * (radius - np.hypot(y, x)) + random.normal(0, 0.5, (count, side, side))
    extent = np.array([size[1], size[0]])
    centre = random.uniform(0, 1, (count, 2)) * extent
    sides = (0.02 + 0.6 * random.uniform(0, 1, (count, 2)) ** 2) * extent
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    return torch.from_numpy(1 / (1 + np.exp(-logits))).float(), torch.from_numpy(boxes).float()


def trace(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int], device: torch.device, threshold: float) -> Runs:
    """The run lengths of one image's masks as the device traces them."""
    count = len(boxes)
    placement = place(boxes.to(device), to_device(size, device).expand(count, 2), mask_probs.shape[1])
    num_columns = int(placement.num_columns.sum())
    return trace_runs(mask_probs.to(device), placement, [size] * count, num_columns, threshold)


def check_masks(bench: Bench) -> None:
    number, farthest, num_pixels = 0, 0.0, 0
    side = bench.sizes.side
    for seed, size in enumerate([(side, side * 3 // 2), (side // 2, side // 2), (side // 8, side // 6)]):
        mask_probs, boxes = draw_masks(20, 28, size, seed)
        traced = trace(mask_probs, boxes, size, bench.device, MASK_THRESHOLD)
        more, off = pixels_that_differ(mask_probs, boxes, size, traced, MASK_THRESHOLD)
        number, farthest, num_pixels = number + more, max(farthest, off), num_pixels + 20 * size[0] * size[1]
    bench.report.add("masks: pixels compared", num_pixels)
    bench.report.add("masks: pixels that differ", number)
    bench.report.add("masks: their largest distance from the threshold", farthest, at_most=1e-6)


def check_upload(bench: Bench) -> None:
    batches = [draw_images(2, bench.sizes.side, bench.sizes.side + n) for n in range(4)]
    busy = torch.rand(bench.sizes.product_side // 4, bench.sizes.product_side // 4, device=bench.device)
    wrong, elsewhere = 0, 0
    for images, batch in zip(upload_ahead(batches, bench.device), batches, strict=True):
        busy = busy @ busy / busy.norm()
        for image, pixels in zip(images, batch, strict=True):
            tensor = to_tensor(image)
            elsewhere += tensor.device.type != bench.device.type
            wrong += not np.array_equal(tensor.cpu().numpy(), pixels)
    bench.report.add("upload: images that changed", wrong, at_most=0)
    bench.report.add("upload: images that stayed on the host", elsewhere, at_most=0)


def check_memory(bench: Bench) -> None:
    if not bench.is_gpu:
        bench.report.skip("memory: a CPU has no allocation that fails and can be tried again")
        return
    spec, batch = bench.sizes.speed_spec, 16
    predictor = Predictor(draw_network(spec, peak=120.0), spec, device=bench.device)
    images = draw_images(batch, bench.sizes.side, bench.sizes.side * 3 // 2)
    expected = [predictor.predict([image], runs_at=MASK_THRESHOLD)[0] for image in images]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    predictor.predict(images[:2], runs_at=MASK_THRESHOLD)
    needed = torch.cuda.max_memory_reserved(bench.device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * needed / total), bench.device)
    try:
        fits = True
        try:
            predictor.predict(images, runs_at=MASK_THRESHOLD)
        except torch.OutOfMemoryError:
            fits = False
        results = predictor.predict_or_reasons(images, runs_at=MASK_THRESHOLD)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        torch.cuda.empty_cache()
    bench.report.add("memory: the batch does not fit", not fits, at_least=1)
    found = [result for result in results if isinstance(result, Detections)]
    bench.report.add("memory: images of it that were predicted", len(found), at_least=batch)
    errors = [
        float(np.abs(np.sort(ours.scores) - np.sort(alone.scores)).max(initial=0))
        for ours, alone in zip(found, expected)
        if len(ours.scores) == len(alone.scores)
    ]
    bench.report.add("memory: images with as many detections as alone", len(errors), at_least=0.9 * batch)
    bench.report.add("memory: largest error of a score", max(errors, default=np.nan), at_most=2e-2)


def draw_batch(count: int, height: int, width: int, num_classes: int) -> MicroBatch:
    """Images with two rectangles each."""
    images, targets = [], []
    for index, pixels in enumerate(draw_images(count, height, width)):
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        sides = torch.tensor([width, height, width, height])
        boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]]) * sides
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1 : (x1 + x2) // 2] = 1
        labels = torch.tensor([1, 1 + index % num_classes])
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return MicroBatch(images, targets, tuple(str(index) for index in range(count)), tuple(range(count)))


def make_trainer(bench: Bench, spec: ModelSpec, device: torch.device, precision: str) -> Trainer:
    """A trainer of random weights, the same on every device."""
    torch.manual_seed(0)
    network = build_model(spec).train().to(device)
    optimizer = build_optimizer(network, name="sgd", learning_rate=1e-3)
    return Trainer(network, optimizer, StepSettings(seed=0, precision=precision))


def check_training(bench: Bench) -> None:
    # Every anchor and RoI is sampled: a GPU draws other random numbers than a CPU.
    spec = bench.sizes.spec.replace(
        frozen_stages=2, rpn_batch_size_per_image=10**6, box_batch_size_per_image=10**4, rpn_post_nms_train=200
    )
    side = spec.image_min_size
    batch = draw_batch(2, side, side * 3 // 2, spec.num_classes)
    cpu = torch.device("cpu")
    expected = make_trainer(bench, spec, cpu, "float32").step([batch], step=0, learning_rate=1e-3).losses
    for precision, limit in (("float32", 2e-3), ("bfloat16", 0.2)):
        trainer = make_trainer(bench, spec, bench.device, precision)
        frozen = {
            name: tensor.clone()
            for name, tensor in trainer.model.state_dict(keep_vars=True).items()
            if not tensor.requires_grad and tensor.is_floating_point() and "running" not in name
        }
        result = trainer.step([batch], step=0, learning_rate=1e-3)
        bench.report.add(f"training, {precision}: the step was taken", result.applied, at_least=1)
        for name, loss in result.losses.items():
            error = abs(float(loss) - float(expected[name])) / max(abs(float(expected[name])), 1e-3)
            bench.report.add(f"training, {precision}: relative error of {name}", error, at_most=limit)
        changed = sum(not torch.equal(tensor, trainer.model.state_dict()[name]) for name, tensor in frozen.items())
        bench.report.add(f"training, {precision}: frozen tensors", len(frozen), at_least=1)
        bench.report.add(f"training, {precision}: frozen tensors that changed", changed, at_most=0)


def count_waits(work: Callable[[], object]) -> int:
    """Times that the host waits for the GPU in a call, as torch sees it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def check_waits(bench: Bench) -> None:
    spec = bench.sizes.speed_spec
    network = draw_network(spec, peak=120.0)
    for most in (0, 10, 100):
        threshold = 1.0 if most == 0 else spec.score_threshold
        predictor = Predictor(
            network, spec, device=bench.device, score_threshold=threshold, max_detections=max(most, 1)
        )
        for batch_size in (1, 4, 16) if bench.is_gpu else (1, 2):
            images = draw_images(batch_size, bench.sizes.side, bench.sizes.side * 3 // 2)
            (uploaded,) = upload_ahead([images], bench.device)
            predict = functools.partial(predictor.predict, uploaded, runs_at=MASK_THRESHOLD)
            found = sum(len(detections.scores) for detections in predict()) / batch_size
            name = f"waits: batch {batch_size}, {found:g} detections an image"
            if bench.is_gpu:
                bench.report.add(name, count_waits(predict), at_most=MAX_WAITS)
            else:
                bench.report.skip(f"{name}: only a GPU is waited for")


def measure_product(bench: Bench, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a product of two large matrices."""
    side = bench.sizes.product_side
    matrix = torch.rand(side, side, device=bench.device).to(dtype)
    multiply = functools.partial(torch.mm, matrix, matrix)
    multiply()
    return 2 * side**3 / statistics.median(bench.seconds(multiply) for _ in range(10))


def segment(predictor: Predictor, batches: Sequence[Sequence[np.ndarray]]) -> int:
    """From pixels in memory to RLE strings, written beside the network as in a bulk run; returns how many."""
    with ThreadPoolExecutor(1) as writer:
        written = [
            writer.submit(rle_strings, detections.runs)
            for images in upload_ahead(batches, predictor.device)
            for detections in predictor.predict(images, runs_at=MASK_THRESHOLD)
        ]
        return sum(len(strings.result()) for strings in written)


def encode_masks(mask_probs: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[str]:
    """The RLE strings of one image's masks, from the mask head's output on the device."""
    return rle_strings(trace(mask_probs, boxes, size, mask_probs.device, MASK_THRESHOLD))


def measure_mode(bench: Bench, mode: str) -> None:
    dtype, reason = native_dtype(mode, bench.device)
    if reason is not None:
        bench.report.skip(f"{mode}: {reason}")
        return
    spec, report, sizes = bench.sizes.speed_spec, bench.report, bench.sizes
    network, side = draw_network(spec, peak=120.0), sizes.side
    peak = measure_product(bench, dtype)
    report.add(f"{mode}: large product, TFLOP/s", peak / 1e12)
    predictor = Predictor(network, spec, device=bench.device, dtype=dtype)
    images = draw_images(8, side, side * 3 // 2)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        predictor.predict(images[:1])
    flops = counter.get_total_flops()
    report.add(f"{mode}: network, GFLOP an image", flops / 1e9)
    for batch_size in sizes.batches:
        count = max(sizes.images, batch_size) // batch_size * batch_size
        stream = [images[index % len(images)] for index in range(count)]
        batches = [stream[start : start + batch_size] for start in range(0, count, batch_size)]
        if bench.is_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        instances = segment(predictor, batches[:2]) / len(batches[:2]) / batch_size
        total_s = statistics.median(bench.seconds(functools.partial(segment, predictor, batches)) for _ in range(3))
        found = predictor.predict(images[:1])[0]
        mask_probs, boxes = (torch.from_numpy(array) for array in (found.mask_probs, found.boxes))
        on_device = mask_probs.to(bench.device), boxes.to(bench.device)
        encode = functools.partial(encode_masks, *on_device, (side, side * 3 // 2))
        encode()
        masks_s = statistics.median(bench.seconds(encode) for _ in range(sizes.runs))
        prefix = f"{mode}, batch {batch_size}"
        report.add(f"{prefix}: images/s to RLE strings", count / total_s)
        report.add(f"{prefix}: instances an image", instances)
        report.add(f"{prefix}: share of the masks, one image at a time", masks_s * count / total_s)
        report.add(f"{prefix}: share of the product's speed", flops * count / total_s / peak)
        if bench.is_gpu:
            report.add(f"{prefix}: peak memory, MiB", torch.cuda.max_memory_allocated(bench.device) / 2**20)


def measure_latency(bench: Bench) -> None:
    side = 512 if bench.is_gpu else 64
    spec = bench.sizes.speed_spec.replace(image_min_size=side, image_max_size=side)
    network, images = draw_network(spec, peak=120.0), draw_images(1, side, side)
    for mode in ("exact", "fast"):
        dtype, reason = native_dtype(mode, bench.device)
        if reason is not None:
            bench.report.skip(f"latency, {mode}: {reason}")
            continue
        predictor = Predictor(network, spec, device=bench.device, dtype=dtype)
        for _ in range(3):
            segment(predictor, [images])
        spent = [
            bench.seconds(functools.partial(segment, predictor, [images])) for _ in range(max(bench.sizes.runs, 2) * 2)
        ]
        for quantile in (50, 99):
            name = f"latency, {mode}, {side} px: p{quantile}, ms"
            bench.report.add(name, 1e3 * float(np.percentile(spent, quantile)))


def measure_train(bench: Bench) -> None:
    spec, side = bench.sizes.speed_spec, bench.sizes.side
    count = 8 if bench.is_gpu else 2
    batch = draw_batch(count, side, side * 3 // 2, spec.num_classes)
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(bench, spec, bench.device, precision)
        if bench.is_gpu:
            trainer.model.to(memory_format=torch.channels_last)
            torch.cuda.reset_peak_memory_stats(bench.device)
        step = functools.partial(trainer.step, [batch], step=0, learning_rate=1e-4)
        step()
        spent = [bench.seconds(step) for _ in range(max(bench.sizes.runs // 2, 1))]
        bench.report.add(f"train, {precision}, batch {count}: images/s", count / statistics.median(spent))
        if bench.is_gpu:
            mebibytes = torch.cuda.max_memory_allocated(bench.device) / 2**20
            bench.report.add(f"train, {precision}: peak memory, MiB", mebibytes)
            waits = count_waits(step)
            bench.report.add(f"train, {precision}: waits in a step of {count} images", waits)


PARTS: dict[str, Callable[[Bench], None]] = {
    "predictor": check_predictor,
    "masks": check_masks,
    "upload": check_upload,
    "memory": check_memory,
    "training": check_training,
    "waits": check_waits,
    "exact": functools.partial(measure_mode, mode="exact"),
    "fast": functools.partial(measure_mode, mode="fast"),
    "latency": measure_latency,
    "train": measure_train,
}


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, for the record."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpus": torch.get_num_threads(),
    }


def run(names: Sequence[str], bench: Bench, time_limit_s: float = TIME_LIMIT_S) -> dict[str, Any]:
    """Runs the parts and returns the record that is written: the machine, figures, failures, seconds of each part."""
    report, seconds = bench.report, dict[str, float]()
    started = time.monotonic()
    for name in names:
        if time.monotonic() - started > time_limit_s:
            report.skip(f"{name}: {time_limit_s:g} s have passed")
            continue
        part_started = time.monotonic()
        try:
            PARTS[name](bench)
        except Exception as error:  # the other parts are still worth having
            traceback.print_exc()
            report.failed.append(f"{name}: {type(error).__name__}: {error}")
        seconds[name] = round(time.monotonic() - part_started, 1)
        if bench.is_gpu:
            torch.cuda.empty_cache()
    return {
        "figures": report.figures,
        **describe(bench.device),
        "failed": report.failed,
        "skipped": report.skipped,
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is given")
    parser.add_argument("--small", action="store_true", help="on the CPU with small tensors, GPU or not")
    parser.add_argument("--full", action="store_true", help="on a CPU too, everything in full: for hours")
    parser.add_argument("--out", type=Path, help="where the JSON goes; it is printed last in any case")
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    is_gpu = torch.cuda.is_available() and not options.small
    is_small = options.small or not (is_gpu or options.full)
    device = torch.device("cuda", torch.cuda.current_device()) if is_gpu else torch.device("cpu")
    bench = Bench(device, small_sizes() if is_small else full_sizes(), Report())
    if is_small:
        bench.report.skip("every figure of a GPU: on a CPU, with small tensors, it shows only that each part runs")
    if not has("numba"):
        way = "pycocotools writes them, more slowly" if has("pycocotools") else "nothing writes them"
        bench.report.skip(f"RLE strings as a bulk run writes them: numba is missing, and {way}")
    time_limit_s = TIME_LIMIT_S if is_gpu or is_small else float("inf")
    record = run(options.parts or list(PARTS), bench, time_limit_s)
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record), flush=True)
    for failure in record["failed"]:
        print(f"FAILED: {failure}", flush=True)
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
