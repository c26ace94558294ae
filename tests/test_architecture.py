"""The house: which room may import which, that every profile loads, that the pins agree, that README commands exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

from planner.recipe.config import available_profiles, flatten, load_config
from planner.recipe.packages import pinned_packages

PROJECT = Path(__file__).resolve().parents[1]
ROOMS = ("contracts", "dataset", "training", "decoding", "evaluation", "promotion", "recipe")
MAY_IMPORT = {
    "contracts": set(),
    "dataset": {"contracts"},
    "training": {"contracts"},
    "decoding": {"contracts"},
    "promotion": {"contracts"},
    "evaluation": {"contracts", "decoding"},
    "recipe": set(ROOMS) - {"recipe"},
}
TEXT_FILES = {".py", ".md", ".yaml", ".ipynb", ".sql", ".j2"}
OWNERS = {"psycopg2": {"dataset", "promotion"}, "adbc_driver_postgresql": {"dataset"}, "peft": {"training", "decoding"}}


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, lazy ones too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(room: str) -> list[Path]:
    return sorted((PROJECT / "planner" / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_only_down(room: str) -> None:
    assert sources(room)
    for path in sources(room):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "planner" and len(parts) > 1 and parts[1] != room:
                assert parts[1] in MAY_IMPORT[room], f"{path.relative_to(PROJECT)} imports {name}"


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_libraries_stay_in_their_rooms(library: str) -> None:
    for room in set(ROOMS) - OWNERS[library]:
        for path in sources(room):
            assert not any(name.split(".")[0] == library for name in imported(path)), path


def test_the_verifier_shares_no_code_with_the_decoder() -> None:
    names = imported(PROJECT / "planner/evaluation/verify.py")
    assert not any(name.startswith(("planner.decoding", "planner.evaluation")) for name in names)


@pytest.mark.parametrize("room", ["steps", "notebooks"])
def test_steps_and_notebooks_see_the_recipe_alone(room: str) -> None:
    for path in (PROJECT / room).rglob("*.py"):
        for name in imported(path):
            if name.startswith("planner."):
                assert name.split(".")[1] in {"recipe", "contracts"}, f"{path}: {name}"


@pytest.mark.parametrize("profile", available_profiles())
def test_every_profile_loads(profile: str) -> None:
    assert load_config(profile).profile == profile


def test_there_are_the_five_profiles() -> None:
    assert set(available_profiles()) == {"local", "ci", "gpu", "kubernetes", "databricks"}


def test_a_profile_holds_differences_only() -> None:
    recipe = flatten(yaml.safe_load((PROJECT / "recipe.yaml").read_text()))
    for profile in available_profiles():
        overlay = flatten(yaml.safe_load((PROJECT / "profiles" / f"{profile}.yaml").read_text()) or {})
        repeated = [key for key, value in overlay.items() if key in recipe and recipe[key] == value]
        assert not repeated, f"{profile} repeats recipe.yaml"


def test_pins_agree_between_all_files() -> None:
    pins = set(pinned_packages())
    assert all(re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[^=]+", pin) for pin in pins)
    python_env = yaml.safe_load((PROJECT / "python_env.yaml").read_text())
    assert "python" not in python_env, "pyenv would build the newest Python of that name from a download"
    assert set(python_env["dependencies"]) == pins
    conda = yaml.safe_load((PROJECT / "conda.yaml").read_text())
    assert set(conda["dependencies"][-1]["pip"]) == pins
    assert "python=3.11" in conda["dependencies"]


def test_constraints_hold_every_pin() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    locked = {re.sub(r"[-_.]+", "-", line.lower()) for line in lines if "==" in line}
    for pin in pinned_packages():
        assert re.sub(r"[-_.]+", "-", re.sub(r"\[.*\]", "", pin).lower()) in locked, pin


def test_every_entry_point_has_its_step_and_bare_placeholders() -> None:
    project = yaml.safe_load((PROJECT / "MLproject").read_text())
    assert set(project["entry_points"]) == {"main", "build_dataset", "train", "evaluate", "promote", "test"}
    for name, entry in project["entry_points"].items():
        assert f"-m steps.{name} " in entry["command"]
        assert (PROJECT / "steps" / f"{name}.py").is_file()
        assert not re.search(r"['\"]\{|\}['\"]", entry["command"])
        placeholders = set(re.findall(r"\{(\w+)\}", entry["command"]))
        assert placeholders == set(entry["parameters"])
        options = getattr(importlib.import_module(f"steps.{name}"), "OPTIONS", ("markers",))
        assert set(entry["parameters"]) - {"profile"} == set(options)


def test_every_page_that_is_named_exists() -> None:
    folders = ("planner", "steps", "profiles", "docs", "tests", "benchmarks", "notebooks")
    files = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.suffix in TEXT_FILES]
    for path in [*files, *(PROJECT / name for name in ("README.md", "MLproject", "recipe.yaml"))]:
        for page in re.findall(r"\bdocs/[\w-]+\.md", path.read_text(encoding="utf-8")):
            assert (PROJECT / page).is_file(), f"{path.relative_to(PROJECT)} names {page}"


def test_every_command_of_the_readme_exists() -> None:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    entry_points = yaml.safe_load((PROJECT / "MLproject").read_text())["entry_points"]
    commands = [
        line.strip() for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", readme, re.S) for line in block.splitlines()
    ]
    assert "python3.11 start.py" in commands and "python3.11 start.py test" in commands
    for command in commands:
        for entry, parameters in re.findall(r"mlflow run \.(?: -e (\w+))?((?: -P \S+)*)", command):
            assert (entry or "main") in entry_points, command
            for name in re.findall(r"-P (\w+)=", parameters):
                assert name in entry_points[entry or "main"]["parameters"], command
        for module in re.findall(r"python -m (planner[\w.]*|benchmarks[\w.]*)", command):
            path = PROJECT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), command
        for script in re.findall(r"python3?(?:\.11)? (\S+\.py)", command):
            assert (PROJECT / script).is_file(), command
