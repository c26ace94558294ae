"""Overlaying, types and sources, on a project folder of the test's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from planner.contracts.errors import ConfigError
from planner.recipe.cli import describe, main
from planner.recipe.config import PROJECT, STEPS, load_config


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(PROJECT / "recipe.yaml", tmp_path / "recipe.yaml")
    shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    return tmp_path


def write_profile(project: Path, text: str) -> None:
    (project / "profiles" / "mine.yaml").write_text(text, encoding="utf-8")


def test_recipe_is_complete_alone(project: Path) -> None:
    write_profile(project, "")
    config = load_config("mine", project=project)
    assert set(config.sources.values()) == {"recipe.yaml"}, "a value that recipe.yaml leaves to a default in code"


def test_profile_overlays_differences_and_keeps_the_rest(project: Path) -> None:
    write_profile(project, "train:\n  epochs: 7\n")
    before, after = load_config("local", project=project), load_config("mine", project=project)
    assert after.recipe.train.epochs == 7
    assert after.recipe.train.lr == before.recipe.train.lr
    assert after.sources["train.epochs"] == "profiles/mine.yaml"
    assert after.sources["train.lr"] == "recipe.yaml"


def test_limits_of_days_overlay_day_by_day(project: Path) -> None:
    assert load_config("local", project=project).values()["train.max_prep_time_by_day"] == {}
    recipe = (project / "recipe.yaml").read_text(encoding="utf-8")
    changed = recipe.replace("max_prep_time_by_day: {}", "max_prep_time_by_day: {monday: 20, friday: 0}")
    (project / "recipe.yaml").write_text(changed, encoding="utf-8")
    write_profile(project, "train:\n  max_prep_time_by_day: {friday: null, sunday: 90}\n")
    config = load_config("mine", project=project)
    assert config.recipe.train.max_prep_time_by_day.by_day() == {"monday": 20, "sunday": 90}
    assert config.values()["train.max_prep_time_by_day.sunday"] == 90
    assert config.sources["train.max_prep_time_by_day.sunday"] == "profiles/mine.yaml"


def test_lists_replace(project: Path) -> None:
    write_profile(project, "train:\n  target_modules: [q_proj]\n")
    assert list(load_config("mine", project=project).recipe.train.target_modules) == ["q_proj"]


@pytest.mark.parametrize("empty", ["", " {}", " null"])
def test_an_empty_section_of_a_profile_changes_nothing(project: Path, empty: str) -> None:
    write_profile(project, "".join(f"{step}:{empty}\n" for step in STEPS))
    found = load_config("mine", project=project)
    write_profile(project, "")
    assert found == load_config("mine", project=project) and set(found.sources.values()) == {"recipe.yaml"}


def test_an_empty_mapping_is_the_value_of_an_option_that_is_one(project: Path) -> None:
    write_profile(project, "build_dataset:\n  checks: {}\n")
    config = load_config("mine", project=project)
    assert dict(config.recipe.build_dataset.checks) == {}
    assert config.sources["build_dataset.checks"] == "profiles/mine.yaml"


def test_a_version_is_a_number_or_a_text(project: Path) -> None:
    write_profile(project, "evaluate: {model_version: 3, baseline_version: '2'}\npromote: {model_version: 3}\n")
    recipe = load_config("mine", project=project).recipe
    assert recipe.evaluate.model_version == recipe.promote.model_version == "3"


def test_every_float_takes_a_number_that_yaml_reads_as_text(project: Path) -> None:
    sections = {step: type(load_config("local").step(step)).model_fields for step in STEPS}
    floats = {
        step: [name for name, field in fields.items() if "float" in str(field.annotation)]
        for step, fields in sections.items()
    }
    assert sum(map(len, floats.values())) == 12
    written = {step: dict.fromkeys(names, "5e-2") for step, names in floats.items()}
    write_profile(project, yaml.safe_dump(written | {"promote": {**written["promote"], "experiment": "weekly"}}))
    values = load_config("mine", project=project).values()
    assert {values[f"{step}.{name}"] for step, names in floats.items() for name in names} == {0.05}


@pytest.mark.parametrize("step", ["train", "evaluate", "promote"])
def test_a_model_name_is_the_same_for_every_step(project: Path, step: str) -> None:
    write_profile(project, f"{step}:\n  model_name: my_model-2.b\n")
    load_config("mine", project=project)
    write_profile(project, f"{step}:\n  model_name: My_Model\n")
    with pytest.raises(ConfigError, match=f"{step}.model_name is 'My_Model'"):
        load_config("mine", project=project)


def test_parameter_wins_over_profile_and_empty_means_not_given(project: Path) -> None:
    config = load_config("local", {"train.epochs": "9", "train.lr": "", "promote.model_version": "4"}, project=project)
    assert config.recipe.train.epochs == 9
    assert config.sources["train.epochs"] == "parameter epochs"
    assert config.sources["train.lr"] != "parameter lr"
    assert config.recipe.promote.model_version == "4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  epochz: 3\n", "train.epochz is no key of the recipe (profiles/mine.yaml)"),
        ("trian:\n  epochs: 3\n", "trian"),
        ("train:\n  epochs: three\n", "train.epochs is 'three' (profiles/mine.yaml)"),
        ("train:\n  epochs: 1.5\n", "train.epochs is 1.5 (profiles/mine.yaml)"),
        ("train:\n  epochs: 0\n", "train.epochs is 0"),
        ("train:\n  lr: fast\n", "train.lr is 'fast'"),
        ("train: 3\n", "train"),
        (
            "train:\n  max_prep_time_by_day: {funday: 20}\n",
            "train.max_prep_time_by_day.funday is no key of the",
        ),
        (
            "train:\n  max_prep_time_by_day: {monday: -1}\n",
            "train.max_prep_time_by_day.monday is -1 (profiles/m",
        ),
        ("train:\n  max_prep_time_by_day: {monday: yes}\n", "train.max_prep_time_by_day.monday is True (profiles/m"),
        ("train:\n  max_prep_time_by_day: {monday: .nan}\n", "train.max_prep_time_by_day.monday is nan (profiles/m"),
        ("train:\n  max_prep_time_by_day: {monday: soon}\n", "train.max_prep_time_by_day.monday is 'soon' (profil"),
        ("train:\n  max_prep_time_by_day: 20\n", "train.max_prep_time_by_day is 20 (profiles/mine.yaml)"),
        ("- a list\n", "mine.yaml holds no keys"),
        ("train: [\n", "mine.yaml cannot be read"),
        ("build_dataset:\n  start_date: 2017-13-01\n", "build_dataset.start_date"),
        ("build_dataset:\n  start_date: 2018-02-01\n  end_date: 2018-01-01\n", "end_date"),
        ("evaluate:\n  split: everything\n", "evaluate.split is 'everything'"),
        ("promote:\n  allocation: 0.5\n", "promote.allocation is 0.5"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(project: Path, text: str, expected: str) -> None:
    write_profile(project, text)
    with pytest.raises(ConfigError) as caught:
        load_config("mine", project=project)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_profile_names_the_known_ones(project: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'nope'. Use one of ci, databricks, gpu, kubernetes, local"):
        load_config("nope", project=project)


def test_profile_cannot_leave_its_folder(project: Path) -> None:
    with pytest.raises(ConfigError, match="no profile"):
        load_config("../recipe", project=project)


def test_show_config_prints_every_value_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", "--profile", "gpu", "train.seed=5"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip("\n") == describe(load_config("gpu", {"train.seed": "5"}))
    lines = {line.split(":")[0]: line for line in out.splitlines()}
    assert lines["train.model_base"].endswith("# profiles/gpu.yaml")
    assert lines["train.seed"].endswith("# parameter seed")
    assert set(lines) - {"# profile gpu"} == set(load_config("gpu").values())


@pytest.mark.parametrize("text", ["train.lr", "=5", "train"])
def test_an_override_that_sets_nothing_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["show-config", text])
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and "write name=value" in told.err and repr(text) in told.err


def test_show_config_stops_quietly_when_its_reader_does() -> None:
    command = f"{sys.executable} -m planner show-config | true"
    cut = subprocess.run(command, cwd=PROJECT, shell=True, capture_output=True, check=False)
    assert cut.stderr == b""


def test_show_config_of_a_wrong_value_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-config", "train.epochs=many"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "train.epochs is 'many' (parameter epochs)" in captured.err
