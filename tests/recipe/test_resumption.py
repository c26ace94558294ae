"""A killed training goes on in the MLflow run that it began in; several processes write one run."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run

from planner.dataset.database import connect
from planner.dataset.demo import load_demo
from planner.dataset.embedded import embedded_postgres, server_folder
from tests.recipe.project import TINY, Sandbox, new_sandbox

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
EPOCHS = 20
LONG = TINY.replace("epochs: 2", f"epochs: {EPOCHS}").replace("checkpoint_every: 2", "checkpoint_every: 1")


@pytest.fixture(scope="module")
def home(tiny_base: Path) -> Iterator[Sandbox]:
    """A sandbox with a dataset of a small demo."""
    with new_sandbox(None) as made:
        (made.root / "base").symlink_to(tiny_base)
        folder = made.root / ".planner" / "postgres"
        with embedded_postgres(folder, fsync=False) as url, contextlib.closing(connect(url)) as connection:
            load_demo(connection, households=60)
        made.write_profile("tiny", LONG)
        try:
            done = made.step("build_dataset")
            assert done.code == 0, done.err[-3000:]
            yield made
        finally:
            stand_in = server_folder(folder)
            if stand_in != folder:
                subprocess.run(["rm", "-rf", str(stand_in)], check=True)


def trainings(sandbox: Sandbox) -> list[Run]:
    return [run for run in sandbox.runs() if run.data.tags.get("step") == "train"]


def epochs_of(sandbox: Sandbox, run: Run) -> list[int]:
    return [metric.step for metric in sandbox.client.get_metric_history(run.info.run_id, "val_loss")]


def kill_in_training(sandbox: Sandbox) -> None:
    process = sandbox.start("python", "-m", "steps.train", "--profile", "tiny")
    deadline = time.monotonic() + 300
    folder = sandbox.root / ".planner" / "training"
    while not any(path.name >= "step-000007" for path in folder.glob("*/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, sandbox.log()[-3000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def test_killed_training_goes_on_in_its_own_run(home: Sandbox) -> None:
    kill_in_training(home)
    [began] = trainings(home)
    assert began.info.status == "RUNNING"
    before = epochs_of(home, began)
    assert 0 < len(before) < EPOCHS

    done = home.step("train")
    assert done.code == 0, done.err[-3000:]
    finished, pointer = trainings(home)
    assert finished.info.run_id == began.info.run_id
    assert (finished.info.status, pointer.info.status) == ("FINISHED", "FINISHED")
    assert pointer.data.tags["continues"] == began.info.run_id
    assert epochs_of(home, finished) == list(range(EPOCHS + 1))
    assert epochs_of(home, pointer) == []
    points = [metric.step for metric in home.client.get_metric_history(began.info.run_id, "step_loss")]
    assert points == sorted(set(points)) and points[-1] == EPOCHS * 3
    assert {"plots/loss.png", "worst_validation_rows.json", "memory.txt", "outputs.json"} <= home.artifacts(finished)
    assert "planner.error" not in finished.data.tags
    version = home.client.get_model_version("planner_model", finished.data.tags["model_version"])
    assert version.run_id == began.info.run_id
    assert "Went on from step" in done.out and "Memory: " in done.err

    again = home.step("main", until="train")
    assert again.code == 0, again.err[-3000:]
    assert [run.info.run_name for run in home.runs() if run.info.status == "RUNNING"] == []
    assert len(home.model_versions()) == 1
    reused = [run for run in home.runs() if run.info.run_name == "train (reused)"]
    assert [run.data.tags["reused_from"] for run in reused] == [began.info.run_id]


def test_several_processes_write_one_run(home: Sandbox) -> None:
    home.write_profile("tiny", TINY.replace("  epochs: 2", "  epochs: 2\n  num_processes: 2"))
    before = len(home.runs())
    done = home.run("python", "-m", "steps.train", "--profile", "tiny")
    assert done.code == 0, done.err[-3000:]
    [run] = home.runs()[before:]
    assert (run.info.status, run.data.metrics["processes"]) == ("FINISHED", 2)
    assert epochs_of(home, run) == [0, 1, 2]
    assert done.out.count("Registered planner_model version") == 1
    assert not [p for p in psutil.process_iter(["cmdline"]) if "steps.train" in (p.info["cmdline"] or [])]
