"""Bad input as a user gives it: one line that says what to do, an exit code, and nothing half-written."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest

from planner.dataset.embedded import embedded_postgres
from tests.recipe.project import TINY, Finished, Sandbox

pytestmark = pytest.mark.filterwarnings("default")


@dataclass(frozen=True)
class Results:
    """A dataset version and a trained version that stand in the sandbox."""

    dataset: str
    version: str
    baseline: str


@pytest.fixture(scope="module")
def results(sandbox: Sandbox) -> Results:
    for step in ("build_dataset", "train", "evaluate"):
        done = sandbox.step(step)
        assert done.code == 0, done.err
    outputs = sandbox.outputs("evaluate")
    return Results(outputs["dataset"], outputs["model_version"], outputs["baseline_version"])


@pytest.fixture(autouse=True)
def nothing_half_written(sandbox: Sandbox, results: Results) -> Iterator[None]:
    """What stood before the test stands after it, and no run and no replay row is left open."""
    before = state(sandbox)
    yield
    assert state(sandbox) == before
    assert [run.info.run_name for run in sandbox.runs() if run.info.status == "RUNNING"] == []
    assert [row for row in sandbox.replay_rows() if row[1] == "running"] == []


def state(sandbox: Sandbox) -> object:
    completed = [row for row in sandbox.replay_rows() if row[1] == "completed"]
    aliases = sandbox.client.get_registered_model("planner_model").aliases
    promoted = sandbox.rows("SELECT count(*) FROM exp.events WHERE event_type = 'model_promoted'")
    return sandbox.dataset_versions(), sandbox.model_versions(), completed, aliases, promoted


def refused(done: Finished, *texts: str, by_mlflow: bool = False) -> str:
    """Check that a process ended with one line that holds these texts; returns it."""
    assert done.code != 0
    assert "Traceback" not in done.err, done.err[-3000:]
    told = [line for line in done.said if not by_mlflow or "INFO mlflow" not in line and "ERROR mlflow" not in line]
    assert len(told) == 1, done.err
    for text in texts:
        assert text in told[0]
    return told[0]


def failed(sandbox: Sandbox, step: str, message: str) -> None:
    """The newest run of the step says the same as the terminal did."""
    run = sandbox.newest(step)
    assert run.info.status == "FAILED"
    assert run.data.tags["planner.error"] == message.partition(": ")[2]


# --- configuration ---


@pytest.mark.parametrize(
    ("step", "arguments", "texts"),
    [
        ("main", ["--profile", "nope"], ["ConfigError: There is no profile 'nope'. Use one of ci,"]),
        ("train", ["--profile", "../recipe"], ["There is no profile"]),
        ("train", ["--epochs", "many"], ["train.epochs is 'many' (parameter epochs)"]),
        ("train", ["--epochs", "1.5"], ["train.epochs is"]),
        ("train", ["--lr", "fast"], ["train.lr is 'fast' (parameter lr): ", "a number is needed, such as 0.0001"]),
        ("train", ["--batch_size", "0"], ["train.batch_size is"]),
        ("evaluate", ["--split", "tomorrow"], ["evaluate.split is 'tomorrow'", "'train', 'validation' or 'test'"]),
        ("evaluate", ["--sample_size", "-1"], ["evaluate.sample_size is"]),
        ("evaluate", ["--model_version", "latest"], ["evaluate.model_version is 'latest'"]),
        ("promote", ["--allocation", "0.5"], ["promote.allocation is"]),
        ("promote", ["--allocation", "0.05"], ["allocation is above 0, so experiment must name the experiment"]),
        ("build_dataset", ["--start_date", "2017-13-01"], ["build_dataset.start_date is '2017-13-01'"]),
        ("build_dataset", ["--end_date", "tomorrow"], ["build_dataset.end_date is 'tomorrow'", "YYYY-MM-DD"]),
        ("build_dataset", ["--date", "../../etc"], ["build_dataset.date is '../../etc'"]),
        (
            "build_dataset",
            ["--start_date", "2018-01-01", "--end_date", "2017-01-01"],
            ["start_date 2018-01-01 must be before end_date 2017-01-01"],
        ),
        ("main", ["--start_date", "2018-02-01"], ["start_date 2018-02-01 must be before end_date 2018-01-01"]),
        ("main", ["--until", "deploy"], ["until is 'deploy'", "build_dataset, train, evaluate, promote"]),
        ("main", ["--force", "trian"], ["force names trian", "Use all, or some of"]),
    ],
)
def test_a_wrong_parameter_is_named_before_any_work(
    sandbox: Sandbox, step: str, arguments: list[str], texts: list[str]
) -> None:
    runs = len(sandbox.runs())
    profile = [] if "--profile" in arguments else ["--profile", "tiny"]
    refused(sandbox.call(f"steps.{step}", *profile, *arguments), *texts)
    assert len(sandbox.runs()) == runs, "no run was opened"


def test_an_unknown_key_of_a_profile_is_named_with_its_file(sandbox: Sandbox) -> None:
    sandbox.write_profile("typo", TINY.replace("  epochs:", "  epochz:"))
    refused(sandbox.step("main", "typo"), "train.epochz is no key of the recipe (profiles/typo.yaml)", "show-config")


def test_an_unknown_profile_through_mlflow_run(sandbox: Sandbox) -> None:
    done = sandbox.mlflow_run("-P", "profile=nope")
    refused(done, "ConfigError: There is no profile 'nope'. Use one of ", by_mlflow=True)


@pytest.mark.parametrize("missing", ["MLFLOW_TRACKING_URI", "PLANNER_DATABASE_URL"])
def test_a_profile_without_embedded_default_names_the_missing_variable(sandbox: Sandbox, missing: str) -> None:
    sandbox.write_profile("remote", TINY.replace("embedded: true", "embedded: false"))
    # The checkout's own mlflow.db is what `mlflow run` exports where nobody chose a store.
    chosen = shutil.copy(sandbox.root / "mlflow.db", sandbox.root / "chosen.db")
    changes = {"MLFLOW_TRACKING_URI": f"sqlite:///{chosen}", missing: None}
    done = sandbox.call("steps.build_dataset", "--profile", "remote", **changes)
    refused(done, f"set {missing}", "or use --profile local")


# --- datasets ---


def test_an_empty_window_says_where_the_plans_are(sandbox: Sandbox) -> None:
    done = sandbox.step("build_dataset", start_date="2015-01-01", end_date="2015-02-01")
    line = refused(done, "There is no row from 2015-01-01 to 2015-02-01", "Accepted plans exist from 2017-")
    failed(sandbox, "build_dataset", line)


def test_an_empty_window_fails_the_whole_recipe_with_the_steps_message(sandbox: Sandbox) -> None:
    done = sandbox.step("main", start_date="2015-01-01", end_date="2015-02-01")
    assert done.code != 0 and "Traceback" not in done.err
    assert "build_dataset" in done.out and "FAILED" in done.out
    last = done.said[-1]
    assert last.startswith("StepFailedError: Step build_dataset failed: There is no row from 2015-01-01 to 2015-02-01")
    failed(sandbox, "main", last)


def test_fewer_rows_than_min_rows(sandbox: Sandbox) -> None:
    sandbox.write_profile("greedy", TINY.replace("min_rows: 50", "min_rows: 1000000"))
    line = refused(sandbox.step("build_dataset", "greedy", date="greedy"), "min_rows", "1,000,000")
    failed(sandbox, "build_dataset", line)


def test_a_catalogue_with_duplicate_titles(sandbox: Sandbox) -> None:
    with changed(sandbox, "UPDATE recipes SET title = (SELECT title FROM recipes ORDER BY id LIMIT 1)"
                          " WHERE id = (SELECT max(id) FROM recipes)"):  # fmt: skip
        line = refused(sandbox.step("build_dataset", date="twice"), "CatalogueError: ", "title")
    failed(sandbox, "build_dataset", line)


def test_another_content_under_the_name_of_a_version(sandbox: Sandbox, results: Results) -> None:
    done = sandbox.step("build_dataset", start_date="2017-10-01")
    refused(done, "2018-01-01", "build_dataset.date")


@pytest.mark.parametrize("step", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: shutil.rmtree(folder), "There is no dataset at "),
        (lambda folder: (folder / "manifest.json").unlink(), "is incomplete: manifest.json is missing"),
        (lambda folder: (folder / "recipes.parquet").unlink(), "is incomplete: recipes.parquet is missing"),
        (lambda folder: flip_a_byte(folder / "training.parquet"), "changed since its build: training.parquet"),
    ],
    ids=["missing", "no manifest", "a file short", "a byte changed"],
)
def test_a_dataset_that_is_not_what_was_built(
    sandbox: Sandbox, results: Results, tmp_path: Path, step: str, damage: Callable[[Path], None], text: str
) -> None:
    copy = Path(shutil.copytree(results.dataset, tmp_path / "copy"))
    damage(copy)
    line = refused(sandbox.step(step, dataset=copy), text, str(copy), "uild it")
    failed(sandbox, step, line)


def test_a_damaged_dataset_is_built_anew_by_no_one_but_its_user(sandbox: Sandbox, results: Results) -> None:
    """The driver meets its own version damaged: it says so, and does not write over it."""
    path = Path(results.dataset) / "training.parquet"
    before = path.read_bytes()
    flip_a_byte(path)
    try:
        done = sandbox.step("main", until="build_dataset")
        assert done.code != 0
        assert "changed since its build: training.parquet" in done.said[-1]
    finally:
        path.write_bytes(before)


def test_a_file_in_the_place_of_the_datasets_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "datasets").write_text("in the way")
    done = sandbox.step("build_dataset", datasets=tmp_path / "datasets")
    line = refused(done, f"The datasets folder {tmp_path}", "cannot be written", "set build_dataset.datasets")
    failed(sandbox, "build_dataset", line)


def test_a_datasets_folder_that_may_not_be_written(sandbox: Sandbox) -> None:
    # As root permission bits do not hold; nobody writes into /proc.
    done = sandbox.step("build_dataset", datasets="/proc/datasets")
    refused(done, "The datasets folder /proc/datasets/planner cannot be written", "set build_dataset.datasets")


# --- models ---


@pytest.mark.slow
def test_an_unknown_base_model(sandbox: Sandbox, results: Results) -> None:
    line = refused(sandbox.step("train", model_base="gpt-17"), "Unknown base model 'gpt-17'", "smollm2-135m")
    failed(sandbox, "train", line)


@pytest.mark.slow
def test_a_folder_that_is_no_base_model(sandbox: Sandbox, results: Results, tmp_path: Path) -> None:
    refused(sandbox.step("train", model_base=tmp_path), str(tmp_path), "lacks config.json")


@pytest.mark.parametrize("step", ["evaluate", "promote"])
def test_a_model_version_that_does_not_exist(sandbox: Sandbox, results: Results, step: str) -> None:
    line = refused(
        sandbox.step(step, model_version="99"), "no version '99' of the model 'planner_model'", "there are: 2, 1"
    )
    failed(sandbox, step, line)


@pytest.mark.slow
def test_a_model_version_that_does_not_exist_through_mlflow_run(sandbox: Sandbox, results: Results) -> None:
    done = sandbox.mlflow_run("-e", "evaluate", "-P", "profile=tiny", "-P", "model_version=99")
    line = refused(done, "ModelError: There is no version '99' of the model 'planner_model'", by_mlflow=True)
    failed(sandbox, "evaluate", line)


def test_a_model_that_does_not_exist(sandbox: Sandbox, results: Results) -> None:
    refused(sandbox.step("promote", model_name="cook"), "No trained version of 'cook'", "-e train")
    refused(
        sandbox.step("evaluate", model_name="cook", model_version="1"), "no version '1' of the model 'cook'", "none"
    )


def test_a_baseline_that_is_the_candidate(sandbox: Sandbox, results: Results) -> None:
    done = sandbox.step("evaluate", model_version=results.version, baseline_version=results.version)
    line = refused(done, "both candidate and baseline", "Give another baseline_version")
    failed(sandbox, "evaluate", line)
    before = sandbox.replay_rows()
    refused(sandbox.step("evaluate", model_version=results.baseline), "both candidate and baseline")
    assert sandbox.replay_rows() == before, "a replay that never began has no row"


def test_a_model_file_that_was_changed(sandbox: Sandbox, results: Results) -> None:
    version = sandbox.client.get_model_version("planner_model", results.version)
    logged = sandbox.client.get_logged_model(version.source.removeprefix("models:/"))
    path = next(Path(logged.artifact_location.removeprefix("file://")).rglob("adapter_model.safetensors"))
    before = path.read_bytes()
    flip_a_byte(path)
    try:
        refused(sandbox.step("evaluate", model_version=results.version), "adapter_model.safetensors")
    finally:
        path.write_bytes(before)


def test_promotion_without_a_passed_replay_says_why_not(sandbox: Sandbox, results: Results) -> None:
    line = refused(sandbox.step("promote", model_version=results.version), "did not pass its newest replay")
    failed(sandbox, "promote", line)
    refused(sandbox.step("promote", model_version=results.baseline), "has no completed replay", "-e evaluate")


# --- databases ---


def test_a_database_that_fails_as_well_does_not_hide_why_a_replay_broke_off(sandbox: Sandbox, results: Results) -> None:
    (sandbox.root / "taken").mkdir()
    (sandbox.root / "taken" / "replay").write_text("a file where a folder is wanted")
    sandbox.write_profile("taken", TINY + "folder: taken\n")
    execute(
        sandbox.database,
        "CREATE FUNCTION refuse() RETURNS trigger AS $$BEGIN RAISE EXCEPTION 'disk full'; END$$ LANGUAGE plpgsql",
        "CREATE TRIGGER refuse BEFORE UPDATE ON exp.offline_replay_results EXECUTE FUNCTION refuse()",
    )
    try:
        done = sandbox.step("evaluate", "taken")
    finally:
        execute(
            sandbox.database,
            "DROP FUNCTION refuse CASCADE",
            "DELETE FROM exp.offline_replay_results WHERE status = 'running'",
        )
    told, line = done.said
    assert "row stays running" in told and "disk full" in told
    assert done.code == 1 and line.startswith("ReplayError: ") and "cannot be written" in line
    failed(sandbox, "evaluate", line)


def test_no_server_at_the_url(sandbox: Sandbox) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://me:s3cret@127.0.0.1:{free.getsockname()[1]}/events"
        done = sandbox.call("steps.build_dataset", "--profile", "tiny", PLANNER_DATABASE_URL=url)
    line = refused(done, "DatabaseError: ", "127.0.0.1", "Check PLANNER_DATABASE_URL")
    failed(sandbox, "build_dataset", line)
    assert_hidden(sandbox, done, "s3cret")


def test_no_server_at_the_url_fails_the_whole_recipe(sandbox: Sandbox) -> None:
    done = sandbox.call(
        "steps.main", "--profile", "tiny", PLANNER_DATABASE_URL="postgresql://me:s3cret@/x?host=/nowhere"
    )
    line = refused(done, "DatabaseError: ", "Check PLANNER_DATABASE_URL")
    failed(sandbox, "main", line)
    assert_hidden(sandbox, done, "s3cret")


def test_a_url_that_is_none(sandbox: Sandbox) -> None:
    done = sandbox.call("steps.build_dataset", "--profile", "tiny", PLANNER_DATABASE_URL="s3cret@somewhere")
    refused(done, "DatabaseError: The database URL cannot be read. Write postgresql://")
    assert_hidden(sandbox, done, "s3cret")


@pytest.mark.slow
def test_a_wrong_password_is_refused_and_shown_nowhere(sandbox: Sandbox, guarded: str) -> None:
    right = sandbox.call(
        "steps.build_dataset", "--profile", "tiny", "--date", "2018-01-01", PLANNER_DATABASE_URL=guarded
    )
    assert right.code == 0, right.err
    wrong = guarded.replace("right", "wr0ng-pass")
    for step in ("build_dataset", "evaluate"):
        done = sandbox.call(f"steps.{step}", "--profile", "tiny", PLANNER_DATABASE_URL=wrong)
        refused(done, "DatabaseError: ", "password", "guarded")
        assert_hidden(sandbox, done, "wr0ng-pass")


def test_the_embedded_folder_in_use_by_another_run(sandbox: Sandbox) -> None:
    with embedded_postgres(sandbox.root / ".planner" / "postgres", fsync=False):
        done = sandbox.call("steps.main", "--profile", "tiny", PLANNER_DATABASE_URL=None)
    line = refused(done, "EmbeddedServerError: ", "in use by another run", str(os.getpid()), "PLANNER_DATABASE_URL")
    failed(sandbox, "main", line)


# --- surroundings ---


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def assert_hidden(sandbox: Sandbox, done: Finished, secret: str) -> None:
    """Neither on the terminal nor anywhere in the store or the sandbox."""
    assert secret not in done.out + done.err
    assert secret not in str([run.to_dictionary() for run in sandbox.runs()])
    assert secret.encode() not in (sandbox.root / "mlflow.db").read_bytes()


@contextlib.contextmanager
def changed(sandbox: Sandbox, statement: str) -> Iterator[None]:
    """The catalogue changed for the time of the block."""
    copy, back = (
        "CREATE TABLE kept AS SELECT * FROM recipes",
        "UPDATE recipes r SET title = k.title FROM kept k WHERE k.id = r.id",
    )
    execute(sandbox.database, copy, statement)
    try:
        yield
    finally:
        execute(sandbox.database, back, "DROP TABLE kept")


def execute(url: str | None, *statements: str) -> None:
    assert url is not None
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


@pytest.fixture
def guarded(sandbox: Sandbox) -> Iterator[str]:
    """URL of a user whom the server asks for a password."""
    assert sandbox.database is not None
    [(rules,)] = sandbox.rows("SHOW hba_file")
    before = Path(rules).read_text()
    owner = Path(rules).stat()
    execute(
        sandbox.database,
        "CREATE ROLE guarded LOGIN PASSWORD 'right' IN ROLE pg_read_all_data",
    )
    Path(rules).write_text("local all guarded scram-sha-256\n" + before)
    os.chown(rules, owner.st_uid, owner.st_gid)
    execute(sandbox.database, "SELECT pg_reload_conf()")
    url = sandbox.database.replace("//planner@", "//guarded:right@")
    try:
        yield url
    finally:
        Path(rules).write_text(before)
        execute(sandbox.database, "SELECT pg_reload_conf()", "DROP ROLE guarded")
