"""Register a deliberately poor ranking as the model in production, so that a tiny random model passes the gate.

Arguments: dataset folder, `rows.parquet` of a replay of the candidate. Prints the version. Two dishes that nobody in
these rows accepted are proposed to everybody: the pair that loses most clearly on diversity and leftovers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from itertools import combinations
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
from mlflow.tracking import MlflowClient

from planner.contracts.catalogue import Catalogue
from planner.contracts.example import Example
from planner.contracts.plan import Meal, Plan
from planner.dataset.read import iter_examples, read_catalogue
from planner.dataset.versions import open_version
from planner.decoding.package import Lineage, write_package
from planner.decoding.popular import PopularPlanner
from planner.evaluation.scores import score_plan
from planner.recipe.registry import register_package

SCORES = ("diversity_score", "leftovers_score")
DAYS = ("monday", "tuesday")


def main() -> None:
    dataset, rows_path = sys.argv[1:3]
    version = open_version(dataset)
    catalogue = read_catalogue(version)
    rows = {row["event_id"]: row for row in pq.read_table(rows_path, columns=["event_id", *SCORES]).to_pylist()}
    examples = [example for example in iter_examples(version, split="test") if example.event_id in rows]
    candidate = {name: [rows[example.event_id][name] for example in examples] for name in SCORES}
    accepted = {id for example in examples for id in example.accepted_plan.recipe_ids}
    unknown = [recipe.id for recipe in catalogue.recipes if recipe.id not in accepted]
    pairs = sorted(combinations(unknown, 2), key=lambda pair: _alone(pair, examples, candidate, catalogue))[-30:]
    planners = [PopularPlanner([(id, 1) for id in pair], DAYS, catalogue) for pair in pairs]
    best = max(planners, key=lambda planner: _planned(planner, examples, candidate, catalogue))
    lineage = Lineage(version.name, version.digest, ("train",), {"kind": "popular"})
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_name="poor baseline"):
        write_package(Path(folder) / "planner", best, catalogue, lineage)
        registered = register_package(
            Path(folder) / "planner",
            catalogue,
            model_name="planner_model",
            key="poor",
            tags={"kind": "popular"},
            description="Poor on purpose.",
        )
    MlflowClient().set_registered_model_alias("planner_model", "production", registered.version)
    print(registered.version)


def _alone(
    pair: tuple[str, str], examples: list[Example], candidate: dict[str, list[float]], catalogue: Catalogue
) -> float:
    """The margin if the pair were proposed to all, whatever their constraints: cheap, for a shortlist."""
    plan = Plan(tuple(Meal(day, id, 2) for day, id in zip(DAYS, pair, strict=True)))
    return _margin([plan] * len(examples[:6]), examples[:6], candidate, catalogue)


def _planned(
    planner: PopularPlanner, examples: list[Example], candidate: dict[str, list[float]], catalogue: Catalogue
) -> float:
    plans = [result.plan for result in planner.plan([example.request for example in examples])]
    return _margin(plans, examples, candidate, catalogue)


def _margin(
    plans: list[Plan], examples: list[Example], candidate: dict[str, list[float]], catalogue: Catalogue
) -> float:
    """The worse of both scores' margins (candidate - 0.95 x baseline), in standard errors."""
    margins = []
    scored = [
        score_plan(plan, example.accepted_plan, example.request.pantry, catalogue)
        for plan, example in zip(plans, examples, strict=True)
    ]
    for name in SCORES:
        mine = candidate[name][: len(plans)]
        gaps = [c - 0.95 * getattr(score, name) for c, score in zip(mine, scored, strict=True)]
        margins.append(statistics.mean(gaps) / (statistics.stdev(gaps) / len(gaps) ** 0.5 + 1e-9))
    return min(margins)


if __name__ == "__main__":
    main()
