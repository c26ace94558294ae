"""One MLflow run per step: started, tagged, always ended, and found again when nothing changed.

In: a resolved config and the name of a step. Out: a `StepRun` to log to. A run counts as finished only by its commit
marker, a tag written after everything else; its MLflow status alone is never trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import mlflow
import psutil
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException

from planner.contracts.errors import PlannerError, TrackingError
from planner.recipe.cli import describe
from planner.recipe.config import STEPS, ResolvedConfig, flatten
from planner.recipe.environment import RETRIES_VARIABLE, git_state
from planner.recipe.parents import parents_are_gone, process_name

COMMIT_TAG = "planner.committed"
ERROR_TAG = "planner.error"
LEASE_TAG = "planner.lease"
OUTPUTS_FILE = "outputs.json"


class Terminated(BaseException):
    """SIGTERM or the death of the process that started us, as an exception, so that every `finally` runs."""


class ServerGoneError(TrackingError):
    """The tracking server cannot be reached."""


@dataclass
class StepRun:
    """The open MLflow run of a step; `outputs` becomes its commit marker."""

    run_id: str
    step: str
    outputs: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log finite figures (MLflow would store infinity as a number)."""
        mlflow.log_metrics({k: float(v) for k, v in metrics.items() if v == v}, step=step, run_id=self.run_id)

    def identify(self, fingerprint: str) -> None:
        """Note what the result depends on, once it is known."""
        self.fingerprint = fingerprint
        mlflow.set_tag("fingerprint", fingerprint)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; None is left out."""
        mlflow.set_tags({key: str(value) for key, value in tags.items() if value is not None})


@contextlib.contextmanager
def step_run(config: ResolvedConfig, step: str) -> Iterator[StepRun]:
    """Run the block inside the step's MLflow run.

    The run that `mlflow run` opened is taken (`MLFLOW_RUN_ID`), else a new one is started. However the block ends that
    Python can see, SIGTERM included, the run ends: FINISHED with a commit marker, FAILED with the message as a tag, or
    KILLED.

    Raises:
        ServerGoneError: the tracking server cannot be reached, or went away.
    """
    by_mlflow = bool(os.environ.get("MLFLOW_RUN_ID"))  # start_run takes the variable away
    with server_answers():
        reap_dead_runs()
    with _signals_as_exceptions(watch_parents=by_mlflow) as release:
        with server_answers():
            run = mlflow.start_run(run_name=None if by_mlflow else step)
        opened = StepRun(run.info.run_id, step)
        with run_ends():
            release()
            _describe(opened, config)
            yield opened
            commit(opened)


@contextlib.contextmanager
def run_ends() -> Iterator[None]:
    """End the active run with the block: FINISHED, FAILED with the message as a tag, or KILLED.

    Raises:
        ServerGoneError: the tracking server went away.
    """
    try:
        with server_answers():
            yield
    except BaseException as error:
        stopped = isinstance(error, Terminated | KeyboardInterrupt)
        message = "Stopped by a signal; run the same command again to go on." if stopped else str(error)
        with _no_retries() if isinstance(error, ServerGoneError) else contextlib.nullcontext():
            with contextlib.suppress(Exception):  # the store itself may be what failed
                mlflow.set_tag(ERROR_TAG, (message or type(error).__name__)[:4000])
            with contextlib.suppress(Exception):
                mlflow.end_run("KILLED" if stopped else "FAILED")
        raise
    with server_answers():
        mlflow.end_run("FINISHED")


@contextlib.contextmanager
def server_answers() -> Iterator[None]:
    """Say in one line that the tracking server cannot be reached, once MLflow has tried for long enough.

    Raises:
        ServerGoneError: it cannot.
    """
    try:
        yield
    except MlflowException as error:
        reason = error.__context__
        if not isinstance(reason, RequestException):  # the server answered, or the store is a database
            raise
        found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(reason))
        where = re.sub(r"//[^/@]*@", "//", mlflow.get_tracking_uri())
        raise ServerGoneError(
            f"The tracking server at {where} cannot be reached ({found[1] if found else type(reason).__name__}). Check "
            f"MLFLOW_TRACKING_URI and that the server runs, then run the same command again: it goes on from what was "
            f"done. {RETRIES_VARIABLE} sets how often a request is tried again.",
            uri=where,
        ) from error


@contextlib.contextmanager
def _no_retries() -> Iterator[None]:
    before = os.environ.get(RETRIES_VARIABLE)
    os.environ[RETRIES_VARIABLE] = "0"
    try:
        yield
    finally:
        os.environ.pop(RETRIES_VARIABLE)
        if before is not None:
            os.environ[RETRIES_VARIABLE] = before


def commit(run: StepRun) -> None:
    """Write the commit marker: the outputs with the fingerprint they belong to, after everything else."""
    mlflow.log_dict(run.outputs, OUTPUTS_FILE)
    marker = {"fingerprint": run.fingerprint, "outputs": run.outputs}
    mlflow.set_tag(COMMIT_TAG, json.dumps(marker, sort_keys=True))


def committed_outputs(run: Run) -> Mapping[str, Any] | None:
    """Outputs of a run that was committed, else None."""
    try:
        marker = json.loads(run.data.tags.get(COMMIT_TAG, ""))
        outputs = marker["outputs"]
    except (ValueError, KeyError, TypeError):
        return None
    return outputs if isinstance(outputs, dict) else None


def find_committed(step: str, fingerprint: str) -> tuple[str, Mapping[str, Any]] | None:
    """Newest committed run of a step with this fingerprint in the active experiment: its id and outputs."""
    runs = mlflow.search_runs(
        experiment_ids=[active_experiment_id()],
        filter_string=f"tags.step = '{step}' and tags.fingerprint = '{fingerprint}'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    for run in runs:
        outputs = committed_outputs(run)
        if outputs is not None:
            return run.data.tags.get("reused_from", run.info.run_id), outputs
    return None


def reap_dead_runs() -> int:
    """End runs of this machine whose process is gone (kill -9 leaves them RUNNING); returns how many."""
    client, reaped = MlflowClient(), 0
    for run in client.search_runs([active_experiment_id()], "attributes.status = 'RUNNING'"):
        lease = run.data.tags.get(LEASE_TAG) or _lease_of_parent(client, run)
        if lease and run.info.run_id != os.environ.get("MLFLOW_RUN_ID") and _lease_is_dead(lease):
            client.set_tag(run.info.run_id, ERROR_TAG, "Its process died without a word; the next run took over.")
            client.set_terminated(run.info.run_id, "KILLED")
            reaped += 1
    return reaped


def active_experiment_id() -> str:
    """Experiment that runs are logged to: that of `mlflow run`, else MLflow's default."""
    run = mlflow.active_run()
    if run is not None:
        return str(run.info.experiment_id)
    return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"


def _describe(run: StepRun, config: ResolvedConfig) -> None:
    step = run.step
    process = psutil.Process()
    git = git_state()
    run.set_tags(
        {
            LEASE_TAG: f"{socket.gethostname()} {process.pid} {process.create_time():.0f}",
            "mlflow.runName": step,
            "step": step,
            "profile": config.profile,
            "git_commit": git.commit,
            "git_dirty": str(git.dirty).lower(),
        }
    )
    values = config.values() if step == "main" else flatten(config.step(step).model_dump(mode="json"), f"{step}.")
    mlflow.log_params({key: "" if value is None else value for key, value in values.items()})
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / "config.yaml"
        resolved.write_text(describe(config) + "\n", encoding="utf-8")
        _log_first_artifact(resolved)


def _log_first_artifact(path: Path) -> None:
    """Log a file, and find so that the artifact store can be written before hours of work rely on it.

    Raises:
        TrackingError: it cannot.
    """
    try:
        mlflow.log_artifact(str(path))
    except Exception as error:  # each store's client raises types of its own
        where = re.sub(r"//[^/@]*@", "//", mlflow.get_artifact_uri())
        detail = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"The run's artifact store at {where} cannot be written ({type(error).__name__}: {detail}). No work was "
            "done yet. Check its address and access (for S3 the AWS variables and MLFLOW_S3_ENDPOINT_URL), then run "
            "the same command again.",
            artifact_uri=where,
        ) from error


def _lease_of_parent(client: MlflowClient, run: Run) -> str | None:
    """The driver's lease, for a step that was killed while it was starting; None for runs that are not ours."""
    parent = run.data.tags.get("mlflow.parentRunId")
    if parent is None or run.data.tags.get("mlflow.project.entryPoint") not in STEPS:
        return None
    return client.get_run(parent).data.tags.get(LEASE_TAG)


def _lease_is_dead(lease: str) -> bool:
    try:
        host, pid, started = lease.split(" ")
        if host != socket.gethostname():
            return False
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 2
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False


@contextlib.contextmanager
def _signals_as_exceptions(*, watch_parents: bool) -> Iterator[Callable[[], None]]:
    """Turn SIGTERM, and the death of the `mlflow run` that started us, into `Terminated`; end children on the way out.

    Yields a function to call once the run is open: a signal before that waits for it, for nobody could end the run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    held, arrived = [True], list[int]()

    def stop(signum: int, frame: FrameType | None) -> None:
        arrived.append(signum)
        if held[0]:
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: the clean-up itself is not interrupted
        raise Terminated(f"signal {signum}")

    def release() -> None:
        held[0] = False
        if arrived:
            stop(arrived[0], None)

    before = signal.signal(signal.SIGTERM, stop)
    over = threading.Event()
    if watch_parents:  # started by hand, outliving the shell is the user's choice
        threading.Thread(target=_watch_parents, args=(over,), daemon=True).start()
    try:
        yield release
    except (Terminated, KeyboardInterrupt):
        end_children()
        raise
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)


def end_children(grace_seconds: float = 20.0) -> None:
    """Ask the step processes below this one to stop and wait until they have."""
    children = [c for c in psutil.Process().children(recursive=True) if "postgres" not in process_name(c)]
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=grace_seconds)
    for child in alive:
        with contextlib.suppress(psutil.Error):
            child.kill()


def _watch_parents(over: threading.Event) -> None:
    """Send ourselves SIGTERM once the process that started us is gone."""
    while not parents_are_gone():
        if over.wait(1.0):
            return
    os.kill(os.getpid(), signal.SIGTERM)


def message_of(error: BaseException) -> str:
    """The text that a person reads: a `PlannerError`'s message, or the kind of an unexpected one with its text."""
    return str(error) if isinstance(error, PlannerError) else f"{type(error).__name__}: {error}"
