"""Signals and kills in the middle of a step: every run ends, no process stays, and the next run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from planner.dataset.database import connect
from planner.dataset.demo import load_demo
from planner.dataset.embedded import embedded_postgres, server_folder
from tests.recipe.project import TINY, Sandbox, new_sandbox

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
# A training of many short steps, with a checkpoint after each, so that a test can meet it half-way.
LONG = TINY.replace("epochs: 2", "epochs: 60").replace("checkpoint_every: 2", "checkpoint_every: 1")


@pytest.fixture(scope="module")
def home(tiny_base: Path) -> Iterator[Sandbox]:
    """A sandbox on the embedded server, which holds a small demo."""
    with new_sandbox(None) as made:
        (made.root / "base").symlink_to(tiny_base)
        folder = made.root / ".planner" / "postgres"
        with embedded_postgres(folder, fsync=False) as url, contextlib.closing(connect(url)) as connection:
            load_demo(connection, households=60)
        made.write_profile("tiny", LONG)
        try:
            yield made
        finally:
            stand_in = server_folder(folder)
            if stand_in != folder:
                subprocess.run(["rm", "-rf", str(stand_in)], check=True)


def train_with(sandbox: Sandbox, seed: int) -> None:
    """A training of its own for each test, under a seed of its own."""
    sandbox.write_profile("tiny", LONG.replace("epochs: 60", f"epochs: 60\n  seed: {seed}"))


def until(condition: Callable[[], object], process: subprocess.Popen[str], sandbox: Sandbox) -> None:
    """Wait for what the process is about to do."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, sandbox.log()[-3000:]
        time.sleep(0.005)


def checkpoints(sandbox: Sandbox) -> set[Path]:
    return set((sandbox.root / ".planner" / "training").glob("*/checkpoints/step-*"))


def training_goes_on(sandbox: Sandbox) -> Callable[[], bool]:
    """True once a training has written three checkpoints that were not there."""
    before = checkpoints(sandbox)
    return lambda: any(path.name >= "step-000003" for path in checkpoints(sandbox) - before)


def run_is_open(sandbox: Sandbox, entry_point: str) -> Callable[[], bool]:
    before = {run.info.run_id for run in sandbox.runs()} if (sandbox.root / "mlflow.db").exists() else set()

    def opened() -> bool:
        return any(
            run.data.tags.get("mlflow.project.entryPoint") == entry_point
            for run in sandbox.runs()
            if run.info.run_id not in before
        )

    return opened


def gone(processes: list[psutil.Process]) -> None:
    """Every process of the tree ends in a while; nothing else is started in the sandbox."""
    _, alive = psutil.wait_procs(processes, timeout=90)
    alive = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert alive == []


def tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def statuses(sandbox: Sandbox, before: int) -> dict[str, str]:
    return {run.info.run_name: run.info.status for run in sandbox.runs()[before:]}


def go_on(sandbox: Sandbox) -> dict[str, object]:
    """Train to the end; returns what the step left."""
    done = sandbox.step("main", until="train")
    assert done.code == 0, done.err[-3000:]
    assert [run.info.run_name for run in sandbox.runs() if run.info.status == "RUNNING"] == []
    assert sandbox.processes() == []
    return sandbox.outputs("train")


def test_sigterm_to_the_driver_ends_step_and_server_and_the_next_run_goes_on(home: Sandbox) -> None:
    train_with(home, 1)
    half_way = training_goes_on(home)
    driver = home.start("python", "-m", "steps.main", "--profile", "tiny")
    until(half_way, driver, home)
    processes = tree(driver)
    assert any("postgres" in process.name() for process in processes)
    driver.terminate()
    assert driver.wait(120) == 143
    gone(processes)
    assert statuses(home, 0) == {"main": "KILLED", "build_dataset": "FINISHED", "train": "KILLED"}
    assert home.processes() == []
    assert "Traceback" not in home.log() and "Run the same command again to go on." in home.log()

    outputs = go_on(home)
    assert int(str(outputs["resumed_from_step"])) >= 2


def test_sigterm_to_mlflow_run_takes_driver_step_and_server_with_it(home: Sandbox) -> None:
    train_with(home, 2)
    before, half_way = len(home.runs()), training_goes_on(home)
    command = home.start(*home.mlflow_command("-P", "profile=tiny"))
    until(half_way, command, home)
    processes = tree(command)
    command.terminate()
    command.wait(120)
    gone(processes)
    found = statuses(home, before)
    assert (found["main"], found["train"]) == ("KILLED", "KILLED")
    assert home.processes() == []


def test_kill_9_of_everything_is_tidied_by_the_next_run_which_goes_on(home: Sandbox) -> None:
    train_with(home, 3)
    before, half_way = len(home.runs()), training_goes_on(home)
    command = home.start(*home.mlflow_command("-P", "profile=tiny"))
    until(half_way, command, home)
    processes = tree(command)
    ours = [process for process in processes if "postgres" not in process.name()]
    os.killpg(command.pid, signal.SIGKILL)  # the server is in a session of its own and stays
    command.wait(120)
    gone(ours)
    found = statuses(home, before)
    assert (found["main"], found["train"]) == ("RUNNING", "RUNNING")

    outputs = go_on(home)
    assert int(str(outputs["resumed_from_step"])) >= 2
    assert statuses(home, before)["main"] != "RUNNING"
    gone(processes)


def test_kill_9_of_the_step_fails_its_runs_and_the_next_run_goes_on(home: Sandbox) -> None:
    train_with(home, 4)
    before, half_way = len(home.runs()), training_goes_on(home)
    driver = home.start("python", "-m", "steps.main", "--profile", "tiny")
    until(half_way, driver, home)
    processes = tree(driver)
    [step] = [process for process in processes if "steps.train" in process.cmdline() and "python" in process.name()]
    step.kill()
    assert driver.wait(120) == 1
    gone(processes)
    found = statuses(home, before)
    assert (found["main"], found["train"]) == ("FAILED", "FAILED")
    assert "StepFailedError: Step train failed" in home.log() and "Traceback" not in home.log()

    outputs = go_on(home)
    assert int(str(outputs["resumed_from_step"])) >= 2


@pytest.mark.parametrize("entry_point", ["main", "train"])
def test_sigterm_while_a_step_is_still_starting_ends_its_run_too(home: Sandbox, entry_point: str) -> None:
    """The seconds of importing, in which the run is open and the step does not yet know of it."""
    train_with(home, 5)
    before, opened = len(home.runs()), run_is_open(home, entry_point)
    command = home.start(*home.mlflow_command("-P", "profile=tiny"))
    until(opened, command, home)
    processes = tree(command)
    command.terminate()
    command.wait(120)
    gone(processes)
    assert "RUNNING" not in statuses(home, before).values()
    assert home.processes() == []


def test_a_step_killed_while_starting_is_known_by_the_lease_of_its_driver(home: Sandbox) -> None:
    def open_run(parent: str | None, **tags: str) -> str:
        nested = {} if parent is None else {"mlflow.parentRunId": parent}
        return str(home.client.create_run("0", tags={**nested, **tags}).info.run_id)

    dead = f"{socket.gethostname()} {2**22 + 1} 0"
    living = f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"
    drivers = [open_run(None, **{"planner.lease": lease}) for lease in (dead, living)]
    steps = [open_run(driver, **{"mlflow.project.entryPoint": "train"}) for driver in drivers]
    theirs = open_run(drivers[0], **{"mlflow.project.entryPoint": "sweep"})
    done = home.step("promote", model_version="1")
    assert done.code != 0
    found = {run_id: home.client.get_run(run_id).info.status for run_id in (*drivers, *steps, theirs)}
    assert found == {
        drivers[0]: "KILLED", steps[0]: "KILLED", drivers[1]: "RUNNING", steps[1]: "RUNNING", theirs: "RUNNING",
    }  # fmt: skip
    for run_id in (drivers[1], steps[1], theirs):
        home.client.set_terminated(run_id)
