"""Workers of a replay open real packages and a real dataset version for themselves; the rows are the same bytes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from planner.contracts.errors import ReplayError
from planner.contracts.example import DatasetVersion
from planner.dataset.build import build_dataset
from planner.dataset.read import iter_examples, read_catalogue
from planner.dataset.versions import open_version
from planner.decoding.base import load_base, resolve_base
from planner.decoding.package import Lineage, LoraParts, write_package
from planner.decoding.popular import fit_popular
from planner.evaluation.config import EvaluateConfig
from planner.evaluation.replay import Lineage as ReplayLineage
from planner.evaluation.replay import Replay, replay
from planner.evaluation.shards import Job
from planner.recipe.console import Console
from planner.recipe.workers import open_contest, plan_ahead
from tests.dataset import small
from tests.tiny import tiny_base_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]
STEP = EvaluateConfig(split="train", batch_size=4, workers=2)


@pytest.fixture
def version(database_url: str, tmp_path: Path) -> DatasetVersion:
    small.fill(database_url)
    build_dataset(database_url, small.config(tmp_path))
    return open_version(str(tmp_path / "planner" / "v1"))


@pytest.fixture
def opening(version: DatasetVersion, tmp_path: Path) -> partial:
    from peft import LoraConfig, get_peft_model

    catalogue, lineage = read_catalogue(version), Lineage("v", version.digest, ("train",))
    files = resolve_base(str(tiny_base_folder(tmp_path / "base")))
    base = load_base(files, device="cpu")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base.model, config).save_pretrained(tmp_path / "adapter")
    write_package(tmp_path / "lora", LoraParts(files, base.tokenizer, tmp_path / "adapter"), catalogue, lineage)
    popular = fit_popular(iter_examples(version, split="train"), catalogue)
    write_package(tmp_path / "popular", popular, catalogue, lineage)
    return partial(open_contest, tmp_path / "lora", tmp_path / "popular", version, STEP)


def replayed(opening: partial, folder: Path, *, resume: bool) -> Replay:
    opened = opening()
    return replay(
        opened.candidate, opened.baseline, opened.examples, catalogue=opened.catalogue, folder=folder, split="train",
        identity={"of": "both"}, lineage=ReplayLineage("d", "test"), batch_size=4, resume=resume,
    )  # fmt: skip


@pytest.mark.parametrize("workers_on", ["processes", "ranks"])
def test_two_workers_with_models_of_their_own_join_to_the_same_bytes(
    opening: partial, tmp_path: Path, workers_on: str
) -> None:
    whole = replayed(opening, tmp_path / "one", resume=False)
    job = Job(opening, tmp_path / "two", "train", {"of": "both"}, 4, False)
    ahead = plan_ahead(job, STEP.model_copy(update={"workers_on": workers_on}), Console())
    spread = replayed(opening, tmp_path / "two", resume=ahead)
    assert ahead and spread.num_resumed == spread.num_rows == whole.num_rows > 20
    assert spread.rows_path.read_bytes() == whole.rows_path.read_bytes()
    assert not plan_ahead(job, STEP.model_copy(update={"workers": 1}), Console())


def test_spark_that_is_not_installed_is_a_clear_error(
    opening: partial,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    job = Job(opening, tmp_path / "two", "train", {"of": "both"}, 4, False)
    with pytest.raises(ReplayError, match="pyspark is not installed"):
        plan_ahead(job, STEP.model_copy(update={"workers_on": "spark"}), Console())
