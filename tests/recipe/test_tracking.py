"""Runs that always end, commit markers, leases: on a real MLflow store in the test's own folder."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from planner.contracts.errors import DatasetError, ModelError, TrackingError
from planner.contracts.gate import SCORES, GateResult, Verdict
from planner.recipe.config import PROJECT, load_config
from planner.recipe.console import Console
from planner.recipe.registry import find_alias, get_version, newest_trained, show_scores
from planner.recipe.tracking import COMMIT_TAG, ERROR_TAG, LEASE_TAG, find_committed, reap_dead_runs, step_run
from planner.recipe.training_log import TrainingLog
from planner.training.memory import MemoryPlan
from planner.training.report import EpochMetrics, RowLoss, TrainingReport


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(uri)


def newest_run() -> mlflow.entities.Run:
    return MlflowClient().search_runs(["0"], order_by=["attributes.start_time DESC"])[0]


def test_a_finished_step_is_found_by_its_fingerprint(store: str) -> None:
    with step_run(load_config("local"), "train") as run:
        run.identify("f" * 32)
        run.outputs["model_version"] = "3"
    found = newest_run()
    assert found.info.status == "FINISHED"
    assert found.data.tags["step"] == "train" and found.data.tags["profile"] == "local"
    assert len(found.data.tags["git_commit"]) == 40
    assert found.data.params["train.lora_r"] == str(load_config("local").recipe.train.lora_r)
    assert find_committed("train", "f" * 32) == (run.run_id, {"model_version": "3"})
    assert find_committed("train", "e" * 32) is None
    assert find_committed("evaluate", "f" * 32) is None


def test_a_registry_that_fails_is_never_taken_for_one_without_such_a_version(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias, *others = asked = (
        lambda: find_alias("planner_model", "production"),
        lambda: get_version("planner_model", "1"),
        lambda: get_version("planner_model", "@production"),
        lambda: newest_trained("planner_model"),
    )
    assert alias() is None
    for ask in others:
        with pytest.raises(ModelError, match="there are: none|No trained version"):
            ask()
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in asked:
        with pytest.raises(TrackingError, match="MLflow failed: .*Check MLFLOW_TRACKING_URI") as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_failed_step_leaves_its_message_and_no_commit_marker(store: str) -> None:
    with pytest.raises(DatasetError), step_run(load_config("local"), "train") as run:
        run.identify("f" * 32)
        raise DatasetError("The dataset is gone. Build it again.")
    found = newest_run()
    assert found.info.status == "FAILED"
    assert found.data.tags[ERROR_TAG] == "The dataset is gone. Build it again."
    assert COMMIT_TAG not in found.data.tags
    assert find_committed("train", "f" * 32) is None


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_an_artifact_store_that_cannot_be_written_is_found_before_any_work(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-value")
    where = {"bucket": "s3://nowhere/runs", "folder": str(tmp_path / "taken")}[place]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment(place, artifact_location=where))
    worked = []
    with pytest.raises(TrackingError) as error, step_run(load_config("local"), "train"):
        worked.append("trained")
    assert worked == []
    assert f"artifact store at {where}" in str(error.value) and "same command again" in str(error.value)
    assert "secret-value" not in str(error.value)
    [run] = MlflowClient().search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
    assert run.info.status == "FAILED" and run.data.tags[ERROR_TAG] == str(error.value)


@pytest.fixture
def deaf_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that hangs up on everyone, and whom it hung up on."""
    calls: list[str] = []

    class HangUp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            calls.append(self.rfile.readline().decode())

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_address[1]}", calls
        server.shutdown()


def test_a_tracking_server_that_goes_away_is_waited_for_once(store: str, deaf_server: tuple[str, list[str]]) -> None:
    uri, calls = deaf_server
    with pytest.raises(TrackingError) as error, step_run(load_config("local"), "train"):
        mlflow.set_tracking_uri(uri)
        mlflow.log_metric("loss", 1.0)
    message = str(error.value)
    assert "The tracking server at http://127.0.0.1:" in message and "secret" not in message and "\n" not in message
    assert "run the same command again" in message and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" in message
    assert len(calls) == 3 + 2, "the metric is tried again, the message and the end of the run are not"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2" and mlflow.active_run() is None


def test_a_tracking_server_that_is_not_there_is_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with (
        pytest.raises(TrackingError, match=r"127.0.0.1:9 cannot be reached \(Connection refused\)"),
        step_run(load_config("local"), "train"),
    ):
        pytest.fail("worked without a store")


def test_a_finished_run_without_commit_marker_is_not_reused(store: str) -> None:
    with step_run(load_config("local"), "train") as run:
        run.identify("f" * 32)
    MlflowClient().delete_tag(run.run_id, COMMIT_TAG)
    assert newest_run().info.status == "FINISHED"
    assert find_committed("train", "f" * 32) is None


def test_a_model_card_shows_the_newest_replay_alone(store: str) -> None:
    client = MlflowClient()
    client.create_registered_model("planner_model")
    client.create_model_version("planner_model", store, description="Plans a week.\n\n- base: tiny")
    for verdict, score in ((Verdict.FAIL, 0.25), (Verdict.PASS, 0.5), (Verdict.PASS, 0.5)):
        scores = dict.fromkeys(SCORES, score)
        names = ("planner_model", "1", "2", "2018-01-01", "d" * 32, "test")
        show_scores(GateResult(verdict, (), *names, 24, 9, 0, scores, dict.fromkeys(SCORES, 0.125)), "r" * 32)
    card = client.get_model_version("planner_model", "1").description
    assert card.startswith("Plans a week.\n\n- base: tiny\n\n## Newest replay\n")
    assert (
        f"Verdict: PASS against version 2, 24 rows of the test split of planner/2018-01-01; report in run {'r' * 32}."
        in card
    )
    assert all(f"| {name} | 0.5000 | 0.1250 |" in card for name in SCORES)
    assert card.count("Verdict") == 1 and "0.2500" not in card


# --- what a training leaves in its run ---

EPOCHS = (
    EpochMetrics(0, None, 3.0, 0.0, 0, 0.0, 1.0),
    EpochMetrics(1, 2.0, 2.5, 1e-3, 90, 50.0, 2.0),
    EpochMetrics(2, 1.0, 1.5, 1e-4, 90, 60.0, 2.0),
)


def finished_training(folder: Path) -> TrainingReport:
    memory = MemoryPlan(None, 1, 1, 1, 1, 1, 1, 4096, False)
    worst = (RowLoss("e1", 4.0), RowLoss("e2", 3.5))
    return TrainingReport(folder / "adapter", EPOCHS, 2, 12, 4, 0, 0, 6, 10, 1, memory, 0, 6, False, 5.0, worst)


def test_worst_rows_stand_once_after_a_resumption(store: str, tmp_path: Path) -> None:
    config, report = load_config("local"), finished_training(tmp_path)
    with step_run(config, "train") as run:
        for _ in range(2):
            TrainingLog(run, Console(), config.recipe.train).finish(report)
    table = json.loads(Path(MlflowClient().download_artifacts(run.run_id, "worst_validation_rows.json")).read_text())
    assert table == {"columns": ["event_id", "loss"], "data": [["e1", 4.0], ["e2", 3.5]]}


def test_epochs_that_were_trained_in_another_run_are_logged_once(store: str, tmp_path: Path) -> None:
    config, report = load_config("local"), finished_training(tmp_path)
    with step_run(config, "train") as run:
        log = TrainingLog(run, Console(), config.recipe.train)
        log.epoch(EPOCHS[0])
        log.finish(report)
        TrainingLog(run, Console(), config.recipe.train).finish(report)
    for name, expected in (("train_loss", [(1, 2.0), (2, 1.0)]), ("val_loss", [(0, 3.0), (1, 2.5), (2, 1.5)])):
        found = MlflowClient().get_metric_history(run.run_id, name)
        assert [(metric.step, metric.value) for metric in found] == expected


SCRIPT = """
import sys, time
from planner.recipe.config import load_config
from planner.recipe.tracking import step_run
with step_run(load_config("local"), "train"):
    print("ready", flush=True)
    time.sleep(60)
"""


def start_step(store: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "MLFLOW_TRACKING_URI": store}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_sigterm_ends_the_run(store: str) -> None:
    process = start_step(store)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    found = newest_run()
    assert found.info.status == "KILLED"
    assert "run the same command again" in found.data.tags[ERROR_TAG]


def test_a_run_whose_process_was_killed_is_ended_by_the_next_start(store: str) -> None:
    process = start_step(store)
    process.kill()
    process.communicate(timeout=60)
    assert newest_run().info.status == "RUNNING"
    assert reap_dead_runs() == 1
    assert newest_run().info.status == "KILLED"
    assert reap_dead_runs() == 0


def test_a_run_that_is_alive_or_of_another_host_is_left_alone(store: str) -> None:
    with step_run(load_config("local"), "train"):
        assert reap_dead_runs() == 0
        assert newest_run().info.status == "RUNNING"
    elsewhere = MlflowClient().create_run("0", tags={LEASE_TAG: "another-host 1 0"})
    assert reap_dead_runs() == 0
    assert MlflowClient().get_run(elsewhere.info.run_id).info.status == "RUNNING"


def test_two_first_starts_on_an_empty_store_do_not_crash(tmp_path: Path) -> None:
    code = (
        "from planner.recipe.config import load_config\n"
        "from planner.recipe.environment import use_tracking_store\n"
        "use_tracking_store(load_config('local'))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'fresh.db'}",
    }
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
