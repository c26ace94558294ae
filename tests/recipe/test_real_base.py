"""The ci profile as it is: embedded PostgreSQL, the whole demo, the real base model; the result served over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

from planner.contracts.catalogue import Catalogue
from planner.contracts.plan import parse_plan, plan_problem
from planner.contracts.request import parse_request
from planner.dataset.embedded import server_folder
from planner.dataset.read import read_catalogue
from planner.dataset.versions import open_version
from planner.evaluation.verify import violations
from tests.recipe.project import Sandbox, new_sandbox

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
# Section 2.2 of the training workflow that the project was built from; `uuid` stands for real ids there.
REQUEST = {
    "household": {"id": "uuid", "size": 4, "preferences": ["vegetarian"], "restrictions": ["nut-allergy"]},
    "pantry": {
        "items": [
            {"name": "rice", "quantity": 2, "unit": "kg"},
            {"name": "tomatoes", "quantity": 6, "unit": "count"},
        ]
    },
    "constraints": {"budget": 150, "max_prep_time": 45, "excluded_ingredients": ["shellfish"]},
    "workflow_type": "plan-first",
    "mode": "autopilot",
}


@pytest.fixture(scope="module")
def finished() -> Iterator[Sandbox]:
    """A checkout after `mlflow run . --env-manager local -P profile=ci`, without any URL in the environment."""
    with new_sandbox(None) as made:
        try:
            done = made.mlflow_run("-P", "profile=ci")
            assert done.code == 0, done.err[-4000:]
            yield made
        finally:
            folder = made.root / ".planner" / "postgres"
            if server_folder(folder) != folder:
                subprocess.run(["rm", "-rf", str(server_folder(folder))], check=True)


@pytest.fixture(scope="module")
def catalogue(finished: Sandbox) -> Catalogue:
    return read_catalogue(open_version(finished.outputs("build_dataset")["dataset"]))


def test_the_whole_recipe_on_the_real_base_breaks_no_constraint(finished: Sandbox) -> None:
    run = finished.newest("evaluate")
    assert run.data.metrics["constraint_respect_score"] == 1.0
    assert run.data.metrics["num_rows"] == 12
    assert run.data.tags["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    version = finished.client.get_model_version("planner_model", run.data.tags["model_version"])
    assert version.tags["model_base"] == "smollm2-135m"
    assert {run.info.status for run in finished.runs()} == {"FINISHED"}
    assert finished.processes() == [], "the embedded server went with the run"


def test_the_next_run_reuses_every_step(finished: Sandbox) -> None:
    versions = finished.model_versions()
    done = finished.mlflow_run("-P", "profile=ci")
    assert done.code == 0, done.err[-4000:]
    last = done.out.rpartition("rows in")[2]
    assert all("reused" in line for line in last.splitlines() if line.startswith(("build", "train", "evaluate")))
    assert finished.model_versions() == versions


def test_the_version_served_over_http_answers_with_a_valid_plan(finished: Sandbox, catalogue: Catalogue) -> None:
    number = finished.outputs("train")["model_version"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = finished.start(
        "mlflow", "models", "serve", "-m", f"models:/planner_model/{number}", "--env-manager", "local", "-p", str(port)
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, finished)
        with_previous = {**REQUEST, "previous_plan": plan_of_a_week(catalogue)}
        for asked in (REQUEST, with_previous):
            check(post(f"http://127.0.0.1:{port}/invocations", asked), asked, catalogue)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def check(answer: dict[str, object], asked: dict[str, object], catalogue: Catalogue) -> None:
    assert answer["feasible"] is True and answer["reason"] is None
    assert plan_problem(answer["plan"], catalogue.by_id) is None
    plan = parse_plan(answer["plan"], catalogue.by_id)
    assert plan.meals and violations(plan, parse_request(asked), catalogue) == ()


def plan_of_a_week(catalogue: Catalogue) -> dict[str, object]:
    ids = [recipe.id for recipe in catalogue.recipes[:2]]
    days = ("monday", "tuesday")
    return {"meals": [{"day": day, "recipe_id": id, "servings": 4} for day, id in zip(days, ids, strict=True)]}


def wait_for(url: str, server: subprocess.Popen[str], sandbox: Sandbox) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, sandbox.log()[-3000:]
            time.sleep(0.2)


def post(url: str, request: dict[str, object]) -> dict[str, object]:
    body = json.dumps({"inputs": [request]}).encode()
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as response:
        [answer] = json.load(response)["predictions"]
    assert isinstance(answer, dict)
    return answer
