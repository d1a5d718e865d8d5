"""Training step: learning rate, seeded sampling, optimizer groups, EMA, and equality of one and two workers."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from model.network import build_model
from model.training.train_step import (
    ALONE,
    MicroBatch,
    Schedule,
    SeededSampler,
    StepSettings,
    Trainer,
    WeightAverage,
    WorkerRank,
    build_optimizer,
    mix_seed,
)
from model.vision import RoIHeads
from tests.specs import small_spec

SPEC = small_spec(2, channels=16, sides=(64, 64), mask_loss="bce_dice")


def make_batch(*indices: int, num_instances: int = 2) -> MicroBatch:
    """64 x 64 px images that are a function of their index, each with rectangles as instances."""
    images, targets = [], []
    for index in indices:
        random = torch.Generator().manual_seed(index)
        images.append(torch.rand(3, 64, 64, generator=random))
        corners = torch.randint(0, 30, (num_instances, 2), generator=random).float()
        boxes = torch.cat([corners, corners + 12 + 4 * torch.arange(num_instances)[:, None]], dim=1)
        masks = torch.zeros(num_instances, 64, 64, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": torch.arange(num_instances) % 2 + 1, "masks": masks})
    return MicroBatch(images, targets, tuple(f"img{index}" for index in indices), indices)


def make_trainer(*, optimizer: str = "sgd", worker: WorkerRank = ALONE, seed: int = 0, **settings) -> Trainer:
    torch.manual_seed(7)
    model = build_model(SPEC).train()
    made = build_optimizer(model, name=optimizer, learning_rate=0.01)
    return Trainer(model, made, StepSettings(seed, **settings), worker)


class CountReads(TorchDispatchMode):
    """Counts how often a number is read from a tensor."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def gradients_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


class TestSchedule:
    def test_warm_up_rises_linearly_from_its_factor_to_the_rate(self):
        schedule = Schedule("constant", 1.0, max_steps=9, warmup_steps=4, warmup_factor=0.2)
        assert [schedule.rate_at(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])

    def test_multistep_drops_at_each_milestone(self):
        schedule = Schedule("multistep", 0.02, max_steps=6, milestones=(2, 4))
        rates = [schedule.rate_at(step) for step in range(6)]
        assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002])

    def test_cosine_starts_after_the_warm_up_and_ends_at_its_factor(self):
        schedule = Schedule("cosine", 1.0, max_steps=110, warmup_steps=10, warmup_factor=1.0, final_factor=0.1)
        assert [schedule.rate_at(step) for step in (10, 60, 110)] == pytest.approx([1.0, 0.55, 0.1])
        assert schedule.rate_at(85) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.75)))

    def test_an_unknown_kind_is_refused(self):
        with pytest.raises(ValueError, match="'linear'; allowed: constant, cosine, multistep"):
            Schedule("linear", 1.0, max_steps=1)


class TestSeeds:
    def test_every_part_and_its_place_matter(self):
        seeds = {mix_seed(*parts) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]}
        assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
        assert mix_seed(0) == 0xE220A8397B1DCDAF >> 1  # SplitMix64's first number

    def test_the_choice_for_an_image_does_not_depend_on_its_batchmates(self):
        labels = [torch.tensor([1, 0, 0, -1, 2, 1, 0, 0, 0, 1] * 9), torch.tensor([0, 0, 1] * 20)]
        sampler = SeededSampler(16, 0.25, salt=1)
        sampler.image_seeds = (5, 6)
        together = sampler(labels)
        sampler.image_seeds = (6,)
        alone = sampler(labels[1:])
        assert torch.equal(together[0][1], alone[0][0]) and torch.equal(together[1][1], alone[1][0])
        sampler.image_seeds = (7,)
        assert not torch.equal(sampler(labels[1:])[1][0], alone[1][0])

    @pytest.mark.parametrize("values", [[1] * 40 + [0] * 40, [1] + [0] * 40, [0] * 3 + [1] * 40, [-1] * 9, []])
    def test_it_takes_as_many_as_torchvision_does(self, values: list[int]):
        labels = torch.tensor(values, dtype=torch.int64)
        sampler = SeededSampler(16, 0.25, salt=0)
        sampler.image_seeds = (1,)
        positive, negative = sampler([labels])
        # torchvision's sampler, as its heads have it.
        heads: Any = RoIHeads(None, None, None, 0.5, 0.5, 16, 0.25, None, 0.05, 0.5, 100)
        expected = heads.fg_bg_sampler([labels])
        assert (positive[0].sum(), negative[0].sum()) == (expected[0][0].sum(), expected[1][0].sum())
        assert bool((labels[positive[0].bool()] >= 1).all()) and bool((labels[negative[0].bool()] == 0).all())
        assert sampler.num_sampled == int(positive[0].sum() + negative[0].sum())
        assert sampler.num_positive == int(positive[0].sum())

    def test_a_batch_without_seeds_is_refused(self):
        with pytest.raises(ValueError, match="0 image seeds for a batch of 1"):
            SeededSampler(4, 0.5, salt=0)([torch.tensor([0, 1])])


class TestOptimizer:
    def test_frozen_parameters_are_left_out_and_norms_have_their_own_decay(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        model[0].requires_grad_(False)
        optimizer = build_optimizer(model, name="adamw", learning_rate=0.1, weight_decay=0.3, norm_weight_decay=0.0)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays == {
            id(model[1].weight): 0.0,
            id(model[1].bias): 0.0,
            id(model[2].weight): 0.3,
            id(model[2].bias): 0.3,
        }

    def test_nothing_to_train_and_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match="no parameter to train"):
            build_optimizer(nn.Linear(1, 1).requires_grad_(False), name="sgd", learning_rate=1)
        with pytest.raises(ValueError, match="'lamb'; allowed: sgd, adam, adamw"):
            build_optimizer(nn.Linear(1, 1), name="lamb", learning_rate=1)

    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
    def test_one_call_updates_all_parameters(self, name: str):
        optimizer = build_optimizer(nn.Linear(2, 2), name=name, learning_rate=1)
        assert [group["fused"] for group in optimizer.param_groups] == [True]


class TestStep:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
    def test_maps_have_the_precision_and_float16_scales_gradients(self, precision: str):
        trainer, seen = make_trainer(precision=precision), []
        trainer.model.backbone.register_forward_hook(lambda *call: seen.append(call[-1]["0"].dtype))
        trainer.step([make_batch(1)], step=0, learning_rate=0.01)
        assert seen == [getattr(torch, precision)] and trainer.scaler.is_enabled() == (precision == "float16")
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}

    def test_beside_the_forward_pass_a_step_reads_two_numbers_however_many_losses_and_images(self):
        """Whether the losses are finite, and the norm of the gradients; losses stay on the device for the log."""
        trainer = make_trainer(clip_norm=1.0)
        forward = trainer.parallel
        with CountReads() as reads:

            def uncounted(*args):
                before = reads.number
                losses = forward(*args)
                reads.number = before
                return losses

            trainer.parallel = uncounted
            trainer.step([make_batch(1, 2, 3)], step=0, learning_rate=0.01)
        assert reads.number == 2

    def test_the_same_seed_gives_the_same_weights_and_another_seed_different_ones(self):
        ends = []
        for seed in (0, 0, 1):
            trainer = make_trainer(seed=seed)
            for step in range(2):
                assert trainer.step([make_batch(1, 2)], step=step, learning_rate=0.01).applied
            ends.append(weights_of(trainer))
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
        assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])

    @pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "ema_decay": 0.9, "clip_norm": 0.5}])
    def test_a_resumed_trainer_repeats_the_uninterrupted_one(self, options: dict):
        uninterrupted = make_trainer(**options)
        for step in range(3):
            uninterrupted.step([make_batch(step)], step=step, learning_rate=0.01)
            if step == 0:
                state = copy.deepcopy(uninterrupted.state_dict())
                saved = copy.deepcopy(uninterrupted.saved_model().state_dict())
        resumed = make_trainer(**options)
        resumed.step([make_batch(9)], step=9, learning_rate=0.1)  # replaced by loading
        resumed.load_state_dict(state, saved)
        for step in (1, 2):
            resumed.step([make_batch(step)], step=step, learning_rate=0.01)
        for first, second in (
            (uninterrupted.model, resumed.model),
            (uninterrupted.saved_model(), resumed.saved_model()),
        ):
            for name, value in first.state_dict().items():
                assert torch.equal(value, second.state_dict()[name]), name

    def test_a_state_of_another_optimizer_is_refused(self):
        other = make_trainer(ema_decay=0.9)
        with pytest.raises(ValueError, match="does not fit"):
            other.load_state_dict(make_trainer().state_dict(), other.saved_model().state_dict())

    def test_accumulation_averages_the_gradients(self):
        once, twice = make_trainer(), make_trainer()
        once.step([make_batch(1)], step=0, learning_rate=0.0)
        twice.step([make_batch(1), make_batch(1)], step=0, learning_rate=0.0)
        for name, gradient in gradients_of(once).items():
            torch.testing.assert_close(gradient, gradients_of(twice)[name], rtol=1e-4, atol=1e-7)

    def test_clipping_limits_the_norm_and_reports_the_one_before_clipping(self):
        free, clipped = make_trainer(), make_trainer(clip_norm=0.25)
        before = free.step([make_batch(1)], step=0, learning_rate=0.0).grad_norm
        assert clipped.step([make_batch(1)], step=0, learning_rate=0.0).grad_norm == pytest.approx(before)
        assert before is not None and before > 0.25
        total = math.sqrt(sum(float(g.square().sum()) for g in gradients_of(clipped).values()))
        assert total == pytest.approx(0.25, rel=1e-3)

    def test_images_without_instances_train(self):
        trainer = make_trainer()
        result = trainer.step([make_batch(1, 2, num_instances=0)], step=0, learning_rate=0.01)
        assert result.applied and float(result.losses["loss_mask"]) == 0.0

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_lower_precision_trains_in_float32_weights(self, precision: str):
        trainer = make_trainer(precision=precision)
        result = trainer.step([make_batch(1, 2)], step=0, learning_rate=0.01)
        assert result.applied and result.grad_norm is not None and math.isfinite(result.grad_norm)
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}

    def test_a_loss_that_is_not_finite_names_its_images_and_leaves_the_weights(self):
        trainer = make_trainer(ema_decay=0.5)
        before, average = weights_of(trainer), copy.deepcopy(trainer.saved_model().state_dict())
        batch = make_batch(1, 2)
        batch.images[1][:] = float("nan")
        result = trainer.step([batch], step=0, learning_rate=0.01)
        assert not result.applied and result.suspects == ("img1", "img2")
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        assert all(torch.equal(value, average[name]) for name, value in trainer.saved_model().state_dict().items())
        assert trainer.step([make_batch(1)], step=1, learning_rate=0.01).applied

    def test_a_gradient_that_is_not_finite_leaves_the_weights(self):
        trainer = make_trainer()
        before = weights_of(trainer)
        weight = trainer.model.get_parameter("roi_heads.mask_predictor.mask_fcn_logits.weight")
        weight.register_hook(lambda grad: grad * float("inf"))
        result = trainer.step([make_batch(4)], step=0, learning_rate=0.01)
        assert not result.applied and result.suspects == ("img4",)
        assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_the_average_follows_the_weights_and_copies_counters():
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.get_buffer("num_batches_tracked").fill_(4)
    average.update(model)  # the decay of the first update is 2 / 11
    assert average.model.weight.item() == pytest.approx(1.0 * 2 / 11 + 3.0 * 9 / 11)
    assert average.model.num_batches_tracked.item() == 4
    for _ in range(50):
        average.update(model)
    assert average.model.weight.item() == pytest.approx(3.0)


def _two_workers(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for name, option in (("global", True), ("local", False)):
        # The two images differ in their number of instances, so that local and global averages differ.
        trainer = make_trainer(worker=WorkerRank(rank, 2), global_normalisers=option)
        result = trainer.step([make_batch(rank, num_instances=1 + 4 * rank)], step=0, learning_rate=0.0)
        results[name] = {"gradients": gradients_of(trainer), "losses": result.losses}
        results["buckets"] = trainer.parallel.gradient_as_bucket_view
    trainer = make_trainer(worker=WorkerRank(rank, 2))
    batch = make_batch(rank)
    if rank == 1:
        batch.images[0][:] = float("nan")
    before = weights_of(trainer)
    failed = trainer.step([batch], step=0, learning_rate=0.01)
    unchanged = all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    results["failed"] = {"applied": failed.applied, "suspects": failed.suspects, "unchanged": unchanged}
    # One worker has no instance, and gradients are accumulated: no reduction may wait for an absent gradient.
    empty = make_batch(rank, num_instances=2 * rank)
    results["empty"] = trainer.step([empty, empty], step=1, learning_rate=0.01).applied
    results["weights"] = weights_of(trainer)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
def test_two_workers_compute_the_gradients_and_losses_of_one(tmp_path: Path):
    """Gradients of 2 workers x 1 image equal those of 1 worker x 2 images, and workers decide alike."""
    spawn(_two_workers, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))

    alone = make_trainer()
    batches = make_batch(0, num_instances=1), make_batch(1, num_instances=5)
    both = MicroBatch(
        batches[0].images + batches[1].images,
        batches[0].targets + batches[1].targets,
        batches[0].image_ids + batches[1].image_ids,
        batches[0].sample_seeds + batches[1].sample_seeds,
    )
    losses = alone.step([both], step=0, learning_rate=0.0).losses
    for name, value in losses.items():
        mean = (first["global"]["losses"][name] + second["global"]["losses"][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6)
    expected = gradients_of(alone)
    largest = 0.0
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            first["global"]["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * max(scale, 1e-3)
        )
        largest = max(largest, (first["local"]["gradients"][name] - gradient).abs().max().item() / max(scale, 1e-9))
    assert largest > 0.05, "the local averages should differ here, else this test could not fail"

    assert [r["failed"] for r in (first, second)] == [
        {"applied": False, "suspects": (), "unchanged": True},
        {"applied": False, "suspects": ("img1",), "unchanged": True},
    ]
    assert first["empty"] and second["empty"] and first["buckets"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
