"""The whole recipe: each step as a nested MLflow project run, and the next step fed with what it made.

In: a profile and the parameters of the entry point `main`. Out: one parent run with a child run per step, the last
table, and the exit code. A step whose fingerprint is unchanged and whose result is still whole is reused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import ExecutionException
from mlflow.tracking import MlflowClient

from planner.contracts.errors import ConfigError, PlannerError
from planner.contracts.gate import Verdict
from planner.recipe.config import PROJECT, STEPS, ResolvedConfig, load_config
from planner.recipe.console import Console, StepResult, print_results
from planner.recipe.environment import database_url, forcing, use_tracking_store
from planner.recipe.registry import find_alias
from planner.recipe.runner import step_module
from planner.recipe.tracking import (
    ERROR_TAG,
    StepRun,
    Terminated,
    committed_outputs,
    end_children,
    find_committed,
    step_run,
)


class StepFailedError(PlannerError):
    """A step of the recipe failed; carries the step and its message."""


def run_recipe(
    profile: str, *, start_date: str = "", end_date: str = "", force: str = "", until: str = ""
) -> list[StepResult]:
    """Run the steps in order, print the last table and return its lines.

    Args:
        profile: name of the profile.
        start_date: first day of the window, `YYYY-MM-DD`; empty means as in the recipe.
        end_date: the day behind the window; empty means as in the recipe.
        force: a step to run although nothing changed, several with commas, or `all`.
        until: the last step to run.
    Raises:
        ConfigError: a parameter is wrong.
        StepFailedError: a step failed, with its message.
    """
    window = {"build_dataset.start_date": start_date, "build_dataset.end_date": end_date}
    config = load_config(profile, window)
    last, forced = _last_step(until), _forced_steps(force)
    use_tracking_store(config)
    console, results = Console(), list[StepResult]()
    with step_run(config, "main") as parent, database_url(config, progress=console.progress):
        overrides: dict[str, Any] = {key: value for key, value in window.items() if value}
        outputs: Mapping[str, Any] = {}
        for step in STEPS[: STEPS.index(last) + 1]:
            overrides.update(_handed_on(outputs))
            if step == "evaluate" and (in_use := _in_production(profile, overrides)):
                results.append(
                    StepResult(step, None, None, 0.0, in_use, "in production already: nothing new to compare")
                )
                break
            started = time.monotonic()
            try:
                outputs = _one_step(profile, step, overrides, step in forced, console, results)
            except PlannerError:
                console.close()
                results.append(StepResult(step, None, None, time.monotonic() - started, "", "FAILED"))
                print_results(results, lines=["What is done stays done: the same command goes on behind it."])
                raise
            parent.outputs[step] = dict(outputs)
            if step == "evaluate" and outputs["verdict"] != Verdict.PASS:
                break
        console.close()
        parent.log_metrics({f"{r.step}.seconds": r.seconds for r in results})
    _report(parent, results)
    return results


def _one_step(
    profile: str, step: str, overrides: Mapping[str, Any], forced: bool, console: Console, results: list[StepResult]
) -> Mapping[str, Any]:
    started = time.monotonic()
    mine = {key: value for key, value in overrides.items() if key.startswith(f"{step}.")}
    config, module = load_config(profile, mine), step_module(step)
    fingerprint = module.fingerprint(config)
    found = None if forced else find_committed(step, fingerprint)
    if found is not None and module.is_whole(config, found[1]):
        _note_reuse(config, step, fingerprint, *found)
        outputs, note = found[1], "reused"
    else:
        console.close()
        with forcing(step if forced else None):
            outputs, note = _run_child(profile, step, mine), ""
    result = module.result_of(outputs, seconds=time.monotonic() - started)
    note = ", ".join(text for text in (note, result.note) if text)
    results.append(StepResult(step, result.rows_in, result.rows_out, result.seconds, result.artefact, note))
    return outputs


def _run_child(profile: str, step: str, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = {"profile": profile} | {key.partition(".")[2]: str(value) for key, value in overrides.items()}
    before = {run.info.run_id for run in _children(step)}
    try:
        # The environment is the parent's own: `mlflow run` has made it already.
        mlflow.projects.run(  # type: ignore[no-untyped-call]
            uri=str(PROJECT), entry_point=step, parameters=parameters, env_manager="local", run_name=step
        )
    except ExecutionException:
        failed = [run for run in _children(step) if run.info.run_id not in before]
        message = failed[0].data.tags.get(ERROR_TAG) if failed else None
        raise StepFailedError(f"Step {step} failed: {message or 'see its output above.'}", step=step) from None
    except (Terminated, KeyboardInterrupt):
        # Now, while the embedded server still runs, and with their runs: a step that is starting cannot end its own.
        end_children()
        for run in _children(step):
            if run.info.run_id not in before and run.info.status == "RUNNING":
                MlflowClient().set_terminated(run.info.run_id, "KILLED")
        raise
    done = [run for run in _children(step) if run.info.run_id not in before]
    outputs = committed_outputs(done[0]) if done else None
    if outputs is None:
        raise StepFailedError(f"Step {step} ended without its commit marker. Run the same command again.", step=step)
    return outputs


def _children(step: str) -> list[Any]:
    parent = mlflow.active_run()
    assert parent is not None
    return list(
        mlflow.search_runs(
            experiment_ids=[parent.info.experiment_id],
            filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' "
            f"and tags.`mlflow.project.entryPoint` = '{step}'",
            order_by=["attributes.start_time DESC"],
            output_format="list",
        )
    )


def _note_reuse(config: ResolvedConfig, step: str, fingerprint: str, run_id: str, outputs: Mapping[str, Any]) -> None:
    """Leave a child run that says which earlier run's result stands in for the step."""
    with mlflow.start_run(nested=True, run_name=f"{step} (reused)") as child:
        run = StepRun(child.info.run_id, step)
        run.set_tags({"step": step, "profile": config.profile, "fingerprint": fingerprint, "reused_from": run_id})
        run.set_tags(step_module(step).tags_of(outputs))


def _in_production(profile: str, overrides: Mapping[str, Any]) -> str | None:
    """The version that would be evaluated, where it is the baseline as well because it is in production."""
    mine = {key: value for key, value in overrides.items() if key.startswith("evaluate.")}
    step = load_config(profile, mine).recipe.evaluate
    if step.baseline_version is not None or step.model_version is None:
        return None
    number = find_alias(step.model_name, "production")
    return f"{step.model_name} version {number}" if number == str(step.model_version) else None


def _handed_on(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a step's outputs mean to the steps behind it."""
    handed: dict[str, Any] = {}
    if "dataset" in outputs:
        handed |= {"train.dataset": outputs["dataset"], "evaluate.dataset": outputs["dataset"]}
    if "model_version" in outputs:
        for step in ("evaluate", "promote"):
            handed[f"{step}.model_name"] = outputs["model_name"]
            handed[f"{step}.model_version"] = outputs["model_version"]
    return handed


def _report(parent: StepRun, results: list[StepResult]) -> None:
    evaluated = parent.outputs.get("evaluate")
    lines = list(evaluated["lines"]) if evaluated else []
    done = {result.step for result in results}
    last = next(reversed(parent.outputs))
    following = step_module(last).next_command(parent.outputs[last])
    if done == set(STEPS) or last != results[-1].step:
        following = "mlflow ui   (the run, its plots and the replay report)"
    print_results(results, lines=lines, next_command=following)


def _last_step(until: str) -> str:
    if until and until not in STEPS:
        raise ConfigError(f"until is {until!r}, no step of the recipe. Use one of {', '.join(STEPS)}.", until=until)
    return until or STEPS[-1]


def _forced_steps(force: str) -> frozenset[str]:
    if force.lower() in {"all", "true", "yes", "1"}:
        return frozenset(STEPS)
    asked = frozenset(name for name in force.replace(",", " ").split() if name.lower() not in {"false", "no", "0"})
    if asked - set(STEPS):
        raise ConfigError(
            f"force names {', '.join(sorted(asked - set(STEPS)))}, no step of the recipe. "
            f"Use all, or some of {', '.join(STEPS)}.",
            force=force,
        )
    # A step that runs anew hands something new to those behind it; they notice by their own fingerprints.
    return asked
