"""Step `evaluate`: replay held-out requests with a candidate and a baseline, decide the gate, record the result.

In: a model version, a dataset version, a baseline. Out: rows, report and verdict in the run; a row in
`exp.offline_replay_results`; the scores on the version's model card; on PASS the tag and alias `candidate`. A closed
gate is a result, not a failure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from planner.contracts.errors import DatabaseError, ModelError, ReplayError
from planner.contracts.example import DatasetVersion
from planner.contracts.gate import SCORES, GateResult, Verdict
from planner.dataset.database import connect
from planner.dataset.read import iter_examples, read_catalogue
from planner.decoding.files import Lineage, read_lineage
from planner.decoding.popular import fit_popular
from planner.evaluation.config import EvaluateConfig
from planner.evaluation.figures import difference_metrics
from planner.evaluation.gate import Subject, decide, gate_metrics
from planner.evaluation.replay import Lineage as ReplayLineage
from planner.evaluation.replay import Replay, check_lineage, replay
from planner.evaluation.report import LeftOut, write_report
from planner.evaluation.shards import Job
from planner.promotion.candidate import mark_candidate
from planner.promotion.results import fail_replay, latest_attempt, latest_evidence, record_replay, start_replay
from planner.recipe.config import ResolvedConfig
from planner.recipe.console import Console, StepResult
from planner.recipe.environment import current_database_url, git_state
from planner.recipe.fingerprint import step_fingerprint
from planner.recipe.lineage import dataset_of, dataset_tags, log_dataset_input
from planner.recipe.registry import (
    RegisteredVersion,
    find_alias,
    get_version,
    local_package,
    newest_trained,
    read_back,
    register_package,
    show_scores,
)
from planner.recipe.tracking import StepRun, message_of
from planner.recipe.workers import open_contest, plan_ahead

NEEDS_DATABASE = True
BUILT_IN = "built-in"


@dataclass(frozen=True)
class _Contest:
    """Who is replayed against whom on what."""

    candidate: RegisteredVersion
    baseline: RegisteredVersion
    version: DatasetVersion


def fingerprint(config: ResolvedConfig) -> str:
    """Changes with the step's code, its config, the bytes of both models and of the dataset."""
    step = config.recipe.evaluate
    baseline = _named_baseline(step)
    inputs = {
        "dataset_digest": dataset_of(config, step.dataset).digest,
        "candidate": _candidate(step).package_sha256,
        "baseline": read_back(step.model_name, baseline).package_sha256 if baseline else BUILT_IN,
    }
    never = {"dataset", "model_version", "baseline_version", "resume", "workers", "workers_on"}
    values = step.model_dump(mode="json", exclude=never)
    return step_fingerprint("evaluate", values, inputs)


def run(config: ResolvedConfig, run: StepRun, console: Console) -> None:
    """Replay, decide, report, record."""
    step = config.recipe.evaluate
    contest = _contest(config, step)
    log_dataset_input(contest.version, context="replay")
    run.set_tags(_tags(step, contest))
    promote = config.recipe.promote
    names: dict[str, Any] = {
        "run_id": run.run_id,
        "policy": promote.policy,
        "config_defaults": promote.config_defaults,
        "model_name": contest.candidate.name,
        "model_version": contest.candidate.version,
        "dataset_version": contest.version.name,
    }
    _close_dead_attempt(names)
    with closing(connect(current_database_url())) as connection:
        start_replay(connection, **names)
    try:
        replayed, gate = _replay(config, run, console, contest)
        with closing(connect(current_database_url())) as connection:
            record_replay(
                connection, gate, run_id=run.run_id, policy=promote.policy, config_defaults=promote.config_defaults
            )
    except BaseException as error:
        _note_failure(names, message_of(error) or type(error).__name__, console)
        raise
    show_scores(gate, run.run_id)
    if gate.verdict is Verdict.PASS:
        mark_candidate(MlflowClient(), gate.model_name, gate.model_version)
    run.set_tags({"verdict": gate.verdict, "trained_on": str(replayed.trained_on).lower()})
    run.outputs.update(_outputs(contest, replayed, gate), run_id=run.run_id)


def is_whole(config: ResolvedConfig, outputs: Mapping[str, Any]) -> bool:
    """Whether both versions are still there with the same hashes, and the replay is the newest evidence in Postgres."""
    try:
        same = all(
            read_back(outputs["model_name"], outputs[f"{who}_version"]).package_sha256 == outputs[f"{who}_sha256"]
            for who in ("model", "baseline")
        )
    except ModelError:
        return False
    with closing(connect(current_database_url())) as connection:
        evidence = latest_evidence(connection, outputs["model_name"], outputs["model_version"])
    return same and evidence is not None and evidence.run_id == outputs.get("run_id")


def tags_of(outputs: Mapping[str, Any]) -> Mapping[str, object]:
    """Data, models and verdict."""
    names = ("model_name", "model_version", "baseline_version", "verdict")
    return {**dataset_tags(outputs), **{name: outputs.get(name) for name in names}}


def result_of(outputs: Mapping[str, Any], *, seconds: float) -> StepResult:
    """Rows replayed, and the verdict."""
    return StepResult(
        "evaluate", outputs["rows_in"], outputs["rows_out"], seconds, "replay/report.html", outputs["verdict"]
    )


def next_command(outputs: Mapping[str, Any]) -> str | None:
    """Promote it, or look at why not."""
    if outputs["verdict"] == Verdict.PASS:
        return (
            f"mlflow run . -e promote -P model_name={outputs['model_name']} -P model_version={outputs['model_version']}"
        )
    return "mlflow ui   (open replay/report.html in the run of this step)"


def _note_failure(names: Mapping[str, Any], message: str, console: Console) -> None:
    """Leave the replay's row as failed; a database that fails as well must not take the place of the first error."""
    try:
        with closing(connect(current_database_url())) as connection:
            fail_replay(connection, **names, message=message)
    except DatabaseError as error:
        console.say(f"The replay's row stays running until the next replay: {error}")


def _close_dead_attempt(names: Mapping[str, Any]) -> None:
    """A replay that was killed left its row `running`; its MLflow run has ended since."""
    with closing(connect(current_database_url())) as connection:
        attempt = latest_attempt(connection, names["model_name"], names["model_version"])
        if attempt is None or attempt.status != "running" or attempt.run_id is None:
            return
        try:
            if MlflowClient().get_run(attempt.run_id).info.status == "RUNNING":
                return
        except MlflowException:
            return  # of another store
        dead = {**names, "run_id": attempt.run_id}
        fail_replay(connection, **dead, message="Its process died without a word; a later replay took over.")


def _contest(config: ResolvedConfig, step: EvaluateConfig) -> _Contest:
    version, candidate = dataset_of(config, step.dataset), _candidate(step)
    number = _named_baseline(step)
    baseline = read_back(step.model_name, number) if number else _built_in_baseline(step.model_name, version)
    if baseline.version == candidate.version:
        raise ReplayError(
            f"Version {candidate.version} of {step.model_name} is both candidate and baseline. Give another "
            "baseline_version.",
            version=candidate.version,
        )
    return _Contest(candidate, baseline, version)


def _candidate(step: EvaluateConfig) -> RegisteredVersion:
    number = step.model_version or newest_trained(step.model_name).version
    return read_back(step.model_name, number)


def _named_baseline(step: EvaluateConfig) -> str | None:
    """The version given, else the one in production; None means the built-in planner."""
    if step.baseline_version is not None:
        return str(get_version(step.model_name, step.baseline_version).version)
    return find_alias(step.model_name, "production")


def _built_in_baseline(model_name: str, version: DatasetVersion) -> RegisteredVersion:
    """The planner of the most often accepted recipes of the training split, registered like any version."""
    from planner.decoding.package import write_package

    catalogue = read_catalogue(version)
    planner = fit_popular(iter_examples(version, split="train"), catalogue)
    lineage = Lineage(version.name, version.digest, ("train",), {"kind": "popular"})
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "planner"
        sha256 = write_package(package, planner, catalogue, lineage)
        return register_package(
            package,
            catalogue,
            model_name=model_name,
            key=f"popular {sha256}",
            tags={"kind": "popular", "dataset_version": version.name, "dataset_digest": version.digest},
            description="Built-in baseline: the most often accepted allowed recipes of the training split.",
        )


def _replay(config: ResolvedConfig, run: StepRun, console: Console, contest: _Contest) -> tuple[Replay, GateResult]:
    step, version = config.recipe.evaluate, contest.version
    console.progress(0, None, "load the models")
    packages = {who: local_package(step.model_name, v.version) for who, v in _both(contest).items()}
    lineages = {who: _lineage(path, step.split) for who, path in packages.items()}
    # Before workers spend hours on rows that are refused.
    check_lineage(lineages["candidate"], lineages["baseline"], step.split, step.asks_for_training_rows)
    opening = partial(open_contest, packages["candidate"], packages["baseline"], version, step)
    folder = config.folder / "replay" / (run.fingerprint or run.run_id)
    identity = {
        "candidate": contest.candidate.package_sha256,
        "baseline": contest.baseline.package_sha256,
        "dataset": version.digest,
    }
    limit = step.max_catalogue_difference
    ahead = plan_ahead(Job(opening, folder, step.split, identity, step.batch_size, step.resume, limit), step, console)
    opened = opening()
    catalogue = opened.catalogue
    replayed = replay(
        opened.candidate,
        opened.baseline,
        opened.examples,
        catalogue=catalogue,
        folder=folder,
        split=step.split,
        identity=identity,
        lineage=lineages["candidate"],
        baseline_lineage=lineages["baseline"],
        allow_trained_rows=step.asks_for_training_rows,
        max_catalogue_difference=limit,
        batch_size=step.batch_size,
        resume=step.resume or ahead,
        total=step.sample_size,
        progress=console.progress,
    )
    names = (step.model_name, contest.candidate.version, contest.baseline.version, version.name, version.digest)
    rows = replayed.read_rows()
    gate = decide(rows, Subject(*names, step.split), trained_on=replayed.trained_on, min_households=step.min_households)
    report = write_report(folder, replayed, gate, catalogue, lineage=_traces(run, contest), left_out=_left_out(version))
    run.log_metrics({**replayed.metrics(), **gate_metrics(gate), **difference_metrics(rows)})
    for path in (replayed.rows_path, report.html, *report.plots):
        mlflow.log_artifact(str(path), "replay")
    return replayed, gate


def _lineage(package: Path, split: str) -> ReplayLineage:
    """On what a model was trained, as far as the replayed split goes; one that names no split is known to nobody."""
    known = read_lineage(package)
    if not known.trained_splits:
        return ReplayLineage(known.dataset_digest, None)
    return ReplayLineage(known.dataset_digest, split if split in known.trained_splits else known.trained_splits[0])


def _both(contest: _Contest) -> dict[str, RegisteredVersion]:
    return {"candidate": contest.candidate, "baseline": contest.baseline}


def _traces(run: StepRun, contest: _Contest) -> dict[str, str]:
    """What the report's reader may want to trace: run, commit, data, and both versions by the hash of their files."""
    git = git_state()
    found = {
        "run": run.run_id,
        "commit": f"{git.commit}{' with changes' if git.dirty else ''}",
        "dataset": contest.version.uri,
        "digest": contest.version.digest,
    }
    for who, version in _both(contest).items():
        kind = " ".join(text for text in (version.tags.get("kind"), version.tags.get("model_base")) if text)
        found[who] = f"version {version.version} ({kind or 'kind unknown'}), files {version.package_sha256}"
    return found


def _left_out(version: DatasetVersion) -> LeftOut | None:
    """What the build left out; a manifest from before it held the counts does not tell."""
    if "exclusions" not in version.manifest:
        return None
    return LeftOut(version.manifest["num_plans_seen"], version.manifest["exclusions"])


def _tags(step: EvaluateConfig, contest: _Contest) -> dict[str, object]:
    return {
        "evaluation_type": "offline_replay",
        "model_name": contest.candidate.name,
        "model_version": contest.candidate.version,
        "baseline_version": contest.baseline.version,
        "dataset_version": contest.version.name,
        "dataset_digest": contest.version.digest,
        "split": step.split,
    }


def _outputs(contest: _Contest, replayed: Replay, gate: GateResult) -> dict[str, Any]:
    return {
        "dataset": contest.version.uri,
        "dataset_version": contest.version.name,
        "dataset_digest": contest.version.digest,
        "model_name": gate.model_name,
        "model_version": gate.model_version,
        "model_sha256": contest.candidate.package_sha256,
        "baseline_version": gate.baseline_version,
        "baseline_sha256": contest.baseline.package_sha256,
        "verdict": str(gate.verdict),
        "trained_on": replayed.trained_on,
        "rows_in": replayed.num_rows,
        "rows_out": replayed.num_rows,
        "lines": _lines(gate),
    }


def _lines(gate: GateResult) -> list[str]:
    width = max(len(name) for name in SCORES)
    lines = ["", f"{'score':<{width}}  candidate  baseline"]
    lines += [
        f"{n:<{width}}  {gate.scores[n]:9.4f}  {gate.baseline_scores[n]:8.4f}" for n in SCORES if n in gate.scores
    ]
    lines += ["", f"Gate: {gate.verdict} for {gate.model_name} version {gate.model_version}"]
    return lines + [f"  - {reason}" for reason in gate.reasons]
