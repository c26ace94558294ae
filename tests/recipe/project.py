"""The project as a user has it: a checkout of its own with an own MLflow store, an own database and a tiny base model.

In: a folder and the URL of a database. Out: a `Sandbox` that runs the real entry points, by `mlflow run`, by
`python -m steps.<name>`, or forked from a process that has imported everything, and looks at what they left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = ("MLproject", "recipe.yaml", "pyproject.toml", "python_env.yaml", "profiles", "steps", "planner", "notebooks")
_MARKER = "planner.committed"
TINY = """\
embedded: true
build_dataset:
  start_date: 2017-09-01
  min_rows: 50
train:
  model_base: base
  epochs: 2
  lr: 1.0e-2
  batch_size: 4
  max_examples: 12
  max_validation_examples: 4
  max_tokens: 2048
  checkpoint_every: 2
  num_threads: 1
evaluate:
  sample_size: 24
  min_households: 5
"""


@dataclass(frozen=True)
class Finished:
    """A process that ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """Lines on stderr that are no progress (that is indented)."""
        return [line for line in self.err.splitlines() if line.strip() and not line.startswith("  ")]


@dataclass
class Sandbox:
    """A checkout in `root`; `database` is its PLANNER_DATABASE_URL, None for the embedded server."""

    root: Path
    database: str | None
    _calls: int = field(default=0, init=False)

    @property
    def store(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @cached_property
    def client(self) -> MlflowClient:
        return MlflowClient(self.store, self.store)

    def environment(self, **changes: str | None) -> dict[str, str]:
        """What a user's shell would hold; None takes a variable away."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PLANNER_", "PYTEST_", "PYTHON"))}
        cache = {"PLANNER_CACHE": os.environ["PLANNER_CACHE"]} if "PLANNER_CACHE" in os.environ else {}
        values: dict[str, str | None] = {
            **kept,
            **cache,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": self.store,
            "PLANNER_DATABASE_URL": self.database,
            "OMP_NUM_THREADS": "1",
            **changes,
        }
        return {name: value for name, value in values.items() if value is not None}

    def write_profile(self, name: str, text: str) -> str:
        (self.root / "profiles" / f"{name}.yaml").write_text(text, encoding="utf-8")
        return name

    def start(self, *command: str, cwd: Path | None = None, **changes: str | None) -> subprocess.Popen[str]:
        """Start a command in a session of its own; its output goes to a log in the sandbox."""
        self._calls += 1
        with (self.root / "logs" / f"{self._calls}.log").open("w") as log:
            return subprocess.Popen(
                command, cwd=cwd or self.root, env=self.environment(**changes), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip

    def log(self) -> str:
        """What the command started last has printed so far."""
        return (self.root / "logs" / f"{self._calls}.log").read_text()

    def run(self, *command: str, cwd: Path | None = None, **changes: str | None) -> Finished:
        """Run a command to its end."""
        done = subprocess.run(
            command, cwd=cwd or self.root, env=self.environment(**changes), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=1800,
        )  # fmt: skip
        return Finished(done.returncode, done.stdout, done.stderr)

    def mlflow_run(self, *arguments: str, cwd: Path | None = None, **changes: str | None) -> Finished:
        """`mlflow run` on the sandbox."""
        return self.run(*self.mlflow_command(*arguments), cwd=cwd, **changes)

    def mlflow_command(self, *arguments: str) -> list[str]:
        return ["mlflow", "run", str(self.root), "--env-manager", "local", *arguments]

    def call(self, module_or_path: str, *arguments: str, **changes: str | None) -> Finished:
        """Run a module (`steps.train`) or a script in a process forked from one that has imported everything."""
        self._calls += 1
        files = {name: str(self.root / "logs" / f"{self._calls}.{name}") for name in ("out", "err")}
        kind = "path" if module_or_path.endswith(".py") else "module"
        asked = {kind: module_or_path, "arguments": arguments, "environment": self.environment(**changes), **files}
        server = self._fork_server
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = json.loads(server.stdout.readline())["code"]
        return Finished(code, *(Path(files[name]).read_text() for name in ("out", "err")))

    def step(self, name: str, profile: str = "tiny", **values: object) -> Finished:
        """`python -m steps.<name> --profile … --key value`, forked."""
        options = [text for key, value in values.items() for text in (f"--{key}", str(value))]
        return self.call(f"steps.{name}", "--profile", profile, *options)

    @cached_property
    def _fork_server(self) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("fork_server.py")
        server = subprocess.Popen(
            [sys.executable, str(script)], cwd=self.root, env=self.environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        return server

    def close(self) -> None:
        if "_fork_server" in self.__dict__:
            server = self._fork_server
            for pipe in (server.stdin, server.stdout):
                assert pipe is not None
                pipe.close()
            server.wait(20)

    # --- what was left behind ---

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        return list(self.client.search_runs(["0"], order_by=["attributes.start_time ASC"], max_results=1000))

    def newest(self, step: str) -> Run:
        """The run of a step that began last."""
        return [run for run in self.runs() if run.data.tags.get("step") == step][-1]

    def children(self, parent: Run) -> list[Run]:
        return [run for run in self.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]

    def outputs(self, step: str) -> dict[str, Any]:
        """Outputs of the step's newest run that finished by itself."""
        finished = [run for run in self.runs() if run.data.tags.get("step") == step and _MARKER in run.data.tags]
        outputs = json.loads(finished[-1].data.tags[_MARKER])["outputs"]
        assert isinstance(outputs, dict)
        return outputs

    def artifacts(self, run: Run, folder: str | None = None) -> set[str]:
        """Paths of the files of a run."""
        found: set[str] = set()
        for item in self.client.list_artifacts(run.info.run_id, folder):
            found |= self.artifacts(run, item.path) if item.is_dir else {item.path}
        return found

    def artifact(self, run: Run, path: str) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, path))

    def model_versions(self) -> list[str]:
        found = self.client.search_model_versions("name = 'planner_model'")
        return sorted(str(version.version) for version in found)

    def dataset_versions(self) -> list[str]:
        """Everything in the datasets folder but its lock, litter of killed builds included."""
        folder = self.root / ".planner" / "datasets" / "planner"
        return sorted(path.name for path in folder.glob("*") if path.name != ".builders.lock")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a query on the sandbox's database."""
        assert self.database is not None
        with contextlib.closing(psycopg2.connect(self.database)) as connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall())

    def replay_rows(self) -> list[tuple[Any, ...]]:
        """Run, status and verdict of each replay result."""
        return self.rows(
            "SELECT mlflow_run_id, status, is_better_than_baseline FROM exp.offline_replay_results ORDER BY created_at"
        )

    def processes(self) -> list[psutil.Process]:
        """Processes that still work in the sandbox, but for this one and the fork server."""
        mine = {os.getpid(), self._fork_server.pid if "_fork_server" in self.__dict__ else -1}
        return [p for p in psutil.process_iter() if p.pid not in mine and _belongs_to(p, self.root)]


@contextlib.contextmanager
def new_sandbox(database: str | None) -> Iterator[Sandbox]:
    """A fresh checkout under git, with the profile `tiny`; removed at the end."""
    # Not under tmp_path: pytest makes that private to us, and as root the embedded server runs as another user.
    root = Path(tempfile.mkdtemp(prefix="planner-sandbox-"))
    root.chmod(0o755)
    sandbox = Sandbox(root, database)
    try:
        for name in PARTS:
            source = CHECKOUT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, root / name)
        (root / "logs").mkdir()
        (root / ".gitignore").write_text("__pycache__/\n.planner/\nmlruns/\nmlflow.db*\nlogs/\nbase\n")
        sandbox.write_profile("tiny", TINY)
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "checkout"]):
            author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
            subprocess.run(["git", "-C", str(root), *author, *arguments], check=True, capture_output=True)
        yield sandbox
    finally:
        sandbox.close()
        shutil.rmtree(root, ignore_errors=True)


def _belongs_to(process: psutil.Process, root: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(root)
    except (psutil.Error, OSError):
        return False
