"""The gate: PASS, FAIL or INCONCLUSIVE, by the four rules of `spec/evaluation.md`.

In: the replayed rows and what is known of the two models. Out: a `GateResult` with a sentence for each rule that
decided. Every figure comes from the rows, and only PASS makes a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from planner.contracts.gate import SCORES, GateResult, Verdict
from planner.evaluation.statistics import Estimate, clustered, exact_mean

AT_LEAST_BASELINE = ("plan_alignment_score", "edit_distance_score")
NEAR_BASELINE = ("diversity_score", "leftovers_score")
KEPT_SHARE = 0.95
MIN_HOUSEHOLDS = 60
ROUNDING = 1e-12  # margins nearer to 0 than this are 0: more than rounding makes of a mean, less than a row does


@dataclass(frozen=True, slots=True)
class Subject:
    """What was replayed, as the registry and the dataset name it."""

    model_name: str
    model_version: str
    baseline_version: str
    dataset_version: str
    dataset_digest: str
    split: str


@dataclass(frozen=True, slots=True)
class _Finding:
    verdict: Verdict
    reason: str


def decide(
    rows: pa.Table,
    subject: Subject,
    *,
    invalid: Sequence[str] = (),
    trained_on: bool = False,
    min_households: int = MIN_HOUSEHOLDS,
) -> GateResult:
    """Decide the gate.

    Args:
        rows: at least the contract's columns of `rows.parquet`.
        subject: the names that the verdict carries.
        invalid: sentences on what is wrong with a model (incomplete, a hash that is not the registered one);
            empty when both are complete and as registered.
        trained_on: the rows were trained on; the gate cannot pass then.
        min_households: below it the gate is INCONCLUSIVE.
    """
    num_households = len(set(rows["household_id"].to_pylist()))
    num_violations = int(sum(1 for found in rows["violations"].to_pylist() if found))
    broken = list(_invalid(rows, subject, invalid))
    findings = broken or [
        *_violations(num_violations, len(rows)),
        *_means(rows),
        *_bounds(rows, min_households),
        *_households(num_households, min_households),
    ]
    if trained_on:
        reason = f"These rows of split {subject.split!r} were trained on: no pass is possible."
        findings.append(_Finding(Verdict.INCONCLUSIVE, reason))
    verdict = _worst(findings)
    decisive = [finding.reason for finding in findings if finding.verdict is not Verdict.PASS]
    return GateResult(
        verdict=verdict,
        reasons=tuple(decisive or [finding.reason for finding in findings]),
        model_name=subject.model_name,
        model_version=subject.model_version,
        baseline_version=subject.baseline_version,
        dataset_version=subject.dataset_version,
        dataset_digest=subject.dataset_digest,
        split=subject.split,
        num_rows=len(rows),
        num_households=num_households,
        violations=num_violations,
        scores={} if broken else score_means(rows),
        baseline_scores={} if broken else score_means(rows, "baseline_"),
    )


def score_means(rows: pa.Table, prefix: str = "") -> dict[str, float]:
    """Mean of each score over the rows that have it; a score without a row is left out."""
    found = {name: [v for v in rows[f"{prefix}{name}"].to_pylist() if v is not None] for name in SCORES}
    return {name: exact_mean(values) for name, values in found.items() if values}


def differences(rows: pa.Table, *, prefix: str = "baseline_", kept_share: float = 1.0) -> dict[str, Estimate]:
    """Candidate minus `kept_share` times the other, score by score, clustered by household.

    Rows in which the other has no score are left out; a score without rows is left out.
    """
    found = {}
    for name in SCORES:
        mask = pc.and_(pc.is_valid(rows[name]), pc.is_valid(rows[f"{prefix}{name}"]))
        kept = rows.select([name, f"{prefix}{name}", "household_id"]).filter(mask)
        if len(kept):
            values = kept[name].to_numpy() - kept_share * kept[f"{prefix}{name}"].to_numpy()
            found[name] = clustered(values, kept["household_id"].to_pylist())
    return found


def _invalid(rows: pa.Table, subject: Subject, invalid: Sequence[str]) -> Iterator[_Finding]:
    reasons = list(invalid)
    if subject.model_version == subject.baseline_version:
        reasons.append(f"Version {subject.model_version} was compared with itself.")
    if not len(rows):
        reasons.append("No request was replayed.")
    if len(set(rows["event_id"].to_pylist())) != len(rows) or rows["event_id"].null_count:
        reasons.append("The replayed request ids are not unique.")
    for name in (f"{prefix}{score}" for prefix in ("", "baseline_") for score in SCORES):
        values = rows[name].to_pylist() if name in rows.column_names else [None] * len(rows)
        num_bad = sum(1 for v in values if v is None or not 0 <= v <= 1)  # NaN is in no range
        if num_bad:
            reasons.append(f"{name} is missing or no number in [0, 1] in {num_bad} of {len(rows)} rows.")
    yield from (_Finding(Verdict.FAIL, f"The replay is not valid: {reason}") for reason in reasons)


def _violations(num: int, num_rows: int) -> Iterator[_Finding]:
    if num:
        yield _Finding(Verdict.FAIL, f"{num} of {num_rows} plans violate a constraint; none may.")
    else:
        bound = min(1.0, 3 / num_rows)
        yield _Finding(
            Verdict.PASS,
            f"0 of {num_rows} plans violate a constraint, which supports a true share of at most {bound:.2%} (3 / n).",
        )


def _means(rows: pa.Table) -> Iterator[_Finding]:
    mine, other = score_means(rows), score_means(rows, "baseline_")
    for name in AT_LEAST_BASELINE:
        margin = _settled(mine[name] - other[name])
        holds = margin >= 0
        yield _Finding(
            Verdict.PASS if holds else Verdict.FAIL,
            f"{name} is {mine[name]:.4f}, {'not below' if holds else 'below'} the baseline's {other[name]:.4f} "
            f"({margin:+.4f}).",
        )


def _bounds(rows: pa.Table, min_households: int) -> Iterator[_Finding]:
    mine, other = score_means(rows), score_means(rows, "baseline_")
    margins = differences(rows.select(_columns()), kept_share=KEPT_SHARE)
    for name in NEAR_BASELINE:
        figures = f"{name} is {mine[name]:.4f}, the baseline's {other[name]:.4f}"
        margin = replace(margins[name], mean=_settled(margins[name].mean))
        bound = None if margin.lower_bound is None else _settled(margin.lower_bound)
        if margin.mean < 0:
            yield _Finding(Verdict.FAIL, f"{figures}: below {KEPT_SHARE:.0%} of it ({KEPT_SHARE * other[name]:.4f}).")
        elif bound is not None and bound > 0:
            yield _Finding(
                Verdict.PASS,
                f"{figures}: the lower bound of candidate - {KEPT_SHARE} x baseline is {bound:+.4f}, above 0.",
            )
        else:
            yield _Finding(
                Verdict.INCONCLUSIVE,
                f"{figures}: the mean holds, but the lower bound of candidate - {KEPT_SHARE} x baseline "
                f"{'needs two households' if bound is None else f'is {bound:+.4f}, not above 0'}. "
                f"{_needed(margin, min_households)}",
            )


def _settled(margin: float) -> float:
    """The margin, or 0 where only rounding keeps it from 0."""
    return 0.0 if abs(margin) < ROUNDING else margin


def _needed(margin: Estimate, min_households: int) -> str:
    needed = margin.households_needed()
    if needed is None and margin.standard_error is not None:
        return "The candidate stands exactly at the limit: no number of households would decide it."
    needed = max(needed or 0, min_households, margin.num_households + 1)
    return f"About {needed} households are needed (80 % power at this spread); {margin.num_households} were replayed."


def _households(num: int, least: int) -> Iterator[_Finding]:
    if num < least:
        yield _Finding(
            Verdict.INCONCLUSIVE,
            f"{num} households were replayed; at least {least} are needed. Raise evaluate.sample_size or build a "
            "dataset with more households.",
        )


def _columns() -> list[str]:
    return ["household_id", *(f"{prefix}{name}" for prefix in ("", "baseline_") for name in SCORES)]


def _worst(findings: Sequence[_Finding]) -> Verdict:
    verdicts = {finding.verdict for finding in findings}
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        if verdict in verdicts:
            return verdict
    return Verdict.PASS


def gate_metrics(gate: GateResult) -> Mapping[str, float]:
    """The verdict's figures by the names they get as metrics."""
    baseline = {f"baseline_{name}": value for name, value in gate.baseline_scores.items()}
    counts = {"num_households": gate.num_households, "num_violations": gate.violations}
    return {**gate.scores, **baseline, **counts}
