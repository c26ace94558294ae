"""The workers of a replay: what each opens for itself, and where they run.

In: the packages of both models, a dataset version, the configuration. Out: finished parts, which `replay` joins.
"""

from __future__ import annotations

from pathlib import Path

from planner.contracts.errors import ReplayError
from planner.contracts.example import DatasetVersion
from planner.dataset.read import iter_examples, read_catalogue
from planner.evaluation.config import EvaluateConfig
from planner.evaluation.ranks import plan_in_ranks
from planner.evaluation.sample import sample_examples
from planner.evaluation.shards import Job, Opened, plan_in_processes, plan_on_spark
from planner.recipe.console import Console


def open_contest(candidate: Path, baseline: Path, version: DatasetVersion, step: EvaluateConfig) -> Opened:
    """Load both planners and stream the sampled rows, in whatever process plans them."""
    from planner.decoding.package import load_package  # loads torch, which a reused step does not need

    rows = sample_examples(iter_examples(version, split=step.split), step.sample_size, seed=step.seed)
    return Opened(load_package(candidate), load_package(baseline), read_catalogue(version), rows)


def plan_ahead(job: Job, step: EvaluateConfig, console: Console) -> bool:
    """Whether workers have planned the batches; the replay then only checks and joins them."""
    if step.workers == 1:
        return False
    if step.workers_on == "processes":
        plan_in_processes(job, step.workers, progress=console.progress)
        return True
    if step.workers_on == "ranks":
        plan_in_ranks(job, step.workers)
        return True
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise ReplayError(
            "evaluate.workers_on is spark, but pyspark is not installed. Install the extra `spark`, or use processes."
        ) from None
    plan_on_spark(SparkSession.builder.getOrCreate(), job, step.workers)
    return True
