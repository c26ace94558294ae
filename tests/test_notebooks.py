"""The notebooks hold no output, and the one that reads a replay works on a replay's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planner.contracts.gate import SCORES
from planner.contracts.schema import PLAN, TRAINING_SCHEMA

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_compiles_and_holds_no_output(path: Path) -> None:
    assert cells(path)
    for cell in cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        compile("".join(cell["source"]), path.name, "exec")


@pytest.fixture
def replay(tmp_path: Path) -> Path:
    """Four replayed requests of three households, and the dataset version that they come from."""
    plan = {"meals": [{"day": "monday", "recipe_id": "a", "servings": 2}]}
    examples, rows = [], []
    for number in range(4):
        household = {"id": f"h{number % 3}", "size": None if number == 3 else 2, "preferences": [], "restrictions": []}
        examples.append(
            {
                "input": {"household": household, "workflow_type": "plan-first", "mode": "autopilot"},
                "target": {"accepted_plan": plan, "user_edits": []},
                "metadata": {"event_id": f"e{number}", "region": "north" if number else None},
                "split": "test",
            }
        )
        scores = {name: number / 4 for name in SCORES} | {f"baseline_{name}": 0.5 for name in SCORES}
        plans = {"predicted_plan": plan, "accepted_plan": plan, "predicted_edits": 0, "actual_edits": 1}
        ids = {"event_id": f"e{number}", "household_id": f"h{number % 3}"}
        rows.append({**ids, **plans, **scores, "violations": [], "feasible": number != 2})
    pq.write_table(pa.Table.from_pylist(examples, schema=TRAINING_SCHEMA), tmp_path / "training.parquet")
    table = pa.Table.from_pylist(rows)
    fields = {"predicted_plan": PLAN, "accepted_plan": PLAN, "violations": pa.list_(pa.string())}
    schema = pa.schema([field.with_type(fields.get(field.name, field.type)) for field in table.schema])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "rows.parquet")
    return tmp_path


def test_the_notebook_on_replays_reads_rows_segments_and_the_worst(
    replay: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Recipe:
        def inspect(self, step: str) -> dict[str, Any]:
            return {"run_id": "r1", "outputs": {"dataset": str(replay)}}

        def get_artifact(self, step: str, path: str) -> Path:
            return Path(shutil.copy(replay / Path(path).name, replay / "fetched.parquet"))

    names: dict[str, Any] = {"recipe": Recipe()}
    for cell in cells(FOLDER / "02_read_replay.ipynb")[2:]:
        exec(compile("".join(cell["source"]), "02_read_replay", "exec"), names)
    assert "4 requests of 3 households" in capsys.readouterr().out
    assert list(names["worst"].event_id) == ["e0", "e1", "e2", "e3"]
    assert list(names["worst"].loss) == [0.5, 0.25, 0.0, -0.25]
    assert isinstance(names["joined"], pd.DataFrame) and names["joined"].region.isna().sum() == 1
    by_segment = names["by_segment"]
    assert by_segment.loc["mode", "autopilot"]["rows"] == 4
    assert by_segment.loc["region"].sort_values("rows")["rows"].to_list() == [1, 3]
    assert by_segment.loc["region", "north"]["leftovers_score"] == pytest.approx(0.0)
    assert names["compare"](names["rows"])["diversity_score"] == pytest.approx(-0.125)
