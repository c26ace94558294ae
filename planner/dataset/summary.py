"""`dataset_summary.md` of a version: what is in it, what was left out and why, and how its checks came out.

In: what was counted over the rows and in the build. Out: a profile and a Markdown text that depend on nothing
else (no clock), so that building again gives the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from planner.contracts.split import SPLITS
from planner.dataset.checks import CheckResult, FileFacts
from planner.dataset.config import DatasetConfig
from planner.dataset.distributions import by_count
from planner.dataset.tally import Tally

_REASONS = {
    "not_generated": "never generated before the end",
    "accepted_before_generated": "accepted in the window, but never at or after its generation",
    "unknown_household": "the household is not in `households`",
    "invalid_plan": "the accepted plan breaks the contract",
}


@dataclass(frozen=True)
class Profile:
    """Counts over the rows of a version; a policy version of None is an event that named none."""

    num_rows: int
    num_households: int
    first: datetime
    last: datetime
    rows_by_split: Mapping[str, int]
    households_by_split: Mapping[str, int]
    policy_versions: Mapping[str | None, int]
    workflow_types: Mapping[str, int]
    modes: Mapping[str, int]

    @property
    def num_policy_versions(self) -> int:
        """Policy versions that some event named."""
        return len(self.policy_versions.keys() - {None})


def profile_of(tally: Tally, facts: FileFacts) -> Profile:
    """From what was counted over the rows; there is at least one."""
    assert facts.first_us is not None and facts.last_us is not None
    return Profile(
        facts.num_rows,
        facts.num_households,
        _time(facts.first_us),
        _time(facts.last_us),
        {split: tally.counts["split"].get(split, 0) for split in SPLITS},
        {split: facts.households_by_split.get(split, 0) for split in SPLITS},
        by_count(tally.counts["policy version"]),
        by_count(tally.counts["workflow type"]),
        by_count(tally.counts["mode"]),
    )


def summary_text(
    config: DatasetConfig,
    profile: Profile,
    *,
    size: int,
    num_fields: int,
    exclusions: Mapping[str, int],
    num_plans_seen: int,
    checks: Sequence[CheckResult],
    notes: Mapping[str, int],
) -> str:
    """The Markdown text; `size` is that of `training.parquet` in bytes."""
    parts = [
        f"# Dataset: planner/{config.version}",
        "\n".join(
            [
                f"**Rows**: {profile.num_rows:,}  ",
                f"**Fields**: {num_fields}  ",
                f"**Size**: {_bytes(size)}",
            ]
        ),
        "## Coverage",
        "\n".join(
            [
                f"- Households: {profile.num_households:,}",
                f"- Date range: {profile.first:%Y-%m-%d %H:%M} to {profile.last:%Y-%m-%d %H:%M} UTC "
                f"(window {config.start_date} to {config.end_date}, exclusive)",
                f"- Policy versions: {profile.num_policy_versions:,}",
                *(f"  - {_code(name)}: {_share(count, profile)}" for name, count in profile.policy_versions.items()),
            ]
        ),
        "## Distribution",
        _table("Workflow type", profile.workflow_types, profile),
        _table("Mode", profile.modes, profile),
        "## Exclusions",
        _exclusions(exclusions, num_plans_seen),
        "## Quality checks",
        "\n".join(
            ["| check | result | detail |", "|---|---|---|"]
            + [f"| {check.name} | {_result(check)} | {check.detail} |" for check in checks]
        ),
        "## Notes",
        _notes(profile, notes),
    ]
    return "\n\n".join(parts) + "\n"


def _exclusions(exclusions: Mapping[str, int], num_plans_seen: int) -> str:
    lines = ["| reason | plans | meaning |", "|---|---|---|"]
    lines += [f"| {reason} | {count:,} | {_REASONS[reason]} |" for reason, count in exclusions.items()]
    total = sum(exclusions.values())
    return "\n".join(lines) + f"\n\n{total:,} of {num_plans_seen:,} accepted plans in the window were left out."


def _notes(profile: Profile, notes: Mapping[str, int]) -> str:
    lines = [
        f"- Split `{split}`: {count:,} rows, {profile.households_by_split[split]:,} households"
        for split, count in profile.rows_by_split.items()
    ]
    lines.append("- `household.size`, `preferences`, `restrictions` and `region` are those at the build: no history.")
    lines += [f"- {count:,} {what}" for what, count in sorted(notes.items())]
    return "\n".join(lines)


def _table(title: str, counts: Mapping[str, int], profile: Profile) -> str:
    lines = [f"| {title} | rows |", "|---|---|"]
    return "\n".join(lines + [f"| {_code(name)} | {_share(count, profile)} |" for name, count in counts.items()])


def _share(count: int, profile: Profile) -> str:
    return f"{count:,} ({count / profile.num_rows:.1%})"


def _result(check: CheckResult) -> str:
    return "passed" if check.passed else "FAILED" if check.level == "error" else "warning"


def _code(text: str | None) -> str:
    if text is None:
        return "(none)"
    shown = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return f"`{shown[:80]}`"


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _time(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
