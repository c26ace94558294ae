"""The interval, and the gate's two error rates over simulated replays."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from planner.contracts.gate import SCORES, Verdict
from planner.evaluation.gate import Subject, decide
from planner.evaluation.statistics import clustered, exact_mean

SUBJECT = Subject("planner_model", "2", "1", "2024-01-01", "d" * 32, "test")


def simulated(
    rng: np.random.Generator, households: int, *, diversity: float, leftovers: float, spread: float = 0.05
) -> pa.Table:
    """Rows of 1 to 6 a household; candidate and baseline share a household effect and a row effect, each has noise.

    The default spread gives a household's difference a coefficient of variation of 0.16; a wider one needs more
    households (`docs/evaluation.md`).

    `diversity` and `leftovers` are the true share of the baseline's mean that the candidate keeps.
    """
    counts = rng.integers(1, 7, households)
    who = np.repeat(np.arange(households), counts)
    columns: dict[str, object] = {
        "household_id": [f"h{i}" for i in who],
        "event_id": [f"e{i}" for i in range(len(who))],
    }
    columns["violations"] = [[]] * len(who)
    for name in SCORES:
        columns[name] = columns[f"baseline_{name}"] = np.full(len(who), 0.5)
    for name, kept in (("diversity_score", diversity), ("leftovers_score", leftovers)):
        shared = rng.normal(0, 0.07, households)[who] + rng.normal(0, 0.05, len(who))
        own = [rng.normal(0, spread, households)[who] + rng.normal(0, 0.05, len(who)) for _ in range(2)]
        columns[name] = np.clip(kept * (0.5 + shared) + own[0], 0, 1)
        columns[f"baseline_{name}"] = np.clip(0.5 + shared + own[1], 0, 1)
    return pa.table(columns)


def boundary_margins(rng: np.random.Generator, households: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Candidate - 0.95 x baseline of rows whose true mean is exactly 0, and their households."""
    who = np.repeat(np.arange(households), rng.integers(1, 7, households))
    shared = rng.normal(0, 0.07, households)[who] + rng.normal(0, 0.05, len(who))
    own = [rng.normal(0, 0.05, households)[who] + rng.normal(0, 0.05, len(who)) for _ in range(2)]
    return 0.95 * (0.5 + shared) + own[0] - 0.95 * (0.5 + shared + own[1]), who


def pass_share(households: int, times: int, *, diversity: float, leftovers: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    verdicts = [
        decide(simulated(rng, households, diversity=diversity, leftovers=leftovers), SUBJECT).verdict
        for _ in range(times)
    ]
    return verdicts.count(Verdict.PASS) / times


@pytest.mark.parametrize("households", [60, 250])
def test_a_true_loss_of_five_per_cent_passes_at_most_six_times_in_a_hundred(households: int) -> None:
    rng = np.random.default_rng(20240501)
    times, passed = 3000, 0
    for _ in range(times):
        table = boundary_margins(rng, households)
        bound = clustered(*table).lower_bound
        passed += bound is not None and bound > 0
    assert 0.04 <= passed / times <= 0.06


def test_the_gate_as_a_whole_rarely_passes_a_true_loss() -> None:
    share = pass_share(60, 200, diversity=0.95, leftovers=1.1, seed=60)
    assert 0 < share <= 0.06 + 2 * math.sqrt(0.06 * 0.94 / 200), "a gate that never passes proves nothing either"


def test_a_row_level_interval_would_pass_a_true_loss_far_too_often() -> None:
    rng = np.random.default_rng(20240501)
    times, passed = 1000, 0
    for _ in range(times):
        margin, _households = boundary_margins(rng, 120)
        passed += margin.mean() > 1.645 * margin.std(ddof=1) / math.sqrt(len(margin))
    assert passed / times > 0.10


def test_equal_models_pass_at_250_households() -> None:
    assert pass_share(250, 200, diversity=1.0, leftovers=1.0, seed=7) >= 0.95


def test_the_standard_error_is_that_of_household_means_when_households_are_of_one_size() -> None:
    rng = np.random.default_rng(1)
    means = rng.normal(size=40)
    values, who = np.repeat(means, 3), [f"h{i}" for i in np.repeat(np.arange(40), 3)]
    found = clustered(values, who)
    assert found.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(40))
    assert found.num_households == 40 and found.num_rows == 120
    low, high = found.interval  # type: ignore[misc]
    assert (high - low) / 2 == pytest.approx(2.0227 * found.standard_error, rel=1e-4)
    assert found.lower_bound == pytest.approx(found.mean - 1.6849 * found.standard_error, rel=1e-4)


def test_one_household_has_no_interval() -> None:
    found = clustered([0.1, 0.2], ["h", "h"])
    assert found.standard_error is found.interval is found.lower_bound is found.households_needed() is None


def test_households_needed_grow_with_the_squared_spread() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, 100)
    noise -= noise.mean()
    who = [f"h{i}" for i in range(100)]
    one, two = (clustered(0.1 + k * noise, who).households_needed() for k in (1, 2))
    assert one and two and 3.9 < two / one < 4.1
    assert clustered(noise - 1, who).households_needed() is None


def test_a_mean_does_not_depend_on_the_order_of_its_rows() -> None:
    values = np.random.default_rng(3).random(1000).tolist()
    assert exact_mean(values) == exact_mean(sorted(values)) == exact_mean(values[::-1])
