"""The two plots of a replay, as SVG for the report and as PNG for MLflow.

In: differences with intervals. Out: one SVG element without scripts or outside files, or the bytes of a PNG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from planner.evaluation.statistics import Estimate

ROW, TOP, WIDTH, LEFT, RIGHT = 46, 8, 360, 12, 12


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of an interval plot: `low` and `high` are None where no interval is known."""

    label: str
    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, label: str, estimate: Estimate) -> Bar:
        """The difference with its household-clustered 95 % interval."""
        low, high = estimate.interval or (None, None)
        return cls(label, estimate.mean, low, high)

    @property
    def kind(self) -> str:
        """`up` and `down` where the interval leaves zero out, else `open`."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "open"
        return "up" if self.low > 0 else "down"


def bars_of(differences: Mapping[str, Estimate]) -> list[Bar]:
    """One bar for each score."""
    return [Bar.of(name, estimate) for name, estimate in differences.items()]


def intervals_svg(bars: Sequence[Bar]) -> str:
    """Intervals around zero, labels above their bars so that a phone can show it; colours come from the page's CSS."""
    reach = _reach(bars)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value + reach) / (2 * reach)

    height = TOP + ROW * len(bars) + 22
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Differences with 95 % intervals">',
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{height - 20}"/>',
    ]
    for index, bar in enumerate(bars):
        y = TOP + ROW * index
        parts.append(f'<text x="{LEFT}" y="{y + 14}">{escape(bar.label)}</text>')
        parts.append(f'<text class="value" x="{WIDTH - RIGHT}" y="{y + 14}">{bar.mean:+.4f}</text>')
        if bar.low is not None and bar.high is not None:
            ends = f'x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}"'
            parts.append(f'<line class="bar {bar.kind}" {ends} y1="{y + 28}" y2="{y + 28}"/>')
        parts.append(f'<circle class="{bar.kind}" cx="{x(bar.mean):.1f}" cy="{y + 28}" r="5"/>')
    for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        shown = f"{value:+.3g}" if value else "0"
        parts.append(f'<text class="tick" text-anchor="{anchor}" x="{x(value):.1f}" y="{height - 6}">{shown}</text>')
    return "".join(parts) + "</svg>"


def intervals_png(bars: Sequence[Bar], *, title: str) -> bytes:
    """The same plot as a PNG of about 1,000 x 500 pixels, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.7 * len(bars) + 1.3), dpi=125, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0, color="#888888", linewidth=1)
    colours = {"up": "#1a7f4b", "down": "#b3261e", "open": "#5b6470"}
    for place, bar in enumerate(reversed(bars)):
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [place, place], color=colours[bar.kind], linewidth=4, alpha=0.5)
        axes.plot([bar.mean], [place], "o", color=colours[bar.kind])
    axes.set_yticks(range(len(bars)), [bar.label for bar in reversed(bars)])
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set_xlabel("candidate - baseline, 95 % interval clustered by household")
    axes.set_title(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _reach(bars: Sequence[Bar]) -> float:
    ends = [abs(v) for bar in bars for v in (bar.mean, bar.low, bar.high) if v is not None]
    return max([0.01, *ends]) * 1.05
