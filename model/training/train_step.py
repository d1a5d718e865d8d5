"""Training step: optimizer, learning rate schedule, seeded sampling, loss normalisation over workers, weight average.

Nothing here reads a configuration or depends on Ray. A step is a pure function of (weights, optimizer state, samples,
seed, step): every random choice is drawn from seeds derived from the seed and the step, so that a resumed run repeats
exactly what an uninterrupted one would have done.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.network import MaskRCNN

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "multistep")
PRECISIONS = ("float32", "bfloat16", "float16")
# What each loss term is an average over: anchors sampled for the RPN, proposals sampled for the box head, positive
# proposals for the mask head. Terms that are not listed keep each worker's own average.
NORMALISER_OF_LOSS = {
    "loss_objectness": "anchors",
    "loss_rpn_box_reg": "anchors",
    "loss_classifier": "proposals",
    "loss_box_reg": "proposals",
    "loss_mask": "positives",
    "loss_mask_dice": "positives",
}
_NORMALISERS = ("anchors", "proposals", "positives")
_NORM_LAYERS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)


def mix_seed(*parts: int) -> int:
    """A 63-bit seed that is a pure function of integers (a chain of SplitMix64 finalisers; Steele et al., 2014)."""
    value = 0
    for part in parts:
        value = (value + (part & 0xFFFFFFFFFFFFFFFF) + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


@dataclass(frozen=True)
class Schedule:
    """Learning rate of every step, a pure function of the step, so that a checkpoint needs no scheduler state.

    Attributes:
        kind: "constant"; "multistep" (times gamma at each milestone); "cosine" (falls to learning_rate * final_factor
            at max_steps; Loshchilov and Hutter, 2017).
        learning_rate: Rate after the warm-up.
        max_steps: Length of the training in steps.
        warmup_steps: Steps of linear warm-up from learning_rate * warmup_factor (Goyal et al., 2017).
        warmup_factor: Fraction of the rate at which the warm-up starts, 0..1.
        milestones: Steps at which "multistep" drops.
        gamma: Factor of each drop.
        final_factor: Fraction of the rate at which "cosine" ends.

    Raises:
        ValueError: The kind is unknown.
    """

    kind: str
    learning_rate: float
    max_steps: int
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"schedule is {self.kind!r}; allowed: {', '.join(SCHEDULES)}")

    def rate_at(self, step: int) -> float:
        """Learning rate of the step after `step` steps, 0 .. max_steps - 1."""
        rate = self.learning_rate
        if self.kind == "multistep":
            rate *= self.gamma ** sum(step >= milestone for milestone in self.milestones)
        elif self.kind == "cosine":
            progress = min(1.0, max(0, step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps))
            rate *= self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        if step < self.warmup_steps:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        return rate


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    norm_weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """Optimizer over the trainable parameters (requires_grad), in the network's own order.

    Args:
        model: The network.
        name: "sgd" (with momentum), "adam" or "adamw".
        learning_rate: Initial rate; `Trainer.step` sets each step's.
        momentum: SGD's momentum; Adam and AdamW keep their betas of 0.9 and 0.999.
        weight_decay: L2 penalty (sgd, adam) or decoupled decay (adamw).
        norm_weight_decay: The same for normalisation layers; None is weight_decay.

    Raises:
        ValueError: Unknown name, or no trainable parameter.
    """
    norm_parameters: list[nn.Parameter] = []
    other_parameters: list[nn.Parameter] = []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                (norm_parameters if isinstance(module, _NORM_LAYERS) else other_parameters).append(parameter)
    if not norm_parameters and not other_parameters:
        raise ValueError("the network has no parameter to train: every one is frozen")
    groups: list[dict[str, object]] = [{"params": other_parameters}] if other_parameters else []
    if norm_parameters:
        decay = weight_decay if norm_weight_decay is None else norm_weight_decay
        groups.append({"params": norm_parameters, "weight_decay": decay})
    # fused: one call for all parameters, on CPU and GPU; AdamW on the tiny network then takes a fifth of the time.
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    raise ValueError(f"optimizer is {name!r}; allowed: {', '.join(OPTIMIZERS)}")


class SeededSampler:
    """torchvision's BalancedPositiveNegativeSampler with a separate random stream for each image.

    The sample of an image depends only on its seed and its labels, not on the rest of its batch or its worker. The
    numbers of samples of the last call are kept for the loss normalisers.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, salt: int) -> None:
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.salt = salt
        self.image_seeds: Sequence[int] = ()
        self.num_positive = 0
        self.num_sampled = 0

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks uint8 [A] of the sampled positives (label >= 1) and of the sampled negatives (label 0) of each image.

        Raises:
            ValueError: There is not one seed for each image.
        """
        if len(labels) != len(self.image_seeds):
            raise ValueError(f"{len(self.image_seeds)} image seeds for a batch of {len(labels)} images")
        self.num_positive = self.num_sampled = 0
        positives, negatives = [], []
        generator = None
        for seed, image_labels in zip(self.image_seeds, labels):
            if generator is None:
                generator = torch.Generator(device=image_labels.device)
            generator.manual_seed(mix_seed(seed, self.salt))
            positive = torch.where(image_labels >= 1)[0]
            negative = torch.where(image_labels == 0)[0]
            num_positive = min(positive.numel(), int(self.batch_size_per_image * self.positive_fraction))
            num_negative = min(negative.numel(), self.batch_size_per_image - num_positive)
            positives.append(_random_mask(image_labels, positive, num_positive, generator))
            negatives.append(_random_mask(image_labels, negative, num_negative, generator))
            self.num_positive += num_positive
            self.num_sampled += num_positive + num_negative
        return positives, negatives


def _random_mask(labels: Tensor, candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(candidates.numel(), generator=generator, device=labels.device)[:count]
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[candidates[order]] = 1
    return mask


class WeightAverage:
    """Exponential moving average (EMA) of the weights; if it is on, checkpoints hold the average.

    The decay rises as (1 + n) / (10 + n) up to its value, so that random initial weights do not dominate short runs.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model: Any = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights; integer buffers are copied."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages, currents = [], []
        for average, current in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if current.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        get_ema_multi_avg_fn(decay)(averages, currents, None)


@dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass, with their targets.

    Attributes:
        images: float32 [C, H, W] each, 0..1.
        targets: One for each image, see `model.network.MaskRCNN`.
        image_ids: The data set's own ids, for messages.
        sample_seeds: One integer for each image, the same on every worker (its index in the data set).
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    image_ids: tuple[str, ...]
    sample_seeds: tuple[int, ...]


@dataclass
class StepResult:
    """Result of a training step on one worker.

    Attributes:
        losses: This worker's share of each loss term, detached, on the device; the mean over all workers is the loss of
            the whole batch.
        applied: False if a loss or gradient was not finite and the weights were not changed (on every worker).
        grad_norm: L2 norm of all gradients before clipping; None when not computed.
        suspects: Ids of this worker's images whose loss was not finite, or all of them for a bad gradient.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    applied: bool = True
    grad_norm: float | None = None
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerRank:
    """A worker's number among those that train together: 0 .. world_size - 1, and 0 of 1 where it is alone."""

    rank: int = 0
    world_size: int = 1


ALONE = WorkerRank()


@dataclass(frozen=True)
class StepSettings:
    """Settings of a training step that do not belong to the optimizer.

    Attributes:
        seed: The run's seed.
        precision: "float32", or autocast to "bfloat16" or "float16" (the latter with gradient scaling).
        clip_norm: Largest L2 norm of the gradients; None does not clip.
        ema_decay: Decay of the weight average; None keeps none.
        global_normalisers: Divide each loss term by its count over all workers, so that W workers with one image each
            compute the gradient of one worker with W images; False keeps torchvision's average per worker.

    Raises:
        ValueError: The precision is unknown.
    """

    seed: int
    precision: str = "float32"
    clip_norm: float | None = None
    ema_decay: float | None = None
    global_normalisers: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}")


class Trainer:
    """A network with its optimizer; `step` trains it for one step.

    Args:
        model: The network, on its device, in training mode.
        optimizer: From build_optimizer.
        settings: Of every step.
        worker: This worker; with more than one worker the default process group must exist.
    """

    def __init__(
        self,
        model: MaskRCNN,
        optimizer: torch.optim.Optimizer,
        settings: StepSettings,
        worker: WorkerRank = ALONE,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.worker = worker
        self.device = next(model.parameters()).device
        self.autocast_dtype = None if settings.precision == "float32" else getattr(torch, settings.precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.weight_average = None if settings.ema_decay is None else WeightAverage(model, settings.ema_decay)
        self.rpn_sampler = _seed_sampler(model.rpn, salt=1)
        self.roi_sampler = _seed_sampler(model.roi_heads, salt=2)
        self.parallel: Any = model
        if worker.world_size > 1:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            # gradient_as_bucket_view: gradients are stored in the buckets that are reduced, which saves a copy.
            self.parallel = nn.parallel.DistributedDataParallel(
                model, device_ids=device_ids, gradient_as_bucket_view=True
            )

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, gradient scaler, weight average and, when it is on, the unaveraged weights."""
        state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        if self.weight_average is not None:
            state["weight_average"] = {"num_updates": self.weight_average.num_updates}
            state["model"] = self.model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], saved_model: dict[str, Tensor]) -> None:
        """Restore a saved state; saved_model is the checkpoint's weights (the average, if there is one).

        Raises:
            ValueError: The state belongs to another optimizer or network.
        """
        try:
            self.model.load_state_dict(state.get("model", saved_model))
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.weight_average is not None:
                self.weight_average.num_updates = int(state["weight_average"]["num_updates"])
                self.weight_average.model.load_state_dict(saved_model)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"the saved training state does not fit this network and optimizer: {error}") from error

    def saved_model(self) -> MaskRCNN:
        """The network whose weights a checkpoint holds: the average if there is one, else the trained network."""
        return self.weight_average.model if self.weight_average is not None else self.model

    def step(self, batches: Sequence[MicroBatch], *, step: int, learning_rate: float) -> StepResult:
        """Forward, backward and update on the batches; gradients of several batches are averaged.

        Every worker must call this for the same step with the same number of batches. If a loss or gradient is not
        finite on any worker, the weights are not changed on any.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # Other random draws (a multi-scale resize, dropout) are then a function of the step too.
        torch.manual_seed(mix_seed(self.settings.seed, step, self.worker.rank))
        self.optimizer.zero_grad(set_to_none=True)
        result = StepResult()
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with contextlib.nullcontext() if is_last or self.worker.world_size == 1 else self.parallel.no_sync():
                losses = self._forward(batch, step)
                factors, is_finite = self._reduce_counts(losses)
                if not is_finite:
                    self.optimizer.zero_grad(set_to_none=True)
                    is_local_finite = all(bool(torch.isfinite(value)) for value in losses.values())
                    return StepResult(
                        losses={name: value.detach() for name, value in losses.items()},
                        applied=False,
                        suspects=() if is_local_finite else batch.image_ids,
                    )
                scaled = {name: value * (factors[name] / len(batches)) for name, value in losses.items()}
                self.scaler.scale(torch.stack(list(scaled.values())).sum()).backward()
            for name, value in scaled.items():
                result.losses[name] = result.losses.get(name, 0) + value.detach()
        self._update(result, [image_id for batch in batches for image_id in batch.image_ids])
        return result

    def _forward(self, batch: MicroBatch, step: int) -> dict[str, Tensor]:
        image_seeds = [mix_seed(self.settings.seed, step, sample) for sample in batch.sample_seeds]
        self.rpn_sampler.image_seeds = self.roi_sampler.image_seeds = image_seeds
        images = [image.to(self.device, non_blocking=True) for image in batch.images]
        targets = [
            {name: value.to(self.device, non_blocking=True) for name, value in target.items()}
            for target in batch.targets
        ]
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            return self.parallel(images, targets)

    def _reduce_counts(self, losses: dict[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Normalising factor of each loss term, and whether all workers' losses are finite, by one small all-reduce."""
        counts = (self.rpn_sampler.num_sampled, self.roi_sampler.num_sampled, self.roi_sampler.num_positive)
        total = torch.stack([value.detach().float() for value in losses.values()]).sum()
        if self.worker.world_size == 1:
            return dict.fromkeys(losses, 1.0), bool(torch.isfinite(total))
        local = torch.tensor([*counts, 0.0], dtype=torch.float64)
        reduced = local.to(self.device)
        reduced[3] = (~torch.isfinite(total)).double()
        dist.all_reduce(reduced)
        *totals, num_bad = reduced.tolist()
        factors = dict.fromkeys(losses, 1.0)
        if self.settings.global_normalisers:
            # DDP averages over workers: mean_w(loss_w * n_w * W / sum n) is the loss over the whole batch.
            shares = {
                name: count * self.worker.world_size / max(total_count, 1.0)
                for name, count, total_count in zip(_NORMALISERS, counts, totals)
            }
            factors = {name: shares[NORMALISER_OF_LOSS[name]] if name in NORMALISER_OF_LOSS else 1.0 for name in losses}
        return factors, num_bad == 0

    def _update(self, result: StepResult, image_ids: Iterable[str]) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
        # Gradients have been reduced and are equal on every worker, so that all decide alike without communication.
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            result.applied = False
            result.suspects = tuple(image_ids)
            return
        result.grad_norm = float(norm)
        if self.settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_norm, norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.weight_average is not None:
            self.weight_average.update(self.model)


def _seed_sampler(module: Any, *, salt: int) -> SeededSampler:
    """Replace the sampler of the RPN or the RoI heads, torchvision's, by a seeded one."""
    previous = module.fg_bg_sampler
    module.fg_bg_sampler = SeededSampler(previous.batch_size_per_image, previous.positive_fraction, salt)
    return module.fg_bg_sampler
