"""`list`, `show` and `diff`, and the card that lies beside the rows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from planner.dataset import publish, versions
from planner.dataset.__main__ import main
from planner.dataset.build import build_dataset
from planner.dataset.diff import diff_versions
from planner.dataset.distributions import version_distributions
from planner.dataset.listing import list_versions
from planner.dataset.versions import open_version
from tests.dataset import small
from tests.dataset.forged import Row, forge, reseal

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def filled(database_url: str) -> str:
    small.fill(database_url)
    return database_url


def test_list_shows_whole_versions_and_marks_the_others(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_dataset(filled, small.config(tmp_path))
    places = tmp_path / "planner"
    for name in ("cut", "damaged", "short"):
        shutil.copytree(places / "v1", places / name)
    (places / "cut" / versions.MANIFEST).unlink()
    (places / "damaged" / versions.MANIFEST).write_bytes(b"\xff")
    (places / "short" / versions.TRAINING).write_bytes(b"PAR1")
    (places / "note.txt").write_text("")
    (places / "loop").symlink_to(places / "loop")
    with publish.working_folder(places, "v2"):
        states = {entry.name: entry.problem for entry in list_versions(str(tmp_path))}
    assert states.pop("v1") is None
    (building,) = (name for name in states if name.startswith(".v2."))
    assert "unfinished" in str(states.pop(building))
    assert "manifest.json is missing" in str(states["cut"]) and "damaged" in str(states["damaged"])
    assert states["short"] == "damaged: training.parquet has another size"
    assert all(states.values()) and len(states) == 5
    assert main(["list", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["version", "rows", "digest"]
    (line,) = (line for line in printed if line.startswith("v1"))
    assert " 48 " in line and "2025-01-03 to 2025-01-10" in line and line.endswith("whole")


def test_list_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "There are no datasets" in told.err


def test_show_prints_the_summary_without_control_characters(
    filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.run(filled, """UPDATE exp.events SET context = '{"mode": "\\u001b[31mred"}' WHERE unit_id = 'home-1'""")
    report = build_dataset(filled, small.config(tmp_path))
    assert main(["show", report.version.uri]) == 0
    printed = capsys.readouterr().out
    assert "**Rows**: 48" in printed and report.version.digest in printed and "\x1b" not in printed
    assert main(["show", str(tmp_path / "none")]) == 1


def test_diff_counts_rows_by_what_changed(filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = build_dataset(filled, small.config(tmp_path, date="a")).version
    same = diff_versions(before, before)
    assert (same.rows.added, same.rows.removed, same.rows.changed, same.rows.same) == (0, 0, 0, 48)
    assert not same.changed_parts and not any(same.distances.values())
    # Of home-3 all four rows go; home-4 gets a pantry; home-5 another mode in one generation.
    small.run(filled, "DELETE FROM exp.events WHERE unit_id = 'home-3'")
    items = """'[{"name": "rice"}]'"""
    small.run(filled, f"INSERT INTO pantry_snapshots VALUES (1, 'home-4', '2025-01-05', {items})")
    small.run(
        filled,
        """UPDATE exp.events SET context = '{"policy_version_id": "v1", "mode": "constrained"}' WHERE
           event_type = 'plan_generated' AND payload->>'plan_id' = 'p-5-1'""",
    )
    small.run(filled, "INSERT INTO recipes (id, title) VALUES ('new', 'New dish')")
    after = build_dataset(filled, small.config(tmp_path, date="b", min_rows=2)).version
    diff = diff_versions(before, after)
    assert (diff.rows.added, diff.rows.removed, diff.rows.changed, diff.rows.same) == (0, 4, 4, 40)
    assert dict(diff.changed_parts) == {"pantry": 3, "mode": 1}
    assert len(diff.rows.samples["removed"]) == 4 and diff.recipes.added == 1 and diff.recipes.same == 8
    assert diff.recipes.samples["added"] == ("new",) and diff.parameters == {"min_rows": (1, 2)}
    assert diff.distances["mode"] == pytest.approx(1 / 44)
    assert diff.shifts["pantry items"][0].label in ("0", "1 to 5")
    back = diff_versions(after, before)
    assert (back.rows.added, back.rows.removed) == (4, 0)
    assert main(["diff", before.uri, after.uri]) == 0
    printed = capsys.readouterr().out
    for part in (
        "rows: 0 added, 4 removed, 4 changed, 40 the same",
        "changed in: pantry 3, mode 1",
        "min_rows: 1 -> 2",
    ):
        assert part in printed


def test_every_kind_of_change_of_a_row_is_seen(filled: str, tmp_path: Path) -> None:
    before = build_dataset(filled, small.config(tmp_path, date="a")).version
    shutil.copytree(before.uri, tmp_path / "planner" / "b")

    def change(rows: list[Row]) -> None:
        rows[0]["input"]["household"]["size"] = None
        rows[1]["input"]["constraints"]["budget"] = 0.1
        rows[2]["input"]["workflow_type"] = "own"
        rows[3]["target"]["accepted_plan"]["meals"][0]["servings"] = 3
        rows[4]["target"]["user_edits"] = [{"type": "remove_meal", "day": None}]
        rows[5]["metadata"]["region"] = ""
        rows[6]["split"] = "other"
        rows[47]["input"]["previous_plan"] = None

    forge(tmp_path / "planner" / "b", change)
    diff = diff_versions(before, open_version(str(tmp_path / "planner" / "b")))
    parts = ["household", "constraints", "workflow_type", "previous_plan", "accepted_plan", "user_edits", "metadata"]
    assert dict(diff.changed_parts) == dict.fromkeys([*parts, "split"], 1) and diff.rows.changed == 8


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_card_is_part_of_the_version_shows_its_plots_and_escapes_data(filled: str, tmp_path: Path) -> None:
    small.run(filled, "UPDATE recipes SET title = '<script>alert(1)</script>&' WHERE id = 'r1'")
    report = build_dataset(filled, small.config(tmp_path / "a"))
    card = (tmp_path / "a" / "planner" / "v1" / versions.CARD).read_bytes()
    build_dataset(filled, small.config(tmp_path / "b"))
    assert (tmp_path / "b" / "planner" / "v1" / versions.CARD).read_bytes() == card
    assert versions.CARD in report.version.manifest["files"]
    page = Texts()
    page.feed(card.decode())
    for part in ("Rows per day", "Workflow types", "Plan sizes", "Dish popularity", "Budget tightness", "plan-first"):
        assert part in page.text
    assert not {"script", "link", "img"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes or "href" in attributes for _, attributes in page.tags)
    assert sum(tag == "svg" for tag, _ in page.tags) == 11


def test_version_without_a_card_stays_a_version(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = build_dataset(filled, small.config(tmp_path))
    folder = tmp_path / "planner" / "v1"
    (folder / versions.CARD).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(versions, "FILES", tuple(name for name in versions.FILES if name != versions.CARD))
        reseal(folder)
    assert open_version(str(folder)).digest == report.version.digest
    assert build_dataset(filled, small.config(tmp_path)).unchanged and main(["verify", str(folder)]) == 0


def test_tightness_is_the_share_of_the_limit_that_the_plan_uses(filled: str, tmp_path: Path) -> None:
    small.run(filled, "UPDATE recipes SET cost_per_serving = 5.05, prep_time = 30 WHERE id IN ('r0', 'r1', 'r2')")
    # r0 to r2 cost 10.10 for two; r3 has no known cost.
    small.run(filled, "INSERT INTO household_constraints VALUES ('home-1', '-infinity', 10.10, 60, NULL)")
    small.run(filled, "INSERT INTO household_constraints VALUES ('home-2', '-infinity', 10.09, 29, '{a,b}')")
    version = build_dataset(filled, small.config(tmp_path)).version
    found = version_distributions(version)
    budget, minutes = found["budget used"].counts, found["minutes used"].counts
    assert budget == {
        "up to 50 %": 0,
        "50 to 80 %": 0,
        "80 to 100 %": 3,
        "over the limit": 3,
        "unknown": 2,
        "no limit": 40,
    }
    assert minutes == {
        "up to 50 %": 3,
        "50 to 80 %": 0,
        "80 to 100 %": 0,
        "over the limit": 3,
        "unknown": 2,
        "no limit": 40,
    }
    assert found["excluded ingredients"].counts["2"] == 4 and found["dish"].counts["Dish 'r0'"] == 12
    assert found["day"].counts == {f"2025-01-0{day}": 12 for day in range(4, 8)}
    assert found["dish"].share("Dish 'r0'") == 0.25 and found["dish"].share("none") == 0


def test_money_of_the_card_is_rounded_as_the_gate_rounds_it(filled: str, tmp_path: Path) -> None:
    small.run(filled, "UPDATE recipes SET cost_per_serving = 1.005 WHERE id = 'r0'")  # 1.01, and 2.02 for two
    small.run(filled, "INSERT INTO household_constraints VALUES ('home-1', '-infinity', 2.01, 60, NULL)")
    small.run(filled, "INSERT INTO household_constraints VALUES ('home-2', '-infinity', 1e300, 60, NULL)")
    version = build_dataset(filled, small.config(tmp_path)).version
    found = version_distributions(version)["budget used"].counts
    assert found["over the limit"] == 1 and found["up to 50 %"] == 1


def test_other_recipes_with_the_same_rows_are_warned_of(filled: str, tmp_path: Path) -> None:
    build_dataset(filled, small.config(tmp_path))
    assert build_dataset(filled, small.config(tmp_path)).warnings == ()
    small.run(filled, "UPDATE recipes SET cost_per_serving = 3 WHERE id = 'r5'")
    small.run(filled, "INSERT INTO recipes (id, title) VALUES ('new', 'New dish')")
    report = build_dataset(filled, small.config(tmp_path))
    assert report.unchanged
    (warning,) = report.warnings
    assert "1 added, 0 removed, 1 changed" in warning and "\n" not in warning


def test_commands_run_as_a_module_and_stop_when_the_reader_does(filled: str, tmp_path: Path) -> None:
    version = build_dataset(filled, small.config(tmp_path)).version
    command = [sys.executable, "-m", "planner.dataset", "show", version.uri]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "# Dataset: planner/v1" in done.stdout and done.stderr == ""
    cut = subprocess.run(f"{' '.join(command)} | true", cwd=PROJECT, shell=True, capture_output=True, check=False)
    assert cut.stderr == b""
