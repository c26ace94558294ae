"""A replay's batches spread over workers: processes of this machine, Spark, or the ranks of Accelerate (`ranks.py`).

In: a `Job` that every worker opens for itself (its own models, its own stream of rows). Out: finished parts in one
folder that all of them see. `replay` then finds every part done, plans what a killed worker left, and joins them: the
rows are byte for byte those of one process, since a batch's plans depend on nothing outside it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ReplayError
from planner.contracts.example import Example
from planner.decoding.result import Planner
from planner.evaluation.parts import read_part
from planner.evaluation.replay import batches_of, check_catalogues, plan_batch

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Opened:
    """What a worker plans with: both planners, the dataset's catalogue, and the rows in the replay's order."""

    candidate: Planner
    baseline: Planner
    catalogue: Catalogue
    examples: Iterable[Example]


@dataclass(frozen=True)
class Job:
    """What every worker is handed; small, and can be pickled.

    `open` loads models and rows where the worker runs: a function of a module with its arguments
    (`functools.partial`). The rest is as `replay` takes it, and must be the same there.
    """

    open: Callable[[], Opened]
    folder: Path
    split: str
    identity: Mapping[str, str]
    batch_size: int = 8
    resume: bool = True
    max_catalogue_difference: float = 0.05


def plan_shard(job: Job, shard: int, num_shards: int) -> int:
    """Plan every `num_shards`-th batch, beginning with number `shard`; how many rows were planned.

    Raises:
        ReplayError: as `replay` does.
    """
    opened = job.open()
    planners = {"candidate": opened.candidate, "baseline": opened.baseline}
    check_catalogues(planners, opened.catalogue, job.max_catalogue_difference)
    batches = batches_of(
        opened.examples,
        split=job.split,
        identity=job.identity,
        catalogue=opened.catalogue,
        batch_size=job.batch_size,
    )
    num_rows = 0
    for batch in batches:
        mine = batch.index % num_shards == shard
        if mine and not (job.resume and read_part(job.folder / "parts", batch.index, batch.key)):
            plan_batch(planners, batch, opened.catalogue, job.folder)
            num_rows += len(batch.examples)
    return num_rows


def plan_in_processes(job: Job, num_workers: int, *, progress: Progress | None = None) -> int:
    """Plan all batches in processes of this machine, its cores shared out evenly; how many rows were planned.

    Raises:
        ReplayError: a process died, or what `plan_shard` raises.
    """
    threads = max(1, (os.cpu_count() or 1) // num_workers)
    # Not fork: torch's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    num_rows = 0
    try:
        with ProcessPoolExecutor(num_workers, context, initializer=_share_cores, initargs=(threads,)) as pool:
            shards = [pool.submit(plan_shard, job, shard, num_workers) for shard in range(num_workers)]
            for num_done, done in enumerate(as_completed(shards), 1):
                num_rows += done.result()
                if progress is not None:
                    progress(num_done, num_workers, "shards replayed")
    except BrokenProcessPool:
        raise ReplayError(
            f"One of the {num_workers} processes of the replay was killed, by lack of memory perhaps. Run the same "
            "command again: finished batches are kept; or lower evaluate.workers.",
            num_workers=num_workers,
        ) from None
    return num_rows


def plan_on_spark(spark: Any, job: Job, num_workers: int) -> int:
    """Plan all batches in `num_workers` tasks of a Spark session; how many rows were planned.

    The workers import this package, and `job.folder` is one that they and the driver see.

    Raises:
        ReplayError: a task failed; its last line is in the message.
    """
    from pyspark.errors import PySparkException

    shards = spark.sparkContext.parallelize(range(num_workers), num_workers)
    try:
        planned: list[int] = shards.map(lambda shard: plan_shard(job, shard, num_workers)).collect()
    except PySparkException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("planner.")), lines[-1] if lines else "")
        raise ReplayError(f"A task of the replay on Spark failed: {said[:300]}") from None
    return sum(planned)


def _share_cores(num_threads: int) -> None:
    """Before torch is imported: each process takes its share of the cores."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(num_threads)
