"""A replay that is spread over workers writes the bytes of one that is not."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ReplayError
from planner.evaluation.ranks import plan_in_ranks
from planner.evaluation.replay import Lineage, Replay, replay
from planner.evaluation.shards import Job, Opened, plan_in_processes, plan_on_spark, plan_shard
from tests.evaluation.planners import catalogue_of, examples_of, oracle, popular
from tests.spark import local_spark, needs_spark

CATALOGUE = catalogue_of()
IDENTITY = {"candidate": "a", "baseline": "b"}


def opened(num_rows: int = 42, *, die: bool = False) -> Opened:
    """What every worker opens for itself."""
    if die:
        os._exit(9)
    examples = examples_of(num_rows, CATALOGUE)
    return Opened(oracle(examples, CATALOGUE), popular(CATALOGUE), CATALOGUE, examples)


def other_split() -> Opened:
    examples = examples_of(3, CATALOGUE, split="train")
    return Opened(oracle(examples, CATALOGUE), popular(CATALOGUE), CATALOGUE, examples)


def other_catalogue() -> Opened:
    world = opened()
    return replace(world, baseline=popular(Catalogue.of(CATALOGUE.recipes[2:])))


def joined(folder: Path, **options: Any) -> Replay:
    world = opened()
    return replay(
        world.candidate, world.baseline, world.examples, catalogue=CATALOGUE, folder=folder, split="test",
        identity=IDENTITY, lineage=Lineage("d", "train"), batch_size=4, **options,
    )  # fmt: skip


def job(folder: Path, open_: Any = opened, **options: Any) -> Job:
    return Job(open_, folder, "test", IDENTITY, batch_size=4, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return joined(tmp_path_factory.mktemp("whole")).rows_path.read_bytes()


@pytest.mark.parametrize("num_shards", [1, 3, 20])
def test_shards_of_any_number_join_to_the_same_bytes(tmp_path: Path, whole: bytes, num_shards: int) -> None:
    planned = [plan_shard(job(tmp_path), shard, num_shards) for shard in range(num_shards)]
    assert sum(planned) == 42 and max(planned) - min(planned) <= 8
    found = joined(tmp_path)
    assert found.num_resumed == 42 and found.rows_path.read_bytes() == whole
    assert found.costs["candidate"].num_plans == 42


def test_what_a_killed_worker_left_is_planned_by_the_replay(tmp_path: Path, whole: bytes) -> None:
    plan_shard(job(tmp_path), 1, 2)
    assert plan_shard(job(tmp_path), 1, 2) == 0 and plan_shard(job(tmp_path, resume=False), 1, 2) == 20
    found = joined(tmp_path)
    assert found.num_resumed == 20 and found.rows_path.read_bytes() == whole


def test_processes_of_this_machine_join_to_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    seen: list[tuple[int, int | None, str]] = []
    assert plan_in_processes(job(tmp_path), 2, progress=lambda *what: seen.append(what)) == 42
    assert [done for done, _, _ in seen] == [1, 2]
    found = joined(tmp_path)
    assert found.num_resumed == 42 and found.rows_path.read_bytes() == whole


def test_catalogues_too_far_apart_are_refused_before_anything_is_planned(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="baseline's catalogue differs from the dataset's in 2 of 24 recipes"):
        plan_shard(job(tmp_path, other_catalogue), 0, 2)
    assert not (tmp_path / "parts").exists()
    assert plan_shard(job(tmp_path, other_catalogue, max_catalogue_difference=0.1), 0, 2) == 22


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_clear_error_and_the_errors_of_workers_are_their_own(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="One of the 2 processes of the replay was killed"):
        plan_in_processes(job(tmp_path, partial(opened, die=True)), 2)
    with pytest.raises(ReplayError, match="is of split 'train', but 'test' is replayed"):
        plan_in_processes(job(tmp_path, other_split), 2)


@pytest.mark.slow
def test_ranks_of_accelerate_join_to_the_same_bytes_and_the_error_of_one_is_told(tmp_path: Path, whole: bytes) -> None:
    assert plan_in_ranks(job(tmp_path), 2) == 42
    found = joined(tmp_path)
    assert found.num_resumed == 42 and found.rows_path.read_bytes() == whole
    with pytest.raises(ReplayError, match="One of the 2 ranks .* is of split 'train', but 'test' is replayed"):
        plan_in_ranks(job(tmp_path, other_split), 2)
    with pytest.raises(ReplayError, match="One of the 2 ranks of the replay failed"):
        plan_in_ranks(job(tmp_path, partial(opened, die=True)), 2)


@needs_spark
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_tasks_of_spark_join_to_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    with local_spark(tmp_path / "spark") as spark:
        assert plan_on_spark(spark, job(tmp_path), 2) == 42
        found = joined(tmp_path)
        assert found.num_resumed == 42 and found.rows_path.read_bytes() == whole
        with pytest.raises(ReplayError, match=r"on Spark failed: .*is of split 'train'"):
            plan_on_spark(spark, job(tmp_path, other_split), 2)
