"""What a person sees: progress on stderr while it runs, one table and the next command on stdout at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_SECONDS = 10.0  # between two progress lines where there is no terminal


@dataclass(frozen=True)
class StepResult:
    """One line of the last table. `note` says what a person should know: reused, verdict, warnings."""

    step: str
    rows_in: int | None
    rows_out: int | None
    seconds: float
    artefact: str
    note: str = ""


class Console:
    """One progress bar per step on a terminal, a plain line every few seconds without one."""

    def __init__(self) -> None:
        self._err = _plain_console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._last_what = ""

    def say(self, text: str) -> None:
        """Print one line to stderr."""
        if self._err.is_terminal:
            self._err.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Show how far the step is; cheap enough to be called often."""
        if self._err.is_terminal:
            self._draw(done, total, what)
            return
        now = time.monotonic()
        key = what.split("  ")[0]
        if now - self._last_line >= PLAIN_SECONDS or key != self._last_what:
            self._last_line, self._last_what = now, key
            print(f"  {what}: {done:,}" + (f" of {total:,}" if total else ""), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the progress bar down."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._task = None

    def _draw(self, done: int, total: int | None, what: str) -> None:
        if self._progress is None:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
            )
            self._progress = Progress(*columns, TimeRemainingColumn(), console=self._err, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(what, total=total)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, description=what)


def print_results(results: Sequence[StepResult], *, lines: Sequence[str] = (), next_command: str | None = None) -> None:
    """Print the last table, what else has to be said, and the next command, to stdout."""
    out = _plain_console(width=None if sys.stdout.isatty() else 140)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("step", "rows in", "rows out", "time", "artefact", ""):
        table.add_column(name, justify="right" if name in ("rows in", "rows out", "time") else "left", overflow="fold")
    for r in results:
        table.add_row(r.step, _number(r.rows_in), _number(r.rows_out), _duration(r.seconds), r.artefact, r.note)
    out.print()
    out.print(table)
    for line in lines:
        out.print(line, soft_wrap=True)
    if next_command:
        out.print(f"\nNext: {next_command}", soft_wrap=True)


def _plain_console(**options: Any) -> RichConsole:
    """One that prints names and paths as they are: rich would read `[old]` as a style and `:key:` as a picture."""
    return RichConsole(markup=False, emoji=False, highlight=False, **options)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
