"""`card.html` of a version: its profile as plots on one page without scripts or outside files, readable on a phone.

In: the version's profile, distributions and checks. Out: HTML that depends on nothing else (no clock), so that
building again gives the same bytes. Every text from data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from html import escape

from planner.dataset.checks import CheckResult
from planner.dataset.config import DatasetConfig
from planner.dataset.distributions import Distribution
from planner.dataset.summary import Profile

WIDTH = 360
_LINE, _LABEL, _VALUE = 24, 122, 108
_DISH_LABEL, _CHARACTER = 172, 8
_MOST_DAYS = 120
_MOST_DISHES = 20
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6470;--bar:#3b6ea5;--back:#fff;--line:#d8dde3;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b0;--bar:#7fb0e6;--back:#14181d;--line:#323a43;
--bad:#ff8a80}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:46rem;margin:0 auto;
padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.6rem 0 .3rem}p,dl{margin:.3rem 0}
.soft,figcaption{color:var(--soft);font-size:.9rem}.bad{color:var(--bad)}figure{margin:0}
dl{display:grid;grid-template-columns:auto 1fr;gap:.1rem 1rem}dd{margin:0;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
svg .soft{fill:var(--soft);font-size:11px}svg rect{fill:var(--bar)}svg line{stroke:var(--line)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:0 2rem}
"""
# What a reader should know about a plot, by the name of its distribution.
_TITLES = {
    "day": ("Rows per day", "accepted plans by day of acceptance, UTC"),
    "workflow type": ("Workflow types", "share of rows"),
    "mode": ("Modes", "share of rows"),
    "split": ("Splits", "share of rows; a household is in one split only"),
    "meals a plan": ("Plan sizes", "meals in the accepted plan"),
    "edits a plan": ("Edits", "edits between generation and acceptance"),
    "pantry items": ("Pantry", "items in the snapshot at plan time"),
    "budget used": ("Budget tightness", "cost of the accepted plan as a share of the budget"),
    "minutes used": ("Time tightness", "longest dish of the accepted plan as a share of the limit"),
    "excluded ingredients": ("Excluded ingredients", "ingredients that the household rules out"),
    "dish": ("Dish popularity", "share of all meals in accepted plans"),
}


def card_html(
    config: DatasetConfig,
    profile: Profile,
    distributions: Mapping[str, Distribution],
    *,
    exclusions: Mapping[str, int],
    num_plans_seen: int,
    checks: Sequence[CheckResult],
) -> str:
    """The page."""
    failed = [check for check in checks if not check.passed]
    excluded = sum(exclusions.values())
    facts = {
        "Rows": f"{profile.num_rows:,}",
        "Households": f"{profile.num_households:,}",
        "Acceptances": f"{profile.first:%Y-%m-%d} to {profile.last:%Y-%m-%d} UTC",
        "Window": f"{config.start_date} to {config.end_date} (exclusive)",
        "Policy versions": f"{profile.num_policy_versions:,}",
        "Left out": f"{excluded:,} of {num_plans_seen:,} accepted plans"
        + "".join(f"; {reason} {count:,}" for reason, count in exclusions.items() if count),
        "Quality checks": f"{len(checks) - len(failed)} of {len(checks)} passed",
    }
    title = escape(f"planner/{config.version}")
    warnings = "".join(f'<p class="bad">{escape(check.name)}: {escape(check.detail)}</p>' for check in failed)
    plots = [_figure(distributions[name]) for name in _TITLES if name not in ("day", "dish")]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Dataset {title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>Dataset {title}</h1><dl>"
        + "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
        + f"</dl>{warnings}{_figure(distributions['day'])}"
        + f'<div class="plots">{"".join(plots)}</div>{_figure(distributions["dish"])}</body></html>\n'
    )


def _figure(distribution: Distribution) -> str:
    title, caption = _TITLES[distribution.name]
    if distribution.name == "day":
        plot, unit = _columns(distribution.counts, title)
        caption += unit
    elif distribution.name == "dish":
        shown = dict(list(distribution.counts.items())[:_MOST_DISHES])
        plot = _bars(distribution, shown, title, label_width=_DISH_LABEL)
        rest = len(distribution.counts) - _MOST_DISHES
        caption += f"; the {_MOST_DISHES} most frequent, {rest:,} more not shown" if rest > 0 else ""
    else:
        plot = _bars(distribution, distribution.counts, title)
    return f"<figure><h2>{title}</h2>{plot}<figcaption>{escape(caption)}</figcaption></figure>"


def _bars(distribution: Distribution, counts: Mapping[str, int], title: str, *, label_width: int = _LABEL) -> str:
    """Horizontal bars, one a label, with count and share behind them."""
    most = max(counts.values(), default=0) or 1
    room = WIDTH - label_width - _VALUE
    parts = [f'<svg viewBox="0 0 {WIDTH} {_LINE * max(len(counts), 1)}" role="img" aria-label="{escape(title)}">']
    for index, (label, count) in enumerate(counts.items()):
        y, width = _LINE * index, room * count / most
        name = escape(_short(label, label_width // _CHARACTER))
        parts.append(f'<text x="{label_width - 6}" y="{y + 16}" text-anchor="end">{name}</text>')
        parts.append(f'<rect x="{label_width}" y="{y + 4}" width="{width:.1f}" height="{_LINE - 8}" rx="2">')
        parts.append(f"<title>{escape(label)}: {count:,} {distribution.of}</title></rect>")
        parts.append(
            f'<text class="soft" x="{label_width + width + 5:.1f}" y="{y + 16}">{count:,} · '
            f"{distribution.share(label):.1%}</text>"
        )
    return "".join(parts) + "</svg>"


def _columns(by_day: Mapping[str, int], title: str) -> tuple[str, str]:
    """Columns over time, one a day or, for a long window, one a week; days without a row show as gaps."""
    step = 1 if len(_days(by_day)) <= _MOST_DAYS else 7
    days = _days(by_day)
    sums = [sum(by_day.get(day, 0) for day in days[start : start + step]) for start in range(0, len(days), step)]
    most, height, top = max(sums, default=0) or 1, 110, 16
    width = WIDTH / max(len(sums), 1)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height + top + 18}" role="img" aria-label="{escape(title)}">',
        f'<line x1="0" x2="{WIDTH}" y1="{top}" y2="{top}"/><text class="soft" x="0" y="{top - 4}">{most:,}</text>',
    ]
    for index, count in enumerate(sums):
        tall = height * count / most
        parts.append(
            f'<rect x="{index * width:.2f}" y="{top + height - tall:.1f}" width="{width * 0.86:.2f}" '
            f'height="{tall:.1f}"><title>{days[index * step]}: {count:,}</title></rect>'
        )
    if days:
        y = height + top + 14
        parts.append(f'<text class="soft" x="0" y="{y}">{days[0]}</text>')
        parts.append(f'<text class="soft" x="{WIDTH}" y="{y}" text-anchor="end">{days[-1]}</text>')
    return "".join(parts) + "</svg>", "" if step == 1 else "; one column a week"


def _days(by_day: Mapping[str, int]) -> list[str]:
    """Every day from the first to the last."""
    if not by_day:
        return []
    first, last = date.fromisoformat(min(by_day)), date.fromisoformat(max(by_day))
    return [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]


def _short(label: str, most: int) -> str:
    clean = " ".join(label.split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"
