"""`verify` finds each leak that a builder with a bug would publish, and finds none in versions of the real build."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planner.contracts.errors import DatasetError
from planner.contracts.split import SPLITS
from planner.dataset import versions
from planner.dataset.__main__ import main
from planner.dataset.build import build_dataset
from planner.dataset.database import connect
from planner.dataset.verify import verify_version
from tests.dataset import reference, small, traps
from tests.dataset.forged import Row, forge, reseal


@pytest.fixture
def folder(database_url: str, tmp_path: Path) -> Path:
    small.fill(database_url)
    build_dataset(database_url, small.config(tmp_path))
    return tmp_path / "planner" / "v1"


def findings(folder: Path) -> dict[str, str]:
    return {line.name: line.detail for line in verify_version(str(folder)) if line.result == "FINDING"}


def of_home(rows: list[Row], home: str = "home-3") -> list[Row]:
    return [row for row in rows if row["input"]["household"]["id"] == home]


def test_built_version_has_no_finding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "0 findings" in printed
    for name in ("training.parquet", "previous_plan_older", "same_input_other_split", "target_in_input"):
        assert f"\n{name} " in printed or printed.startswith(name)


def test_versions_of_trap_databases_have_no_finding(database_url: str, tmp_path: Path) -> None:
    seen = 0
    with contextlib.closing(connect(database_url)) as connection:
        for seed in range(7000, 7012):
            tables = traps.trap_database(seed)
            if not reference.build(tables, traps.START, traps.END)[0]:
                continue
            traps.load(connection, tables)
            build_dataset(database_url, small.config(tmp_path, date=f"s{seed}", max_excluded_share=1.0))
            assert findings(tmp_path / "planner" / f"s{seed}") == {}, seed
            seen += 1
    assert seen > 5


@pytest.mark.parametrize("name", versions.FILES)
def test_changed_file_is_a_finding_with_its_name(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    found = verify_version(str(folder))
    wrong = {line.name for line in found if line.result == "FINDING"}
    assert name in wrong and wrong <= {name, "schema" if name == versions.SCHEMA else name}
    told = {line.name: line.result for line in found}
    if name in (versions.TRAINING, versions.RECIPES):
        assert told["contract and leaks"] == "not run"
    else:
        assert told["target_in_input"] == "passed"
    (folder / name).unlink()
    assert "is missing" in findings(folder)[name]


def other_split(rows: list[Row]) -> None:
    row = of_home(rows)[0]
    row["split"] = next(split for split in SPLITS if split != row["split"])


def moved_household(rows: list[Row]) -> None:
    for row in of_home(rows):
        row["split"] = next(split for split in SPLITS if split != row["split"])


def time_reversed(rows: list[Row]) -> None:
    rows[5]["metadata"]["generated_at"] = rows[5]["metadata"]["timestamp"] + dt.timedelta(microseconds=1)


def own_plan_as_previous(rows: list[Row]) -> None:
    row = of_home(rows)[-1]
    row["input"]["previous_plan"] = row["target"]["accepted_plan"]


def later_plan_as_previous(rows: list[Row]) -> None:
    of_home(rows)[1]["input"]["previous_plan"] = of_home(rows)[3]["target"]["accepted_plan"]


def no_previous(rows: list[Row]) -> None:
    of_home(rows)[2]["input"]["previous_plan"] = None


def copied_household(rows: list[Row]) -> None:
    one, *_ = of_home(rows)
    other = next(row for row in rows if row["split"] != one["split"])
    for row in (one, other):
        row["input"]["pantry"] = {"items": [{"name": "rice", "quantity": 2.0, "unit": "kg"}]}
        row["input"]["previous_plan"] = None
        row["input"]["household"] |= {"size": 2, "preferences": [], "restrictions": []}


def event_id_in_pantry(rows: list[Row]) -> None:
    rows[3]["input"]["pantry"] = {"items": [{"name": f"x{rows[3]['metadata']['event_id'].upper()}x"}]}


def plan_id_in_preferences(rows: list[Row]) -> None:
    rows[3]["metadata"]["plan_id"] = "plan-2025-01"
    rows[3]["input"]["household"]["preferences"] = ["likes plan-2025-01"]


def plan_in_pantry(rows: list[Row]) -> None:
    days = ("monday", "tuesday", "friday")
    meals = [{"day": day, "recipe_id": f"r{n}", "servings": 2} for n, day in enumerate(days)]
    rows[3]["target"]["accepted_plan"] = {"meals": meals}
    rows[3]["input"]["pantry"] = {"items": [{"name": "Mon: DISH 'R0', Tue: dish 'r1'; Fri: Dish 'r2'."}]}


def out_of_order(rows: list[Row]) -> None:
    rows[1], rows[2] = rows[2], rows[1]


def doubled(rows: list[Row]) -> None:
    rows.insert(4, rows[4])


def unknown_recipe(rows: list[Row]) -> None:
    rows[0]["target"]["accepted_plan"]["meals"][0]["recipe_id"] = "gone"


def outside(rows: list[Row]) -> None:
    rows[-1]["metadata"]["timestamp"] = dt.datetime(2025, 1, 10, tzinfo=dt.UTC)


def null_mode(rows: list[Row]) -> None:
    rows[0]["input"]["mode"] = None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (other_split, {"one_split_per_household", "split_of_household"}),
        (moved_household, {"split_of_household"}),
        (time_reversed, {"generated_before_accepted", "previous_plan_older"}),
        (own_plan_as_previous, {"previous_plan_older"}),
        (later_plan_as_previous, {"previous_plan_older"}),
        (no_previous, {"previous_plan_older"}),
        (copied_household, {"same_input_other_split"}),
        (event_id_in_pantry, {"event_id_in_input"}),
        (plan_id_in_preferences, {"plan_id_in_input"}),
        (plan_in_pantry, {"target_in_input"}),
        (out_of_order, {"order"}),
        (doubled, {"event_ids_unique"}),
        (unknown_recipe, {"recipes_known"}),
        (outside, {"timestamps_in_window"}),
        (null_mode, {"no_nulls"}),
    ],
)
def test_each_leak_is_found(folder: Path, change: Callable[[list[Row]], None], names: set[str]) -> None:
    forge(folder, change)
    assert set(findings(folder)) == names


def test_food_that_is_called_like_some_dishes_is_no_leak(folder: Path) -> None:
    def change(rows: list[Row]) -> None:
        plan_in_pantry(rows)
        rows[3]["input"]["pantry"] = {"items": [{"name": "dish 'r0'"}, {"name": "dish 'r1'"}, {"name": "dish 'r22'"}]}

    forge(folder, change)
    assert findings(folder) == {}


def test_other_schema_or_row_count_is_a_finding(folder: Path) -> None:
    reseal(folder, rows=49)
    assert findings(folder) == {"rows": "48 rows, 49 promised"}
    table = pq.read_table(folder / versions.TRAINING)
    pq.write_table(table.append_column("more", pa.array(range(table.num_rows))), folder / versions.TRAINING)
    reseal(folder, rows=48)
    assert findings(folder) == {"schema": "1 differences from the contract: training.parquet"}


def test_verify_ends_with_one_where_it_finds_something_and_with_a_line_where_there_is_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(folder, other_split)
    assert main(["verify", str(folder)]) == 1
    assert "split_of_household" in capsys.readouterr().out
    (folder / versions.MANIFEST).write_text("{}")
    assert main(["verify", str(folder)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "manifest.json is not what a build writes" in told.err
    with pytest.raises(DatasetError, match="There is no dataset"):
        verify_version(str(tmp_path / "none"))
