"""The commands for planners that are not ours: what they are asked, and whether what they answer holds."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest

from planner.contracts.request import parse_request
from planner.dataset.build import build_dataset
from planner.dataset.read import iter_examples, read_catalogue
from planner.dataset.versions import open_version
from planner.decoding.files import verify_package
from planner.decoding.package import Lineage, LoraParts, write_package
from planner.decoding.popular import PopularPlanner
from planner.recipe.cli import main
from planner.recipe.registry import register_package
from tests.dataset import small
from tests.tiny import tiny_base_folder, tiny_catalogue


def test_answers_are_asked_for_verified_and_judged_by_the_exit_code(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.fill(database_url)
    build_dataset(database_url, small.config(tmp_path))
    place = str(tmp_path / "planner" / "v1")
    where = [f"evaluate.dataset={place}", "evaluate.split=train"]
    version = open_version(place)
    asked = tmp_path / "asked.jsonl"
    assert main(["requests", str(asked), *where]) == 0
    lines = [json.loads(line) for line in asked.read_text().splitlines()]
    assert [line["event_id"] for line in lines] == [e.event_id for e in iter_examples(version, split="train")]
    planner = PopularPlanner([], ["monday"], read_catalogue(version))
    results = planner.plan([parse_request(line["request"]) for line in lines])
    answers = [
        {"event_id": line["event_id"], "plan": result.plan.to_dict()}
        for line, result in zip(lines, results, strict=True)
    ]
    answered = tmp_path / "answers.jsonl"
    answered.write_text("\n".join(map(json.dumps, answers)))
    assert main(["verify", str(answered), *where]) == 0
    printed = capsys.readouterr().out
    assert f"{len(lines)} answers" in printed and "0 violate a constraint" in printed
    assert "plan_alignment_score" in printed
    answers[0]["plan"]["meals"][0]["servings"] = 0
    answered.write_text("\n".join(map(json.dumps, answers[:-1])))
    assert main(["verify", str(answered), *where]) == 1
    printed = capsys.readouterr().out
    assert f"{answers[0]['event_id']}: The answer is no plan" in printed and "1 requests were not answered:" in printed
    assert main(["verify", str(tmp_path / "none.jsonl"), *where]) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_registered_version_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    from planner.decoding.base import load_base, resolve_base

    files = resolve_base(str(tiny_base_folder(tmp_path / "base")))
    base, catalogue = load_base(files, device="cpu"), tiny_catalogue(20)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(base.model, config).save_pretrained(tmp_path / "adapter")
    parts = LoraParts(files, base.tokenizer, tmp_path / "adapter")
    write_package(tmp_path / "package", parts, catalogue, Lineage("v", "d" * 32, ("train",)))
    uri, before = f"sqlite:///{tmp_path / 'mlflow.db'}", mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    try:
        experiment = mlflow.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment):
            register_package(
                tmp_path / "package",
                catalogue,
                model_name="planner_model",
                key="k",
                tags={"kind": "lora"},
                description="",
            )
        assert main(["export", str(tmp_path / "out"), f"folder={tmp_path / 'work'}"]) == 0
        assert "planner_model version 1" in capsys.readouterr().out
        verify_package(tmp_path / "out")
        assert main(["export", str(tmp_path / "out"), "evaluate.model_version=7"]) == 1
        assert "There is no version '7'" in capsys.readouterr().err
    finally:
        mlflow.set_tracking_uri(before)
