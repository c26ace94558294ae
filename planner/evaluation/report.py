"""The report of a replay: one HTML file that needs nothing else, and its plots as PNG.

In: a replay, its verdict and the catalogue. Out: `report.html`, `scores.png` and `references.png` in a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pyarrow as pa
from markupsafe import Markup

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ReplayError
from planner.contracts.gate import SCORES, GateResult
from planner.evaluation.figures import (
    REFERENCE_NAMES,
    Reference,
    extreme_cases,
    infeasible_by_reason,
    overall,
    references,
    segments,
)
from planner.evaluation.plots import Bar, bars_of, intervals_png, intervals_svg
from planner.evaluation.replay import Replay
from planner.evaluation.statistics import Estimate

TEMPLATES = Path(__file__).resolve().parent


SHORT_NAMES = {REFERENCE_NAMES["previous"]: "previous plan", REFERENCE_NAMES["logged"]: "logged policy"}


@dataclass(frozen=True, slots=True)
class _Column:
    """One planner, or reference, in the table of scores."""

    name: str
    scores: Mapping[str, float]
    num_rows: int
    num_violating: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Accepted plans of the dataset's window that are no rows, by reason, of `num_plans_seen` in all."""

    num_plans_seen: int
    exclusions: Mapping[str, int]

    @property
    def num_plans(self) -> int:
        """How many were left out."""
        return sum(self.exclusions.values())


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    plots: tuple[Path, ...] = field(default_factory=tuple)


def write_report(
    folder: Path,
    replay: Replay,
    gate: GateResult,
    catalogue: Catalogue,
    *,
    lineage: Mapping[str, str] | None = None,
    left_out: LeftOut | None = None,
) -> ReportFiles:
    """Write the report, verdict first; every text from data is escaped.

    Args:
        folder: gets `report.html`, `scores.png` and, where a row has a previous or logged plan, `references.png`.
        replay: what was replayed.
        gate: its verdict.
        catalogue: the dataset's, for titles.
        lineage: what the reader may want to trace: model hashes, runs, the baseline's kind, git commit, …
        left_out: what the dataset's build left out; None where the version does not tell.

    Raises:
        ReplayError: the folder cannot be written.
    """
    rows = replay.read_rows()
    html = render_report(rows, replay, gate, catalogue, lineage=lineage or {}, left_out=left_out)
    title = f"{gate.model_name} {gate.model_version} against {gate.baseline_version}: {gate.verdict}"
    files = {"report.html": html.encode(), "scores.png": intervals_png(bars_of(overall(rows)), title=title)}
    for reference in references(rows):
        if reference.differences and reference.name.startswith("repeat"):
            bars = bars_of(reference.differences)
            files["references.png"] = intervals_png(bars, title=f"candidate minus {reference.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ReplayError(
            f"The report cannot be written to {folder}: {error.strerror or error}. Choose another folder.",
            folder=folder,
        ) from None
    return ReportFiles(folder / "report.html", tuple(folder / name for name in files if name.endswith(".png")))


def render_report(
    rows: pa.Table,
    replay: Replay,
    gate: GateResult,
    catalogue: Catalogue,
    *,
    lineage: Mapping[str, str],
    left_out: LeftOut | None,
) -> str:
    """The report as one HTML text without scripts and without links to anything outside."""
    worst, best = extreme_cases(rows, catalogue)
    differences, found = overall(rows), references(rows)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            gate=gate,
            replay=replay,
            names=SCORES,
            plot=Markup(intervals_svg(bars_of({_label(n): d for n, d in differences.items()}))),  # it escapes labels
            columns=_columns(rows, gate, found),
            overall=differences,
            references=found,
            segments=segments(rows),
            figures=_figures(rows, replay),
            infeasible=infeasible_by_reason(rows),
            wrongly_infeasible=sum(rows["wrongly_infeasible"].to_pylist()),
            worst=worst,
            best=best,
            left_out=left_out,
            lineage=lineage,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.ChainableUndefined
    )
    environment.filters |= {"label": _label, "score": _score, "change": _change}
    return environment


def _columns(rows: pa.Table, gate: GateResult, found: list[Reference]) -> list[_Column]:
    """Who is compared: the two planners, and the references that stand on some row."""
    violating = sum(1 for texts in rows["baseline_violations"].to_pylist() if texts)
    return [
        _Column("candidate", gate.scores, gate.num_rows, gate.violations),
        _Column("baseline", gate.baseline_scores, gate.num_rows, violating),
        *(_Column(SHORT_NAMES[r.name], r.scores, r.num_rows, r.num_violating) for r in found),
    ]


def _label(name: str) -> str:
    return {"constraint_respect_score": "constraints"}.get(
        name, name.removesuffix("_score").removeprefix("plan_").replace("_", " ")
    )


def _score(value: float | jinja2.Undefined) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "–"


def _change(
    estimate: Estimate | jinja2.Undefined, score: float | jinja2.Undefined, baseline: float | jinja2.Undefined
) -> Markup:
    """The difference with its interval and, where they are given, the two scores that it lies between."""
    if not isinstance(estimate, Estimate):
        return Markup("–")
    bounds = estimate.interval
    reach = "no interval" if bounds is None else f"{bounds[0]:+.4f} to {bounds[1]:+.4f}"
    kind = Bar.of("", estimate).kind
    both = [_score(value) for value in (score, baseline) if isinstance(value, float | int)]
    scores = Markup('<small class="of">{}</small>').format(" against ".join(both)) if both else ""
    return Markup('<span><b class="{}">{}</b><small>{}</small>{}</span>').format(
        kind, f"{estimate.mean:+.4f}", reach, scores
    )


def _figures(rows: pa.Table, replay: Replay) -> list[tuple[str, str]]:
    metrics = replay.metrics()
    num_infeasible = sum(1 for feasible in rows["feasible"].to_pylist() if not feasible)
    found = [
        ("actual user edits, total and per plan", _total(rows, "actual_edits")),
        ("edits from the candidate's plan to the accepted one", _total(rows, "predicted_edits")),
        ("edits from the baseline's plan to the accepted one", _total(rows, "baseline_predicted_edits")),
        ("requests with no feasible plan", f"{num_infeasible} ({num_infeasible / len(rows):.1%})"),
        ("rows planned by workers or an earlier, killed run", str(replay.num_resumed)),
    ]
    for name in ("plans_per_second", "tokens_per_plan", "model_calls_per_plan"):
        for prefix, who in (("", "candidate"), ("baseline_", "baseline")):
            if f"{prefix}{name}" in metrics:
                found.append((f"{name.replace('_', ' ')}, {who}", f"{metrics[f'{prefix}{name}']:,.2f}"))
    return found


def _total(rows: pa.Table, column: str) -> str:
    total = sum(rows[column].to_pylist())
    return f"{total:,} ({total / len(rows):.2f})"
