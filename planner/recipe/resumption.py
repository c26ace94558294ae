"""A training that was killed goes on in the MLflow run that it began in.

In: the step's open run and the earlier runs of the same fingerprint. Out: the run to log to. `mlflow run` opens a new
run at every start; where an earlier one is taken up again, the new one only points to it (tag `continues`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from planner.recipe.config import ResolvedConfig
from planner.recipe.tracking import COMMIT_TAG, ERROR_TAG, LEASE_TAG, StepRun, active_experiment_id, commit, run_ends

CONTINUES_TAG = "continues"
# What the driver calls the run whose result stands in for this one.
_STANDS_IN_TAG = "reused_from"


@contextlib.contextmanager
def same_run(
    config: ResolvedConfig, opened: StepRun, tags_of: Callable[[Mapping[str, Any]], Mapping[str, object]]
) -> Iterator[StepRun]:
    """The run for the block to log to: the one that a killed start of the same training left, else `opened`.

    A run that is taken up is RUNNING again under this process's lease and ends like any other: FINISHED with a commit
    marker and the tags of its outputs, FAILED with the message, or KILLED. `outputs` are those of `opened`.
    """
    with contextlib.ExitStack() as stack:
        earlier = _unfinished(opened)
        if earlier is None or not _alone(stack, config, earlier.info.run_id):
            yield opened
            return
        run_id = earlier.info.run_id
        client = MlflowClient()
        lease = client.get_run(opened.run_id).data.tags[LEASE_TAG]
        client.set_tag(run_id, LEASE_TAG, lease)  # before it is RUNNING, or another start would end it
        opened.set_tags({CONTINUES_TAG: run_id, _STANDS_IN_TAG: run_id})
        mlflow.start_run(run_id=run_id, nested=True)
        with run_ends():
            with contextlib.suppress(MlflowException):
                client.delete_tag(run_id, ERROR_TAG)
            run = StepRun(run_id, opened.step, opened.outputs, opened.fingerprint)
            yield run
            run.set_tags(tags_of(run.outputs))
            commit(run)


def _unfinished(opened: StepRun) -> Run | None:
    """The newest run of the same work that came as far as metrics and never finished."""
    found = MlflowClient().search_runs(
        [active_experiment_id()],
        f"tags.step = '{opened.step}' and tags.fingerprint = '{opened.fingerprint}'",
        order_by=["attributes.start_time DESC"],
    )
    for run in found:
        tags = run.data.tags
        dead = run.info.status in ("KILLED", "FAILED")
        if dead and run.data.metrics and COMMIT_TAG not in tags and CONTINUES_TAG not in tags:
            return run
    return None


def _alone(stack: contextlib.ExitStack, config: ResolvedConfig, run_id: str) -> bool:
    """Take the run for this process until the stack ends; False where another one has it."""
    folder = config.folder / "training"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(FileLock(folder / f".run-{run_id}.lock", timeout=0))
    except Timeout:
        return False
    return True
