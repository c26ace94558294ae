"""What a person sees is what was said: names and paths come from data and are no markup."""

from __future__ import annotations

import pytest

from planner.recipe.console import Console, StepResult, print_results

TEXTS = ("/data/[old]/x", "x[/y]", "[red]:key:")


@pytest.mark.parametrize("text", TEXTS)
def test_the_last_table_prints_names_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_results([StepResult(text, 1, 2, 3.0, text, text)], lines=[text], next_command=text)
    assert capsys.readouterr().out.count(text) == 5


@pytest.mark.parametrize("text", TEXTS)
def test_progress_on_a_terminal_shows_names_as_they_are(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    console = Console()
    console.progress(1, 2, text)
    console.say(text)
    console.close()
    assert capsys.readouterr().err.count(text) >= 2
