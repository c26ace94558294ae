from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from planner.contracts.errors import ReplayError
from planner.contracts.gate import SCORES, GateResult
from planner.contracts.request import Constraints
from planner.evaluation.figures import difference_metrics, extreme_cases, infeasible_by_reason, references, segments
from planner.evaluation.gate import Subject, decide
from planner.evaluation.plots import Bar, intervals_png, intervals_svg
from planner.evaluation.replay import Lineage, Replay, replay
from planner.evaluation.report import LeftOut, write_report
from tests.evaluation.planners import catalogue_of, example_of, examples_of, oracle, popular

CATALOGUE = catalogue_of()
EVIL = "<script>alert('x')</script>"
SUBJECT = Subject("planner_model", "4", "3", "2024-05-01", "d" * 32, "test")


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Replay, GateResult]:
    examples = examples_of(60, CATALOGUE)
    limits = Constraints(max_prep_time=1, excluded_ingredients=(EVIL,))
    examples.append(example_of(999, "h9999", CATALOGUE, constraints=limits))
    found = replay(
        popular(CATALOGUE), popular(CATALOGUE), examples, catalogue=CATALOGUE, folder=tmp_path_factory.mktemp("replay"),
        split="test", identity={}, lineage=Lineage("d", "train"),
    )  # fmt: skip
    return found, decide(found.read_rows(), SUBJECT)


class Page(HTMLParser):
    """Opening tags, and whether each is closed again."""

    VOID = {"meta", "line", "circle"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_sound_page_that_needs_nothing_else(
    tmp_path: Path, replayed: tuple[Replay, GateResult]
) -> None:
    files = write_report(tmp_path, *replayed, CATALOGUE, lineage={"commit": EVIL})
    text = files.html.read_text()
    page = Page(text)
    assert not page.open
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name in ("src", "href") or name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert EVIL not in text and "&lt;script&gt;" in text
    assert re.search(r"Dish number \d+ &amp; &lt;sauce&gt;", text)
    assert "nan" not in text.lower()
    assert text.index(">INCONCLUSIVE<") < text.index("Scores against the baseline")
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in files.plots)
    assert {path.name for path in files.plots} == {"scores.png", "references.png"}


def test_planners_and_references_stand_side_by_side_and_each_segment_under_its_column(
    tmp_path: Path, replayed: tuple[Replay, GateResult]
) -> None:
    text = write_report(tmp_path, *replayed, CATALOGUE).html.read_text()
    heads = re.search(r'<table class="scores">\s*<tr>(.*?)</tr>', text, re.S)
    assert heads and re.findall(r"<th>(.*?)</th>", heads[1]) == [
        "", "candidate", "baseline", "previous plan", "logged policy",
    ]  # fmt: skip
    assert re.findall(r"<summary>(.*?)</summary>", text) == [
        "household size (4)", "mode (1)", "region (2)", "workflow type (2)",
    ]  # fmt: skip


def test_what_the_dataset_left_out_is_shown_and_never_taken_for_nothing(
    tmp_path: Path, replayed: tuple[Replay, GateResult]
) -> None:
    told = LeftOut(1234, {"not_generated": 7, EVIL: 0})
    text = write_report(tmp_path, *replayed, CATALOGUE, left_out=told).html.read_text()
    assert "7 of 1,234 accepted plans in the window were left out." in text
    assert "<td>not_generated</td><td>7</td>" in text and EVIL not in text
    assert "does not tell" in write_report(tmp_path, *replayed, CATALOGUE).html.read_text()


def test_dishes_that_both_plans_have_are_ticked(tmp_path: Path) -> None:
    examples = examples_of(4, CATALOGUE)
    found = replay(
        oracle(examples, CATALOGUE), popular(CATALOGUE), examples, catalogue=CATALOGUE, folder=tmp_path, split="test",
        identity={}, lineage=Lineage("d", "train"),
    )  # fmt: skip
    _, best = extreme_cases(found.read_rows(), CATALOGUE)
    assert all(line.endswith(" ✓") for line in (*best[0].predicted, *best[0].accepted)) and best[0].edits == ()


def test_ids_stay_out_of_the_rows_side_by_side(replayed: tuple[Replay, GateResult]) -> None:
    worst, best = extreme_cases(replayed[0].read_rows(), CATALOGUE)
    assert len(worst) == len(best) == 10
    assert max(case.alignment + case.edit_distance for case in worst) <= min(
        case.alignment + case.edit_distance for case in best
    )
    lines = [line for case in (*worst, *best) for line in (*case.request, *case.predicted, *case.accepted, *case.edits)]
    assert not any(re.search(r"\b(r\d{3}|h\d{4}|e\d{5})\b", line) for line in lines)


def test_every_row_is_in_one_segment_of_each_column(replayed: tuple[Replay, GateResult]) -> None:
    found = segments(replayed[0].read_rows())
    for column in {segment.column for segment in found}:
        assert sum(segment.num_rows for segment in found if segment.column == column) == 61
    assert ("region", "unknown") in {(segment.column, segment.value) for segment in found}


def test_each_segment_has_the_scores_of_both_planners_beside_their_difference(
    tmp_path: Path, replayed: tuple[Replay, GateResult]
) -> None:
    rows = replayed[0].read_rows()
    text = write_report(tmp_path, *replayed, CATALOGUE).html.read_text()
    for part in segments(rows):
        for name in SCORES:
            mine, other = part.scores[name], part.baseline_scores[name]
            assert mine - other == pytest.approx(part.differences[name].mean)
            assert f'<small class="of">{mine:.4f} against {other:.4f}</small>' in text
    in_plan_first = [row for row in rows.to_pylist() if row["workflow_type"] == "plan-first"]
    [part] = [part for part in segments(rows) if part.value == "plan-first"]
    assert part.scores["leftovers_score"] == pytest.approx(
        sum(row["leftovers_score"] for row in in_plan_first) / part.num_rows
    )


def test_references_count_the_rows_that_have_them(replayed: tuple[Replay, GateResult]) -> None:
    rows = replayed[0].read_rows()
    previous, logged = references(rows)
    assert previous.num_rows == 61 - rows["previous_violations"].null_count < 61
    assert logged.differences["diversity_score"].num_rows == logged.num_rows
    assert infeasible_by_reason(rows) == [("no_recipe_allowed", 1)]


def test_the_metrics_hold_every_difference_with_its_interval(replayed: tuple[Replay, GateResult]) -> None:
    metrics = difference_metrics(replayed[0].read_rows())
    low, high = (metrics[f"minus_previous_plan_alignment_score_{end}"] for end in ("low", "high"))
    assert low < metrics["minus_previous_plan_alignment_score"] < high
    assert metrics["minus_baseline_leftovers_score"] == 0
    assert 0 <= metrics["logged_diversity_score"] <= 1
    assert replayed[0].metrics()["infeasible_share"] == 1 / 61


def test_rows_trained_on_are_marked_in_the_report(tmp_path: Path) -> None:
    examples = examples_of(6, CATALOGUE)
    found = replay(
        oracle(examples, CATALOGUE), popular(CATALOGUE), examples, catalogue=CATALOGUE, folder=tmp_path, split="test",
        identity={}, lineage=Lineage("d", "test"), allow_trained_rows=True,
    )  # fmt: skip
    gate = decide(found.read_rows(), SUBJECT, trained_on=found.trained_on)
    assert "These rows were trained on" in write_report(tmp_path, found, gate, CATALOGUE).html.read_text()


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path, replayed: tuple[Replay, GateResult]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReplayError, match="cannot be written"):
        write_report(tmp_path / "file", *replayed, CATALOGUE)


def test_an_invalid_replay_without_scores_still_has_a_report(
    tmp_path: Path, replayed: tuple[Replay, GateResult]
) -> None:
    gate = decide(replayed[0].read_rows(), SUBJECT, invalid=["version 4 lacks a file."])
    assert "version 4 lacks a file." in write_report(tmp_path, replayed[0], gate, CATALOGUE).html.read_text()


def test_plots_take_a_score_without_an_interval() -> None:
    bars = [Bar("a <b>", 0.1, None, None), Bar("b", -0.2, -0.3, -0.1), Bar("c", 0.0, -0.1, 0.1)]
    svg = intervals_svg(bars)
    assert "a &lt;b&gt;" in svg and svg.count("<circle") == 3 and svg.count('class="bar') == 2
    assert [bar.kind for bar in bars] == ["open", "down", "open"]
    assert intervals_png(bars, title="t")[:4] == b"\x89PNG"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_real_browser_shows_the_page_without_sideways_scrolling(
    tmp_path: Path, replayed: tuple[Replay, GateResult], width: int
) -> None:
    lineage = {"commit": "a" * 40, "candidate": f"version 4 (lora), files {'b' * 64}", "dataset": f"/{'long/' * 30}"}
    write_report(tmp_path, *replayed, CATALOGUE, lineage=lineage)
    # Headless windows have a least width; a frame has none. The frame writes what it measured into the outer page.
    (tmp_path / "frame.html").write_text(
        f"<iframe id=f src=report.html style='width:{width}px;height:900px;border:0' onload=\""
        "let d=f.contentDocument,e=d.documentElement,w=[...d.querySelectorAll('.wide')];"
        "d.querySelectorAll('details').forEach(x=>x.open=true);"
        "let cut=w.filter(x=>x.scrollWidth>x.clientWidth);"
        "document.title=[e.scrollWidth,e.clientWidth,cut.length,w.length,cut.map(x=>x.scrollWidth)].join(' ')"
        '"></iframe>'
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 40},900"]
    shot = tmp_path / "report.png"
    url = (tmp_path / "frame.html").as_uri()
    subprocess.run([*command, f"--screenshot={shot}", url], check=True, capture_output=True, timeout=120)
    top = imread(shot)[:400, :, :3]
    # The verdict comes first: the colour of INCONCLUSIVE stands in the upper part of the first screen.
    assert (abs(top - [0xB7 / 255, 0x79 / 255, 0x1F / 255]).max(axis=2) < 0.01).sum() > 200
    page = subprocess.run([*command, "--dump-dom", url], check=True, capture_output=True, timeout=120, text=True).stdout
    measured = re.search(r"<title>(\d+) (\d+) (\d+) (\d+) (.*?)</title>", page)
    assert measured and int(measured[1]) <= int(measured[2]) <= width
    assert measured[3] == "0" and int(measured[4]) > 5, measured[5]  # no table is cut off and has to be pushed sideways
