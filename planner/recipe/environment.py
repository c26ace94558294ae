"""Where a run works: tracking store, database and the state of the checkout.

Connection data comes from the environment only. Where the profile allows it and the environment names none, an
embedded PostgreSQL is started in the working folder and filled with the demo.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from planner.contracts.errors import ConfigError
from planner.recipe.config import PROJECT, ResolvedConfig

DATABASE_VARIABLE = "PLANNER_DATABASE_URL"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# About two minutes until a server counts as gone. MLflow's own 7 are four, at each of several calls.
RETRIES = "6"
FORCE_VARIABLE = "PLANNER_FORCED_STEP"
LOCAL_STORE = f"sqlite:///{PROJECT / 'mlflow.db'}"
Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class GitState:
    """Commit of the checkout, and whether a tracked file differs from it; `unknown` outside git."""

    commit: str
    dirty: bool


def use_tracking_store(config: ResolvedConfig) -> str:
    """Point MLflow at the run's store and initialise a local one before anything uses it in parallel.

    Raises:
        ConfigError: the profile is not embedded and `MLFLOW_TRACKING_URI` is not set.
    """
    uri = os.environ.get(TRACKING_VARIABLE, "")
    if not config.recipe.embedded and _is_default_store(uri):
        raise ConfigError(
            f"Profile {config.profile!r} needs a tracking server: set {TRACKING_VARIABLE} (for example "
            "http://mlflow.example:5000), or use --profile local.",
            variable=TRACKING_VARIABLE,
        )
    os.environ[TRACKING_VARIABLE] = uri = uri or LOCAL_STORE
    os.environ.setdefault(RETRIES_VARIABLE, RETRIES)
    import mlflow
    from filelock import FileLock

    mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:"):
        config.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(config.folder / "store.lock"):
            mlflow.MlflowClient().search_experiments(max_results=1)
    return uri


@contextlib.contextmanager
def database_url(config: ResolvedConfig, *, progress: Progress | None = None) -> Iterator[str]:
    """The URL of the database for the time of the block; an embedded one is exported to child processes too.

    Raises:
        ConfigError: the profile is not embedded and `PLANNER_DATABASE_URL` is not set.
        EmbeddedServerError: the embedded server cannot be started.
    """
    url = os.environ.get(DATABASE_VARIABLE)
    if url:
        yield url
        return
    if not config.recipe.embedded:
        raise ConfigError(
            f"Profile {config.profile!r} needs a database: set {DATABASE_VARIABLE} "
            "(postgresql://user@host:5432/name), or use --profile local.",
            variable=DATABASE_VARIABLE,
        )
    from planner.dataset.database import connect
    from planner.dataset.demo import is_empty, load_demo
    from planner.dataset.embedded import embedded_postgres

    with embedded_postgres(config.folder / "postgres") as url:
        connection = connect(url)
        try:
            if is_empty(connection):
                load_demo(connection, progress=progress)
        finally:
            connection.close()
        os.environ[DATABASE_VARIABLE] = url
        try:
            yield url
        finally:
            os.environ.pop(DATABASE_VARIABLE, None)


def current_database_url() -> str:
    """URL of the database inside a `database_url` block."""
    return os.environ[DATABASE_VARIABLE]


@contextlib.contextmanager
def forcing(step: str | None) -> Iterator[None]:
    """Tell the step's process that starts in the block to run although nothing changed; None tells nobody."""
    if step is None:
        yield
        return
    os.environ[FORCE_VARIABLE] = step
    try:
        yield
    finally:
        os.environ.pop(FORCE_VARIABLE, None)


def is_forced(step: str) -> bool:
    """Whether this process is to run the step although nothing changed."""
    return os.environ.get(FORCE_VARIABLE) == step


def git_state(project: Path = PROJECT) -> GitState:
    """The checkout's commit and whether it is dirty."""
    try:
        commit = _git(project, "rev-parse", "HEAD")
        return GitState(commit, bool(_git(project, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.CalledProcessError):
        return GitState("unknown", False)


def _git(project: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _is_default_store(uri: str) -> bool:
    # `mlflow run` exports its own default to the steps: not a choice that anyone made.
    return not uri or uri in {"sqlite:///mlflow.db", LOCAL_STORE, f"sqlite:///{Path.cwd() / 'mlflow.db'}"}
