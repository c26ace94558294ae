"""The registered model through MLflow: logged, loaded elsewhere, asked in every form, and served over real HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from planner.contracts.errors import ModelError
from planner.contracts.plan import plan_problem
from planner.decoding.package import Lineage, LoraParts, load_package, write_package
from planner.decoding.served import ServedPlanner, _load_pyfunc, input_example, log_arguments, request_rows

LINEAGE = Lineage("2025-01-03", "d" * 32, ("train",))
# MLflow, SQLAlchemy and peft warn of each other's deprecations on import and first use.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def package(base, base_files, catalogue, tmp_path_factory):
    from peft import LoraConfig, get_peft_model

    from planner.decoding.base import load_base

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("served")
    get_peft_model(load_base(base_files, device="cpu").model, config).save_pretrained(folder / "adapter")
    write_package(
        folder / "package",
        LoraParts(base_files, base.tokenizer, folder / "adapter"),
        catalogue,
        LINEAGE,
        embed_base=True,
    )
    return folder / "package"


@pytest.fixture(scope="module")
def model_uri(package, catalogue, tmp_path_factory):
    """Logged into a fresh SQLite store, as the recipe does it."""
    store, path = tmp_path_factory.mktemp("store"), list(sys.path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    try:
        experiment = mlflow.create_experiment("decoding", artifact_location=(store / "artifacts").as_uri())
        # Not set_experiment: it would stay the whole process's experiment, in stores that do not have it.
        with mlflow.start_run(experiment_id=experiment):
            info = mlflow.pyfunc.log_model(name="model", **log_arguments(package, catalogue))
        yield mlflow.artifacts.download_artifacts(info.model_uri)
    finally:
        mlflow.set_tracking_uri(before)
        sys.path[:] = path


@pytest.fixture(scope="module")
def model(model_uri):
    path = list(sys.path)
    yield mlflow.pyfunc.load_model(model_uri)
    sys.path[:] = path


@pytest.fixture(scope="module")
def example(catalogue):
    return input_example(catalogue).to_dict(orient="records")[0]


def check_answer(answer: dict, catalogue) -> None:
    assert set(answer) == {"plan", "feasible", "reason"} and answer["feasible"] is True and answer["reason"] is None
    assert plan_problem(answer["plan"], catalogue.by_id) is None


def test_dict_list_and_table_give_the_same_valid_plan(model, example, catalogue):
    answers = [
        model.predict(example).to_dict("records"),
        model.predict([example, example]).to_dict("records")[:1],
        model.predict(pd.DataFrame([example])).to_dict("records"),
        ServedPlanner(model._model_impl.planner).predict(example).to_dict("records"),
    ]
    assert all(answer == answers[0] for answer in answers)
    check_answer(answers[0][0], catalogue)


def test_absent_and_null_members_take_the_defaults(model):
    nulls = {
        "household": {"id": "a", "size": None, "preferences": None},
        "pantry": None,
        "constraints": {"budget": None, "max_prep_time": None, "excluded_ingredients": None},
        "workflow_type": None,
        "mode": None,
        "previous_plan": None,
    }
    bare = {"household": {"id": "a"}}
    assert model.predict(nulls).equals(model.predict(bare))


def test_rows_with_different_members_stand_in_one_table(model):
    rows = [{"household": {"id": "a"}}, {"household": {"id": "b", "size": 3}, "constraints": {"budget": 150}}]
    answers = model.predict(rows).to_dict("records")
    assert [answer["feasible"] for answer in answers] == [True, True]
    assert answers[1] == model.predict(rows[1]).to_dict("records")[0]


def test_impossible_request_is_answered_with_the_reason(model):
    answer = model.predict({"household": {"id": "a"}, "constraints": {"budget": 0}}).to_dict("records")[0]
    assert answer["plan"] == {"meals": []} and answer["feasible"] is False
    assert answer["reason"].startswith("budget_below_minimum")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"household": {"id": "a", "size": "two"}}, "household.size"),
        ({"household": {"id": "a", "size": 2.5}}, "household.size"),
        ({"household": {"id": "a", "size": -1}}, "household.size"),
        ({"household": {"size": 2}}, "household.id"),
        ({"household": {"id": "a", "colour": "red"}}, "colour"),
        ({"mode": "autopilot"}, "household"),
        ({"household": {"id": "a"}, "constraints": {"budget": "much"}}, "constraints.budget"),
        ({"household": {"id": "a"}, "constraints": {"budget": float("nan")}}, "constraints.budget"),
        ({"household": {"id": "a"}, "constraints": {"cost": 3}}, "cost"),
        ({"household": {"id": "a"}, "constraints": [1]}, "constraints"),
        ({"household": {"id": "a"}, "pantry": {"items": [{"name": 3}]}}, r"pantry.items\[0\].name"),
        ({"household": {"id": "a"}, "previous_plan": {"meals": []}}, "previous_plan"),
        ({"household": {"id": "a"}, "workflow_type": 5}, "workflow_type"),
    ],
)
def test_request_that_breaks_the_contract_is_an_error_that_names_the_field(model, request_, field):
    with pytest.raises(MlflowException, match=field) as error:
        model.predict(request_)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_arrays_of_numpy_and_missing_cells_become_plain_values():
    table = pd.DataFrame(
        {
            "household": [{"id": "a", "size": np.int64(2), "preferences": np.array(["x"], dtype=object)}, {"id": "b"}],
            "constraints": [{"budget": np.float64(3.5)}, np.nan],
            "mode": [None, pd.NA],
        }
    )
    assert request_rows(table) == [
        {"household": {"id": "a", "size": 2, "preferences": ["x"]}, "constraints": {"budget": 3.5}},
        {"household": {"id": "b"}},
    ]


@pytest.mark.parametrize("value", ["text", 3, None])
def test_input_that_is_no_request_at_all_is_refused(package, value):
    with pytest.raises(MlflowException, match="not a request"):
        request_rows(value)


def test_changed_file_is_refused_when_mlflow_loads_it(model_uri, tmp_path):
    import shutil

    folder = shutil.copytree(model_uri, tmp_path / "model")
    catalogue_file = next(Path(folder).rglob("data/*/catalogue.json"))
    catalogue_file.write_text(catalogue_file.read_text().replace('"active": true', '"active":true', 1))
    with pytest.raises(ModelError, match=r"catalogue\.json .* changed"):
        _load_pyfunc(str(catalogue_file.parent))


def test_served_plans_are_the_planner_s_own(package, model, catalogue):
    from planner.contracts.request import parse_request
    from tests.tiny import tiny_requests

    planner, requests = load_package(package, device="cpu"), tiny_requests(8, 2, catalogue=catalogue)
    served = model.predict([r.to_dict() for r in requests]).to_dict("records")
    assert served == [result.to_dict() for result in planner.plan([parse_request(r.to_dict()) for r in requests])]


def test_temperature_draws_plans_by_seed_and_none_is_greedy(model, catalogue):
    from tests.tiny import tiny_requests

    requests = [r.to_dict() for r in tiny_requests(8, 2, catalogue=catalogue)]
    greedy = model.predict(requests).to_dict("records")
    drawn = [
        model.predict(requests, params={"temperature": 1.0, "top_p": 0.9, "seed": seed}).to_dict("records")
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and greedy not in drawn
    assert model.predict(requests, params={"temperature": 0.0, "seed": 7}).to_dict("records") == greedy
    for answer in drawn[0]:
        check_answer(answer, catalogue)


@pytest.mark.parametrize("params", [{"temperature": -1.0}, {"temperature": 1.0, "top_p": 0.0}])
def test_params_out_of_range_are_refused_by_name(model, example, params):
    with pytest.raises(MlflowException, match=list(params)[-1]) as error:
        model.predict(example, params=params)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_planner_without_a_model_draws_no_plans(catalogue):
    from planner.decoding.popular import PopularPlanner

    served = ServedPlanner(PopularPlanner((), ("monday",), catalogue))
    assert len(served.predict({"household": {"id": "a"}}, {"temperature": 0.0, "top_p": 0.5})) == 1
    with pytest.raises(MlflowException, match="kind popular draws no plans"):
        served.predict({"household": {"id": "a"}}, {"temperature": 0.5})


# --- over HTTP ---


@pytest.fixture(scope="module")
def server(model_uri, tmp_path_factory):
    """`mlflow models serve` in a process of its own, in another folder, without the checkout on its path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binaries = str(Path(sys.executable).parent)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    environment |= {"PATH": f"{binaries}:{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [f"{binaries}/mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local", "-p", str(port)]
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    process = subprocess.Popen(
        command, env=environment, cwd=Path(log.name).parent, stdout=log, stderr=log, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                log.seek(0)
                assert process.poll() is None and time.monotonic() < deadline, log.read()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)
        log.close()


def post(url: str, body: bytes | dict) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")


@pytest.mark.slow
def test_server_answers_every_input_form_with_a_valid_plan(server, example, catalogue):
    forms = [
        {"inputs": example},
        {"inputs": [example]},
        {"dataframe_records": [example]},
        {"dataframe_split": {"columns": list(example), "data": [list(example.values())]}},
    ]
    answers = []
    for form in forms:
        status, answer = post(server, form)
        assert status == 200, (next(iter(form)), answer)
        check_answer(answer["predictions"][0], catalogue)
        answers.append(answer)
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"not json", "JSON"),
        # MLflow turns `instances` into a dict of arrays, which cannot hold nested requests; `inputs` can.
        ({"instances": [{"household": {"id": "a"}}]}, "household"),
        (b'{"inputs": 3}', ""),
        (b"[]", ""),
        (b"{}", ""),
        ({"inputs": {"household": {"id": "a", "size": "two"}}}, "household.size"),
        ({"inputs": {"household": {"id": "a"}, "constraints": {"budget": "x"}}}, "constraints.budget"),
        ({"dataframe_records": [{"mode": "autopilot"}]}, "household"),
        ({"inputs": {"household": {"id": "a"}, "pantry": {"items": [{"name": "x" * 1_000_000, "n": 1}]}}}, "'n'"),
    ],
)
def test_server_answers_400_to_a_malformed_body(server, body, text):
    status, answer = post(server, body)
    assert status == 400 and text in json.dumps(answer)


@pytest.mark.slow
def test_server_answers_16_clients_at_once_as_it_does_one(server, catalogue):
    from tests.tiny import tiny_requests

    requests = [{"inputs": [request.to_dict()]} for request in tiny_requests(16, 9, catalogue=catalogue)]
    alone = [post(server, request) for request in requests]
    with ThreadPoolExecutor(16) as clients:
        assert list(clients.map(lambda request: post(server, request), requests)) == alone
    assert all(status == 200 for status, _ in alone)
