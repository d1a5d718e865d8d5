"""Trainings of two workers that are killed at random steps end with the weights of an undisturbed training."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from jobs.training.output import TrainingOutput
from pipeline.dataset.shapes import draw_shapes
from tests.chaos.clusters import one_core_nodes
from tests.chaos.trainings import TrainingProgram, check_same, settings, train_undisturbed

KINDS = ("rank 0", "rank 1", "driver", "node")
NUM_TRIALS = 20
NUM_STEPS = 40
LAST_KILL = 25


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(str(folder), num_train=11, num_val=1, num_unlabelled=0, image_size=(64, 80), max_shapes=3)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    train_undisturbed(settings(shapes, output, max_steps=NUM_STEPS))
    return output


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with one_core_nodes(2) as cluster:
        yield cluster


def strike(kind: str, program: TrainingProgram, nodes: Cluster) -> None:
    """Kills one of KINDS; a killed node is replaced."""
    if kind == "driver":
        program.kill_driver()
    elif kind == "node":
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        nodes.add_node(num_cpus=1)
    else:
        program.kill_rank(int(kind[-1]))


@pytest.mark.slow
def test_twenty_kills_at_random_steps(nodes: Cluster, shapes: Path, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    for trial in range(NUM_TRIALS):
        kind, kill_step = KINDS[trial % len(KINDS)], chance.randint(1, LAST_KILL)
        folder = tmp_path / str(trial)
        config = settings(shapes, folder / "out", address=nodes.address, max_steps=NUM_STEPS)
        program = TrainingProgram(config, folder)
        assert program.wait_for_step(kill_step), program.log.read_text()
        strike(kind, program, nodes)
        checkpoints = TrainingOutput(str(folder / "out")).steps()
        assert not checkpoints or checkpoints[-1] < NUM_STEPS, "the kill came when there was nothing left to disturb"
        if kind == "driver":
            program = TrainingProgram(config, folder)
        program.finish()
        if kind != "driver":
            assert program.num_starts > 1, "nothing was killed"
        check_same(folder / "out", undisturbed)
        print(
            f"trial {trial}: {kind} killed at step {kill_step}, newest checkpoint {checkpoints[-1:]}; identical",
            flush=True,
        )


@pytest.mark.slow
def test_training_goes_on_with_fewer_workers_after_a_node_is_lost_for_good(
    nodes: Cluster, shapes: Path, tmp_path: Path
) -> None:
    config = settings(
        shapes, tmp_path / "out", address=nodes.address, min_workers=1, max_steps=None, num_epochs=12, num_to_keep=None
    )
    program = TrainingProgram(config, tmp_path)
    try:
        assert program.wait_for_step(20), program.log.read_text()
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        program.finish()
    finally:
        nodes.add_node(num_cpus=1)
    output = TrainingOutput(str(tmp_path / "out"))
    newest = output.load_newest()
    assert newest is not None
    step, checkpoint = newest
    assert checkpoint.progress["world_size"] == 1 and checkpoint.progress["finished"]
    assert float(checkpoint.progress["num_seen"]) >= 12 * 11 and step > 66  # 66 steps would do if each had 2 images
    assert float(output.read_metrics()[-1]["epoch"]) >= 12


@pytest.mark.slow
def test_too_many_deaths_end_the_training_and_keep_what_it_has(nodes: Cluster, shapes: Path, tmp_path: Path) -> None:
    config = settings(shapes, tmp_path / "out", address=nodes.address, max_failures=1, checkpoint_every_steps=1)
    program = TrainingProgram(config, tmp_path)
    for step in (2, 8):
        assert program.wait_for_step(step), program.log.read_text()
        program.kill_rank(0)
    assert program.process.wait(300) != 0
    assert "the training stopped" in program.log.read_text() and "is kept)" in program.log.read_text()
    assert TrainingOutput(str(tmp_path / "out")).steps()
