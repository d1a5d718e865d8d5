"""Training step time against torchvision's reference loop: same network, data, cores and process count.

    python -m benchmarks.bench_train [--rounds 6] [--steps 20] [--threads 2]

The two loops take turns, a round of steps each on the same photos, so that other load on the machine affects both.
Prints seconds a step (median over rounds), the ratio ours / reference, and the share of time that our loop waited for
data. Both times include reading the samples.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader

from benchmarks.figures import print_figures
from jobs.training.data import BatchStream, SampleOrder
from model.network import build_model
from model.spec import ModelSpec
from model.training.train_step import StepSettings, Trainer, build_optimizer
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.shapes import draw_shapes
from pipeline.dataset.transforms.augment import build_transforms
from pipeline.dataset.transforms.settings import Augmentation
from pipeline.dataset.types import AnnotatedSet

LEARNING_RATE = 0.005
BATCH_SIZE = 4


def order_of(annotated: AnnotatedSet) -> SampleOrder:
    """The order in which both loops take the photos."""
    return SampleOrder([(image.height, image.width) for image in annotated.images], seed=0)


def reference_steps(annotated: AnnotatedSet, spec: ModelSpec, num_steps: int) -> Iterator[None]:
    """Yields after each step of torchvision's references/detection/engine.py, without its warm-up and its printing."""
    torch.manual_seed(0)
    model = build_model(spec).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
    samples = SampleSet(annotated, build_transforms(Augmentation(horizontal_flip=0.5)))
    order = order_of(annotated)
    same_photos = [(0, order[position][1]) for position in range(num_steps * BATCH_SIZE)]
    for images, targets in DataLoader(
        samples,
        batch_size=BATCH_SIZE,
        sampler=same_photos,
        num_workers=1,
        collate_fn=lambda batch: ([s.image for s in batch], [s.target for s in batch]),
    ):
        loss_dict = model(images, targets)
        losses = sum(loss for loss in loss_dict.values())
        if not torch.isfinite(torch.tensor(losses.item())):
            raise SystemExit("the reference's loss is not finite")
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        yield


def our_steps(annotated: AnnotatedSet, spec: ModelSpec, num_steps: int, waits: list[float]) -> Iterator[None]:
    """Yields after each step of our loop, with its seeds, normalisers, finite check and gradient norm."""
    torch.manual_seed(0)
    model = build_model(spec).train()
    optimizer = build_optimizer(model, name="sgd", learning_rate=LEARNING_RATE)
    trainer = Trainer(model, optimizer, StepSettings(seed=0))
    samples = SampleSet(annotated, build_transforms(Augmentation(horizontal_flip=0.5)))
    with BatchStream(samples, order_of(annotated), batch_size=BATCH_SIZE, num_steps=num_steps) as stream:
        for step, batches in enumerate(stream):
            trainer.step(batches.micro_batches, step=step, learning_rate=LEARNING_RATE)
            waits.append(batches.wait_s)
            yield


def timed(steps: Iterator[None], count: int, clock: Callable[[], float]) -> float:
    """Seconds a step over the next `count` steps."""
    started = clock()
    for _ in range(count):
        next(steps)
    return (clock() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        draw_shapes(folder, num_train=200, num_val=1, num_unlabelled=0)
        annotated = load_annotations(f"{folder}/train.json")
        spec = ModelSpec.tiny(len(annotated.categories))
        total = (options.rounds + 1) * options.steps
        waits: list[float] = []
        reference = reference_steps(annotated, spec, total)
        ours = our_steps(annotated, spec, total, waits)
        for steps in (reference, ours):  # starts the data processes and warms the caches
            timed(steps, options.steps, time.perf_counter)
        waits.clear()
        wall: dict[str, list[float]] = {"reference": [], "ours": []}
        cpu: dict[str, list[float]] = {"reference": [], "ours": []}
        for _ in range(options.rounds):
            for name, steps in (("reference", reference), ("ours", ours)):
                cpu_started = time.process_time()
                wall[name].append(timed(steps, options.steps, time.perf_counter))
                cpu[name].append((time.process_time() - cpu_started) / options.steps)
        our_total_s = sum(wall["ours"]) * options.steps
        for name in wall:
            print(
                f"{name:<10} {statistics.median(wall[name]):.4f} s a step  {statistics.median(cpu[name]):.4f} s of CPU"
            )
        ratios = [ours_s / reference_s for ours_s, reference_s in zip(wall["ours"], wall["reference"])]
        cpu_ratio = statistics.median(cpu["ours"]) / statistics.median(cpu["reference"])
        print(
            f"ratio ours / reference: {statistics.median(ratios):.3f} "
            f"(rounds {min(ratios):.3f} to {max(ratios):.3f}), CPU {cpu_ratio:.3f}"
        )
        print(f"data wait share: {sum(waits) / our_total_s:.1%}")
        print_figures(
            {
                **{f"{name} s a step": statistics.median(values) for name, values in wall.items()},
                "ratio": statistics.median(ratios),
                "CPU ratio": cpu_ratio,
                "data wait share": sum(waits) / our_total_s,
            }
        )


if __name__ == "__main__":
    main()
