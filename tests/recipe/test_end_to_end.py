"""The whole recipe through its real entry points: what a run leaves, what is reused, what an edit runs again.

One sandbox, one story: each fixture goes on where the one before it stopped.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.entities import Run

from planner.contracts.gate import SCORES
from planner.dataset.database import connect
from tests.recipe.project import TINY, Finished, Sandbox

pytestmark = pytest.mark.filterwarnings("default")
STEPS = ["build_dataset", "train", "evaluate"]


@dataclass(frozen=True)
class Chapter:
    """A run of the driver with what stood in store and database right after it."""

    done: Finished
    parent: Run
    children: dict[str, Run]
    model_versions: list[str]
    replay_rows: list[tuple[object, ...]]

    @property
    def table(self) -> dict[str, str]:
        """Lines of the last table by step."""
        last = self.done.out.rpartition("step ")[2]
        return {line.split()[0]: line for line in last.splitlines() if line.split() and line.split()[0] in ALL_STEPS}

    @property
    def ran(self) -> set[str]:
        return {name for name in self.children if "(reused)" not in name}


ALL_STEPS = [*STEPS, "promote"]


def chapter(sandbox: Sandbox, done: Finished) -> Chapter:
    assert done.code == 0, done.err[-3000:]
    parent = sandbox.newest("main")
    children = {run.info.run_name: run for run in sandbox.children(parent)}
    assert all(run.info.status == "FINISHED" for run in sandbox.runs()), "a run was left open or failed"
    return Chapter(done, parent, children, sandbox.model_versions(), sandbox.replay_rows())


@pytest.fixture(scope="module")
def first(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Chapter:
    """`mlflow run <folder>` from another working directory."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = sandbox.mlflow_run("-P", "profile=tiny", cwd=elsewhere)
    # MLflow puts the artifacts of a store beside whoever used it first.
    assert [path.name for path in elsewhere.iterdir()] == ["mlruns"]
    return chapter(sandbox, done)


@pytest.fixture(scope="module")
def again(sandbox: Sandbox, first: Chapter) -> Chapter:
    return chapter(sandbox, sandbox.call("steps.main", "--profile", "tiny"))


@pytest.fixture(scope="module")
def edited(sandbox: Sandbox, again: Chapter) -> Chapter:
    """One value of evaluate changed in the profile."""
    sandbox.write_profile("tiny", TINY.replace("sample_size: 24", "sample_size: 30"))
    return chapter(sandbox, sandbox.call("steps.main", "--profile", "tiny"))


@pytest.fixture(scope="module")
def passed(sandbox: Sandbox, edited: Chapter) -> Chapter:
    """A poor model is in production, so that the candidate passes its gate."""
    rows = sandbox.artifact(edited.children["evaluate"], "replay/rows.parquet")
    poor = sandbox.call(
        str(Path(__file__).with_name("poor_baseline.py")), sandbox.outputs("train")["dataset"], str(rows)
    )
    assert poor.code == 0, poor.err
    return chapter(sandbox, sandbox.call("steps.main", "--profile", "tiny"))


@pytest.fixture(scope="module")
def passed_again(sandbox: Sandbox, passed: Chapter) -> Chapter:
    return chapter(sandbox, sandbox.call("steps.main", "--profile", "tiny"))


@pytest.fixture(scope="module")
def restored(sandbox: Sandbox, passed_again: Chapter, new_database: Callable[[], str]) -> Chapter:
    """The database is a fresh one with the same events: registry and datasets know results that it does not."""
    sandbox.database = new_database()
    return chapter(sandbox, sandbox.call("steps.main", "--profile", "tiny"))


# --- the first run ---


def test_one_parent_run_has_a_child_for_each_step(first: Chapter) -> None:
    assert first.parent.info.run_name == "main"
    assert sorted(first.children) == sorted(STEPS), "promote runs behind an open gate only"
    for step, run in first.children.items():
        assert run.data.tags["step"] == step and run.data.tags["mlflow.parentRunId"] == first.parent.info.run_id


def test_each_run_says_what_it_ran_on(sandbox: Sandbox, first: Chapter) -> None:
    head = subprocess.run(["git", "-C", sandbox.root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    digest = first.children["build_dataset"].data.tags["dataset_digest"]
    assert re.fullmatch(r"[0-9a-f]{32}", digest)
    for run in (first.parent, *first.children.values()):
        tags = run.data.tags
        assert (tags["profile"], tags["git_commit"], tags["git_dirty"]) == ("tiny", head.stdout.strip(), "false")
    for run in first.children.values():
        tags = run.data.tags
        assert (tags["dataset_version"], tags["dataset_digest"]) == ("2018-01-01", digest)
        assert re.fullmatch(r"[0-9a-f]{32}", tags["fingerprint"])
    assert len({run.data.tags["fingerprint"] for run in first.children.values()}) == 3


def test_params_and_the_resolved_config_with_its_sources_are_logged(sandbox: Sandbox, first: Chapter) -> None:
    train = first.children["train"]
    assert train.data.params["train.epochs"] == "2" and train.data.params["train.lora_alpha"] == "32.0"
    for run in (first.parent, *first.children.values()):
        text = sandbox.artifact(run, "config.yaml").read_text()
        values = yaml.safe_load(text)
        assert values["train.max_examples"] == 12 and values["promote.policy"] == "planner_policy"
        assert re.search(r"^train.max_examples: 12 +# profiles/tiny.yaml$", text, re.M)
        assert re.search(r"^train.lora_r: 16 +# recipe.yaml$", text, re.M)


def test_losses_are_metrics_by_epoch(sandbox: Sandbox, first: Chapter) -> None:
    run_id = first.children["train"].info.run_id
    train = sandbox.client.get_metric_history(run_id, "train_loss")
    validation = sandbox.client.get_metric_history(run_id, "val_loss")
    assert [metric.step for metric in train] == [1, 2] and train[1].value < train[0].value
    assert [metric.step for metric in validation] == [0, 1, 2], "epoch 0 is the untrained adapter"


def test_each_step_leaves_its_files(sandbox: Sandbox, first: Chapter) -> None:
    files = {step: sandbox.artifacts(run) for step, run in first.children.items()}
    assert {"dataset/dataset_summary.md", "dataset/schema.json", "dataset/manifest.json"} <= files["build_dataset"]
    assert {"plots/loss.png", "worst_validation_rows.json"} <= files["train"]
    assert {"replay/rows.parquet", "replay/report.html"} <= files["evaluate"]
    assert all({"config.yaml", "outputs.json"} <= names for names in files.values())


def test_the_dataset_is_an_input_of_each_run_behind_the_build(first: Chapter) -> None:
    digest = first.children["build_dataset"].data.tags["dataset_digest"]
    for step in ("train", "evaluate"):
        [found] = first.children[step].inputs.dataset_inputs
        assert (found.dataset.name, found.dataset.digest) == ("planner/2018-01-01", digest)


def test_the_trained_version_carries_its_lineage(sandbox: Sandbox, first: Chapter) -> None:
    run = first.children["train"]
    version = sandbox.client.get_model_version("planner_model", run.data.tags["model_version"])
    assert version.status == "READY" and version.run_id == run.info.run_id
    expected = {"policy_id": "planner_policy", "task": "planner", "dataset_version": "2018-01-01", "kind": "lora"}
    assert expected.items() <= version.tags.items()
    assert version.tags["dataset_digest"] == run.data.tags["dataset_digest"]
    assert len(first.model_versions) == 2, "the trained one and the built-in baseline"
    assert f"Registered planner_model version {version.version}; read back and verified." in first.done.out
    assert f"mlflow run . -e evaluate -P model_name=planner_model -P model_version={version.version}" in first.done.out


def test_the_replay_stands_in_store_and_database(sandbox: Sandbox, first: Chapter) -> None:
    run = first.children["evaluate"]
    assert run.data.tags["evaluation_type"] == "offline_replay"
    assert first.replay_rows == [(run.info.run_id, "completed", False)]
    assert run.data.metrics["constraint_respect_score"] == 1.0
    rows = pq.read_table(sandbox.artifact(run, "replay/rows.parquet"))
    assert len(rows) == 24 and not any(rows["violations"].to_pylist())
    assert {*SCORES, *(f"baseline_{score}" for score in SCORES)} <= set(rows.column_names)
    [(stored,)] = sandbox.rows(
        "SELECT plan_alignment_score FROM exp.offline_replay_results WHERE mlflow_run_id = %s", run.info.run_id
    )
    assert float(stored) == pytest.approx(run.data.metrics["plan_alignment_score"], abs=1e-6)
    linked = sandbox.rows("SELECT mlflow_model_version FROM exp.policy_versions WHERE mlflow_model_name IS NOT NULL")
    assert {version for (version,) in linked} == set(first.model_versions)


def test_the_model_card_shows_the_scores(sandbox: Sandbox, first: Chapter) -> None:
    tags = first.children["evaluate"].data.tags
    card = sandbox.client.get_model_version("planner_model", tags["model_version"]).description
    assert "- validation loss: " in card and card.count("Verdict: ") == 1
    assert all(f"| {score} | " in card for score in SCORES)


def test_the_report_shows_what_the_dataset_left_out(sandbox: Sandbox, first: Chapter) -> None:
    manifest = json.loads((Path(sandbox.outputs("build_dataset")["dataset"]) / "manifest.json").read_text())
    seen = manifest["rows"] + sum(manifest["exclusions"].values())
    assert manifest["exclusions"]["not_generated"] == 1 and manifest["num_plans_seen"] == seen
    text = sandbox.artifact(first.children["evaluate"], "replay/report.html").read_text()
    assert f"{sum(manifest['exclusions'].values())} of {seen:,} accepted plans in the window were left out." in text
    assert "<td>not_generated</td><td>1</td>" in text


def test_a_closed_gate_is_a_result_with_its_reasons(sandbox: Sandbox, first: Chapter) -> None:
    verdict = first.children["evaluate"].data.tags["verdict"]
    assert verdict in ("FAIL", "INCONCLUSIVE"), "random weights pass no gate against what is popular"
    assert f"Gate: {verdict} for planner_model version" in first.done.out and "\n  - " in first.done.out
    assert set(first.table) == set(STEPS)
    model = sandbox.client.get_registered_model("planner_model")
    assert "candidate" not in model.aliases or model.aliases["candidate"] != first.model_versions[0]


# --- again, and after an edit ---


def test_a_second_run_reuses_every_step_and_makes_nothing(first: Chapter, again: Chapter) -> None:
    assert sorted(again.children) == sorted(f"{step} (reused)" for step in STEPS)
    assert all("reused" in again.table[step] for step in STEPS)
    assert (again.model_versions, again.replay_rows) == (first.model_versions, first.replay_rows)
    for step in STEPS:
        tags = again.children[f"{step} (reused)"].data.tags
        assert tags["reused_from"] == first.children[step].info.run_id
        assert tags["fingerprint"] == first.children[step].data.tags["fingerprint"]
        assert tags["dataset_digest"] == first.children[step].data.tags["dataset_digest"]


def test_an_edit_runs_only_the_steps_behind_it(again: Chapter, edited: Chapter) -> None:
    assert edited.ran == {"evaluate"}
    assert {"build_dataset (reused)", "train (reused)"} <= set(edited.children)
    assert "reused" in edited.table["train"] and "reused" not in edited.table["evaluate"]
    assert edited.model_versions == again.model_versions
    assert len(edited.replay_rows) == 2


# --- the gate opens ---


def test_a_passed_gate_makes_a_candidate_with_a_policy_version(sandbox: Sandbox, passed: Chapter) -> None:
    assert passed.ran == {"evaluate", "promote"}, passed.done.out
    assert passed.children["evaluate"].data.tags["verdict"] == "PASS"
    number = passed.children["promote"].data.tags["model_version"]
    version = sandbox.client.get_model_version("planner_model", number)
    assert version.tags["stage"] == "candidate" and version.tags["kind"] == "lora"
    assert str(sandbox.client.get_model_version_by_alias("planner_model", "candidate").version) == number
    assert passed.replay_rows[-1] == (passed.children["evaluate"].info.run_id, "completed", True)
    assert "Next: mlflow ui" in passed.done.out


def test_promoting_twice_changes_nothing(sandbox: Sandbox, passed: Chapter, passed_again: Chapter) -> None:
    assert passed_again.ran == set()
    assert set(passed_again.children) == {f"{step} (reused)" for step in ALL_STEPS}
    assert passed_again.replay_rows == passed.replay_rows


def test_a_fresh_database_gets_its_evidence_and_policy_version_anew(sandbox: Sandbox, restored: Chapter) -> None:
    assert "train" not in restored.ran, "the data are the same, so the model is"
    assert {"evaluate", "promote"} <= restored.ran
    assert [row[1:] for row in restored.replay_rows] == [("completed", True)]
    number = restored.children["promote"].data.tags["model_version"]
    assert (number,) in sandbox.rows("SELECT mlflow_model_version FROM exp.policy_versions WHERE status = 'active'")
    events = sandbox.rows("SELECT payload ->> 'model_version' FROM exp.events WHERE event_type = 'model_promoted'")
    assert events == [(number,)]


def test_a_version_in_production_is_not_evaluated_against_itself(sandbox: Sandbox, restored: Chapter) -> None:
    number = restored.children["promote"].data.tags["model_version"]
    before = sandbox.client.get_model_version_by_alias("planner_model", "production").version
    sandbox.client.set_registered_model_alias("planner_model", "production", number)
    try:
        settled = chapter(sandbox, sandbox.call("steps.main", "--profile", "tiny"))
    finally:
        sandbox.client.set_registered_model_alias("planner_model", "production", before)
    assert settled.ran == set() and "promote" not in settled.table
    assert f"planner_model version {number}" in settled.table["evaluate"]
    assert "in production already" in settled.table["evaluate"]
    assert settled.replay_rows == restored.replay_rows


def test_until_stops_and_force_runs_a_step_although_nothing_changed(sandbox: Sandbox, restored: Chapter) -> None:
    done = sandbox.call("steps.main", "--profile", "tiny", "--until", "build_dataset", "--force", "build_dataset")
    forced = chapter(sandbox, done)
    assert forced.ran == {"build_dataset"} and len(forced.children) == 1
    assert "unchanged" in forced.table["build_dataset"], "the version was there with the same rows"
    assert "Next: mlflow run . -e train -P dataset=" in done.out


def test_a_forced_training_trains_anew_and_gives_the_same_version(sandbox: Sandbox, restored: Chapter) -> None:
    known = sandbox.outputs("train")
    done = sandbox.call("steps.main", "--profile", "tiny", "--until", "train", "--force", "train")
    forced = chapter(sandbox, done)
    assert forced.ran == {"train"} and forced.model_versions == restored.model_versions
    outputs = sandbox.outputs("train")
    assert outputs["resumed_from_step"] is None and outputs["package_sha256"] == known["package_sha256"]
    assert {"train_loss", "val_loss", "step_loss"} <= set(forced.children["train"].data.metrics)


def test_a_step_alone_runs_by_its_entry_point(sandbox: Sandbox, restored: Chapter) -> None:
    """Promote once more by hand, with a value in the shell's way: the version as a parameter."""
    number = restored.children["promote"].data.tags["model_version"]
    before = sandbox.rows("SELECT count(*) FROM exp.policy_versions")
    done = sandbox.step("promote", model_version=number)
    assert done.code == 0, done.err
    assert "nothing: it was promoted before" in done.out
    newest = sandbox.step("promote")
    assert newest.code == 0 and "nothing: it was promoted before" in newest.out, newest.err
    assert sandbox.rows("SELECT count(*) FROM exp.policy_versions") == before


def test_a_share_of_an_experiment_is_given_from_the_command_line(sandbox: Sandbox, restored: Chapter) -> None:
    assert sandbox.database is not None
    with contextlib.closing(connect(sandbox.database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "WITH e AS (INSERT INTO exp.experiments (name, status, unit_type) VALUES ('weekly plans', 'active',"
            " 'household') RETURNING id) INSERT INTO exp.variants (experiment_id, name, allocation)"
            " SELECT id, 'control', 1 FROM e"
        )
    number = restored.children["promote"].data.tags["model_version"]
    values = {"profile": "tiny", "model_version": number, "allocation": "0.05", "experiment": "weekly plans"}
    options = [text for name, value in values.items() for text in ("-P", f"{name}={value}")]
    done = sandbox.mlflow_run("-e", "promote", *options, "-P", "variant=the new one")
    assert done.code == 0, done.err[-3000:]
    assert "variant the new one of weekly plans at 0.0500" in done.out
    assert sandbox.rows("SELECT name, allocation::text FROM exp.variants ORDER BY allocation") == [
        ("the new one", "0.0500"),
        ("control", "0.9500"),
    ]


def test_the_table_and_the_outputs_agree(sandbox: Sandbox, first: Chapter) -> None:
    for step, run in first.children.items():
        marker = json.loads(run.data.tags["planner.committed"])
        outputs = json.loads(sandbox.artifact(run, "outputs.json").read_text())
        assert marker["outputs"] == outputs and marker["fingerprint"] == run.data.tags["fingerprint"]
        for rows in ("rows_in", "rows_out"):
            assert f"{outputs[rows]:,}" in first.table[step]
