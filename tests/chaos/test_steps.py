"""`kill -9` of a worker at each step of the commit protocol, on a real Ray."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from jobs import segment as segment_job
from pipeline.bulk import run
from tests.chaos.runs import check_exact, segment_here
from tests.chaos.s3 import make_bucket, settings_for, storage_words
from tests.chaos.saboteurs import BUCKET_STEPS, STEPS, DiesAtSteps

pytestmark = pytest.mark.usefixtures("ray_cluster")

SHARDS = ("corpus.shard_size=2", "segment.num_workers=[2, 2]")  # 22 shards, more than there are steps
SHORT = ("torn instances", "after instances", "unpublished commits", "after commits")


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    segment_here(tiny_checkpoint, photos, out, *SHARDS)
    return out


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def die_at(steps: tuple[str, ...], marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the workers of this test's runs die at these steps."""

    def segment_corpus(job, *callbacks):
        return run.segment_corpus(
            dataclasses.replace(job, predictor=partial(DiesAtSteps, steps=steps, marks=marks)), *callbacks
        )

    monkeypatch.setattr(segment_job, "segment_corpus", segment_corpus)


@pytest.mark.long
@pytest.mark.parametrize("steps", [SHORT, pytest.param(STEPS, marks=pytest.mark.slow)], ids=["short", "every"])
def test_a_worker_killed_at_a_step_of_the_commit_protocol_loses_nothing(
    steps: tuple[str, ...],
    tiny_checkpoint: Path,
    photos: Path,
    undisturbed: Path,
    marks: Path,
    tmp_path: Path,
    monkeypatch,
) -> None:
    die_at(steps, marks, monkeypatch)
    segment_here(tiny_checkpoint, photos, tmp_path / "run", *SHARDS)
    assert sorted(path.name for path in marks.iterdir()) == sorted(steps), "each step was reached and struck"
    check_exact(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["moto", pytest.param("rgw", marks=pytest.mark.s3)])
def test_a_worker_killed_before_and_after_each_write_to_a_bucket_loses_nothing(
    server: str, request, tiny_checkpoint: Path, photos: Path, undisturbed: Path, marks: Path, monkeypatch
) -> None:
    endpoint = request.getfixturevalue(server)
    die_at(BUCKET_STEPS, marks, monkeypatch)
    out = f"s3://{make_bucket(endpoint)}/run"
    segment_here(tiny_checkpoint, photos, out, *SHARDS, *storage_words(endpoint))
    assert sorted(path.name for path in marks.iterdir()) == sorted(BUCKET_STEPS)
    check_exact(out, undisturbed, settings_for(endpoint))
