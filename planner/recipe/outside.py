"""The door for planners that are not ours: `python -m planner export`, `requests` and `verify`.

In: a registered version, a dataset version. Out: weights and handles for another engine, what it is asked, and the
independent verifier's word on what it answers.
"""

from __future__ import annotations

from pathlib import Path

from planner.contracts.gate import SCORES
from planner.dataset.read import iter_examples, read_catalogue
from planner.evaluation.outside import OutsideReport, verify_outside, write_requests
from planner.recipe.config import ResolvedConfig
from planner.recipe.environment import use_tracking_store
from planner.recipe.lineage import dataset_of
from planner.recipe.registry import local_package, newest_trained, read_back

SHOWN = 10


def export(config: ResolvedConfig, folder: Path) -> list[str]:
    """Write `train.model_name`'s version `evaluate.model_version`, else the newest trained one, for other engines.

    Raises:
        ModelError: there is no such version, or it is damaged or has no weights.
    """
    from planner.decoding.export import export_package  # loads torch

    use_tracking_store(config)
    step = config.recipe.evaluate
    number = step.model_version or newest_trained(step.model_name).version
    version = read_back(step.model_name, number)
    report = export_package(local_package(step.model_name, version.version), folder)
    return [
        f"{version.name} version {version.version} ({version.package_sha256[:12]}…) is in {report.folder}: "
        f"{report.num_files} files, {report.num_bytes / 1e6:,.1f} MB, handles of {report.num_recipes:,} dishes."
    ]


def requests(config: ResolvedConfig, file: Path) -> list[str]:
    """Write what an outside planner is asked: the rows of the configured dataset and split."""
    step = config.recipe.evaluate
    version = dataset_of(config, step.dataset)
    num_rows = write_requests(iter_examples(version, split=step.split), read_catalogue(version), file)
    return [f"{num_rows:,} requests of split {step.split}, dataset {version.name} ({version.digest}), are in {file}."]


def verify(config: ResolvedConfig, file: Path) -> tuple[OutsideReport, list[str]]:
    """Verify what an outside planner answered to the requests of the configured dataset and split."""
    step = config.recipe.evaluate
    version = dataset_of(config, step.dataset)
    report = verify_outside(file, iter_examples(version, split=step.split), read_catalogue(version))
    return report, describe(report)


def describe(report: OutsideReport) -> list[str]:
    """The verdict in lines: what is wrong first, then the scores."""
    lines = [f"{report.num_rows:,} answers, {report.num_infeasible:,} of them that no plan exists."]
    for title, found in (
        ("violate a constraint or are no plan", [f"{id}: {texts[0]}" for id, texts in report.violations.items()]),
        ("requests were not answered", list(report.unanswered)),
        ("say that no plan exists where one does", list(report.wrongly_infeasible)),
    ):
        lines.append(f"{len(found):,} {title}{':' if found else '.'}")
        lines += [f"  {text}" for text in found[:SHOWN]]
        lines += [f"  … and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
    if not report.violations and report.num_rows:
        lines.append(f"0 of {report.num_rows:,} supports a true share of at most {min(1, 3 / report.num_rows):.2%}.")
    width = max(map(len, SCORES))
    return lines + [f"{name:<{width}}  {report.scores[name]:.4f}" for name in SCORES if name in report.scores]
