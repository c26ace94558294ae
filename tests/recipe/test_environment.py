"""What a run refuses to start without, and the state of checkout and packages."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planner.contracts.errors import ConfigError, EnvironmentMismatchError
from planner.recipe.config import PROJECT, load_config
from planner.recipe.environment import DATABASE_VARIABLE, TRACKING_VARIABLE, database_url, git_state, use_tracking_store
from planner.recipe.fingerprint import MODULES_OF_STEP, ROOMS_OF_STEP, SHARED_CODE, code_hash, step_fingerprint
from planner.recipe.packages import check_packages, pinned_packages
from planner.recipe.train import _base_identity


@pytest.mark.parametrize("profile", ["gpu", "kubernetes", "databricks"])
@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db"])
def test_a_missing_tracking_server_is_named(profile: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING_VARIABLE, uri)
    with pytest.raises(ConfigError, match=f"'{profile}' needs a tracking server: set MLFLOW_TRACKING_URI"):
        use_tracking_store(load_config(profile))


@pytest.mark.parametrize("profile", ["gpu", "kubernetes", "databricks"])
def test_a_missing_database_is_named(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    with (
        pytest.raises(ConfigError, match=f"'{profile}' needs a database: set PLANNER_DATABASE_URL"),
        database_url(load_config(profile)),
    ):
        pass


def test_the_database_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, "postgresql://somewhere/else")
    with database_url(load_config("local")) as url:
        assert url == "postgresql://somewhere/else"


def test_the_pins_are_what_is_installed() -> None:
    check_packages()
    assert len(pinned_packages()) > 20


def test_a_package_that_differs_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["pydantic==0.0.1", "no-such-package==1", "moto[server]==0.1"]\n'
    )
    with pytest.raises(EnvironmentMismatchError) as caught:
        check_packages(tmp_path)
    message = str(caught.value)
    assert "pydantic is " in message and "no-such-package is missing, not 1" in message and "moto is " in message
    assert "start.py setup" in message


def test_the_test_step_refuses_a_wrong_environment_in_one_line(tmp_path: Path) -> None:
    for name in ("steps", "planner"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["no-such-package==1"]\n')
    command = [sys.executable, "-m", "steps.test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("EnvironmentMismatchError: ") and "no-such-package" in done.stderr


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_a_changed_checkout_is_dirty_and_a_folder_without_git_is_unknown(tmp_path: Path) -> None:
    assert git_state(tmp_path).commit == "unknown"
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-m", "one")
    clean = git_state(tmp_path)
    assert len(clean.commit) == 40 and not clean.dirty
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path).dirty


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("pins")
    for name in (
        "recipe/train.py",
        *SHARED_CODE,
        *MODULES_OF_STEP["train"],
        "training/loop.py",
        "dataset/build.py",
    ):
        path = tmp_path / "planner" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("code")
    return tmp_path


def test_an_edited_helper_module_changes_the_fingerprint_and_a_touch_does_not(project: Path) -> None:
    before = code_hash("train", project)
    (project / "planner/training/loop.py").touch()
    (project / "planner/dataset/build.py").write_text("another room")
    assert code_hash("train", project) == before
    (project / "planner/training/loop.py").write_text("edited")
    assert code_hash("train", project) != before


# What a step imports but what decides nothing of its result: its values are hashed, or it only talks.
TALK = {"recipe/config", "recipe/console", "recipe/environment", "recipe/fingerprint", "recipe/parents"}
# A dataset is hashed as an input, whoever opens it; what a database answers stands in no result.
OPENS = {"dataset/versions", "dataset/s3", "dataset/database", "dataset/build", "dataset/config", "dataset/fingerprint"}


@pytest.mark.parametrize("step", list(ROOMS_OF_STEP))
def test_the_fingerprint_is_over_each_module_that_the_step_imports(step: str) -> None:
    hashed = {name.removesuffix(".py") for name in (*SHARED_CODE, *MODULES_OF_STEP[step])}
    for name in [name.removesuffix(".py") for name in MODULES_OF_STEP[step] if name.startswith("recipe/")]:
        tree = ast.parse((PROJECT / "planner" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("planner."):
                package = (node.module or "").removeprefix("planner.").replace(".", "/")
                modules = [f"{package}/{alias.name}" for alias in node.names]
                for used in [m for m in modules if (PROJECT / f"planner/{m}.py").is_file()] or [package]:
                    known = used in hashed | TALK | OPENS or used.split("/")[0] in ROOMS_OF_STEP[step]
                    assert known, f"{name} imports {used}"


def test_a_local_base_is_known_by_what_its_files_hold(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("of no weight")
    before = _base_identity(str(tmp_path))
    os.utime(tmp_path / "model.safetensors", (1, 1))
    (tmp_path / "README.md").write_text("edited")
    assert _base_identity(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"WEIGHTS")
    assert _base_identity(str(tmp_path)) != before
    assert _base_identity("smollm2-135m") == "smollm2-135m"


def test_fingerprint_follows_config_and_inputs(project: Path) -> None:
    first = step_fingerprint("train", {"lr": 1e-3}, {"dataset_digest": "a"}, project)
    assert step_fingerprint("train", {"lr": 1e-3}, {"dataset_digest": "a"}, project) == first
    assert step_fingerprint("train", {"lr": 1e-4}, {"dataset_digest": "a"}, project) != first
    assert step_fingerprint("train", {"lr": 1e-3}, {"dataset_digest": "b"}, project) != first
