"""Versions on local disk: whole or not at all, never changed, and opened only when every byte is right."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from planner.contracts.errors import DatasetCheckError, DatasetError
from planner.dataset import publish, versions
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.read import iter_examples, read_catalogue
from planner.dataset.versions import open_version
from tests.dataset import small

PROJECT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from planner.dataset.build import build_dataset
from tests.dataset import small
def kill(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
build_dataset(sys.argv[1], small.config(sys.argv[2]), at_boundary=kill)
"""


@pytest.fixture
def filled(database_url: str) -> str:
    small.fill(database_url)
    return database_url


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "planner").glob(".*") if path.name != ".builders.lock")


def test_version_has_its_files_and_reads_back(filled: str, tmp_path: Path) -> None:
    report = build_dataset(filled, small.config(tmp_path))
    assert report.num_rows == small.ROWS == report.num_plans_seen and report.num_households == 12
    folder = tmp_path / "planner" / "v1"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*versions.FILES, versions.MANIFEST])
    version = open_version(str(folder))
    assert version == report.version and version.uri == str(folder)
    examples = list(iter_examples(version))
    assert len(examples) == small.ROWS and len(read_catalogue(version).recipes) == 8
    splits = {split: len(list(iter_examples(version, split=split))) for split in report.rows_by_split}
    assert splits == dict(report.rows_by_split) and sum(splits.values()) == small.ROWS
    with pytest.raises(DatasetError, match="no split 'dev'"):
        next(iter_examples(version, split="dev"))
    described = json.loads((folder / "schema.json").read_text())
    assert described["version"] == "v1" and described["created_at"].endswith("Z")
    household = described["fields"][0]["children"][0]["children"]
    assert [field["name"] for field in household if field.get("point_in_time") is False] == [
        "size", "preferences", "restrictions",
    ]  # fmt: skip
    summary = (folder / "dataset_summary.md").read_text()
    for part in ("**Rows**: 48", "Households: 12", "plan-first", "not_generated", "event_ids_unique", "Split `test`"):
        assert part in summary


def test_only_policy_versions_that_an_event_names_are_counted(filled: str, tmp_path: Path) -> None:
    for place, context, num, listed in (
        ("some", "CASE WHEN unit_id = 'home-1' THEN '{}'::jsonb ELSE context END", 1, "  - (none): 4 (8.3%)"),
        ("none", "'{}'::jsonb", 0, "  - (none): 48 (100.0%)"),
    ):
        small.run(filled, f"UPDATE exp.events SET context = {context}")
        folder = build_dataset(filled, small.config(tmp_path / place)).version.training_path.parent
        summary = (folder / versions.SUMMARY).read_text().splitlines()
        assert f"- Policy versions: {num}" in summary and listed in summary
        assert f"<dt>Policy versions</dt><dd>{num}</dd>" in (folder / versions.CARD).read_text()


def test_same_rows_are_unchanged_and_other_rows_are_refused(filled: str, tmp_path: Path) -> None:
    first = build_dataset(filled, small.config(tmp_path))
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "planner" / "v1").iterdir()}
    again = build_dataset(filled, small.config(tmp_path))
    assert again.unchanged and not first.unchanged and again.version == first.version
    small.run(filled, "DELETE FROM exp.events WHERE unit_id = 'home-3'")
    with pytest.raises(DatasetError, match="48 rows and digest .* then, 44 rows and digest") as caught:
        build_dataset(filled, small.config(tmp_path))
    assert first.version.digest in str(caught.value) and "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "planner" / "v1").iterdir()} == stamps
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", [*versions.FILES, versions.MANIFEST])
def test_missing_or_changed_file_is_named(filled: str, tmp_path: Path, name: str) -> None:
    build_dataset(filled, small.config(tmp_path / "a"))
    folder = tmp_path / "a" / "planner" / "v1"
    content = (folder / name).read_bytes()
    for position in range(0, len(content), max(1, len(content) // 6)):
        flipped = bytearray(content)
        flipped[position] ^= 4
        (folder / name).write_bytes(flipped)
        with pytest.raises(DatasetError, match=name):
            open_version(str(folder))
        with pytest.raises(DatasetError):
            build_dataset(filled, small.config(tmp_path / "a"))
    (folder / name).unlink()
    with pytest.raises(DatasetError, match=f"incomplete: {name} is missing"):
        open_version(str(folder))


def test_a_home_is_the_users(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    version = build_dataset(filled, small.config("~/datasets")).version
    assert version.uri == str(tmp_path / "datasets" / "planner" / "v1")
    assert open_version("~/datasets/planner/v1") == version
    assert small.config("s3://bucket/~/x").datasets == "s3://bucket/~/x"


def test_missing_folder_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no dataset at .*build_dataset"):
        open_version(str(tmp_path / "nothing"))


@pytest.mark.parametrize("boundary", [*versions.FILES, versions.MANIFEST, "published"])
def test_killed_build_leaves_nothing_or_a_whole_version(filled: str, tmp_path: Path, boundary: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, filled, str(tmp_path), boundary], cwd=PROJECT, check=False)
    assert killed.returncode == -9
    if boundary == "published":
        assert open_version(str(tmp_path / "planner" / "v1")).num_rows == small.ROWS
    else:
        with pytest.raises(DatasetError):
            open_version(str(tmp_path / "planner" / "v1"))
        assert hidden(tmp_path) != []
    digest = build_dataset(filled, small.config(tmp_path)).version.digest
    assert hidden(tmp_path) == []
    assert build_dataset(filled, small.config(tmp_path / "clean")).version.digest == digest


def test_a_living_builder_keeps_its_folder(filled: str, tmp_path: Path) -> None:
    with publish.working_folder(tmp_path / "planner", "v1") as living:
        (living / "training.parquet").write_bytes(b"half")
        report = build_dataset(filled, small.config(tmp_path))
        assert (living / "training.parquet").read_bytes() == b"half"
        assert not publish.publish_folder(living, report.version.training_path.parent)
    assert hidden(tmp_path) == [] and open_version(report.version.uri) == report.version


def test_version_that_another_request_gives_too_keeps_its_parameters_and_its_name(filled: str, tmp_path: Path) -> None:
    first = build_dataset(filled, small.config(tmp_path))
    again = build_dataset(filled, small.config(tmp_path, min_rows=3))
    assert again.unchanged and "keeps the parameters of its build: min_rows 1 then, 3 now" in again.warnings[0]
    assert again.version.manifest == first.version.manifest
    (tmp_path / "planner" / "v1").rename(tmp_path / "planner" / "copy")
    with pytest.raises(DatasetError, match="holds the version v1 under another name"):
        build_dataset(filled, small.config(tmp_path, date="copy"))


@pytest.mark.parametrize("other_rows", [False, True])
def test_of_two_builders_at_once_one_wins(filled: str, tmp_path: Path, other_rows: bool) -> None:
    gate = threading.Barrier(2, timeout=60)
    statement = "DELETE FROM exp.events WHERE unit_id = 'home-3'"

    def build(number: int) -> BuildReport | DatasetError:
        def at_boundary(name: str) -> None:
            if name == versions.TRAINING and number == 0:
                gate.wait()  # its rows are read, the other one's are not
            if name == versions.MANIFEST:
                gate.wait()

        if number:
            gate.wait()
            if other_rows:
                small.run(filled, statement)
        try:
            return build_dataset(filled, small.config(tmp_path), at_boundary=at_boundary)
        except DatasetError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(build, range(2)))
    reports = [end for end in ended if isinstance(end, BuildReport)]
    errors = [str(end) for end in ended if isinstance(end, DatasetError)]
    winner = open_version(str(tmp_path / "planner" / "v1"))
    assert {report.version.digest for report in reports} == {winner.digest} and hidden(tmp_path) == []
    if other_rows:
        assert len(reports) == 1 and "exists at" in errors[0] and "with other rows" in errors[0]
    else:
        assert sorted(report.unchanged for report in reports) == [False, True] and not errors


def test_failing_check_publishes_nothing_unless_it_is_a_warning(filled: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetCheckError, match="min_rows: 48 rows, at least 100 wanted"):
        build_dataset(filled, small.config(tmp_path, min_rows=100))
    assert list((tmp_path / "planner").glob("[!.]*")) == [] and hidden(tmp_path) == []
    report = build_dataset(filled, small.config(tmp_path, min_rows=100, checks={"min_rows": "warn"}))
    assert [check.name for check in report.checks if not check.passed] == ["min_rows"]
    assert "| min_rows | warning |" in (report.version.training_path.parent / "dataset_summary.md").read_text()


def test_too_many_exclusions_fail_and_are_counted(filled: str, tmp_path: Path) -> None:
    small.run(filled, "DELETE FROM households WHERE id = 'home-1'")
    lost = "unit_id = 'home-2' AND event_type = 'plan_generated'"
    small.run(filled, f"UPDATE exp.events SET payload = 'null' WHERE {lost}")
    with pytest.raises(DatasetCheckError, match="8 of 48 .*not_generated 4, unknown_household 4"):
        build_dataset(filled, small.config(tmp_path))
    report = build_dataset(filled, small.config(tmp_path, max_excluded_share=0.2))
    assert report.num_rows == 40 and report.exclusions["not_generated"] == 4
    assert list(report.notes.values()) == [4]
    manifest = open_version(report.version.uri).manifest
    assert manifest["exclusions"] == report.exclusions and manifest["num_plans_seen"] == 48


def test_empty_window_names_the_range_that_there_is(filled: str, tmp_path: Path) -> None:
    window = {"start_date": "2020-01-01", "end_date": "2020-02-01"}
    with pytest.raises(DatasetError, match="exist from 2025-01-04 to 2025-01-07"):
        build_dataset(filled, small.config(tmp_path, **window))
    small.run(filled, "TRUNCATE exp.events")
    with pytest.raises(DatasetError, match="no accepted plans at all"):
        build_dataset(filled, small.config(tmp_path, **window))


def test_place_that_cannot_be_written_is_named_before_the_work(filled: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="datasets folder .*/file/planner cannot be written"):
        build_dataset("postgresql://nobody@/nowhere?host=/nonexistent", small.config(tmp_path / "file"))
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner" / "v1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="in the way"):
        build_dataset(filled, small.config(tmp_path))


def test_full_disk_is_a_clear_error_and_leaves_nothing(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("planner.dataset.gather.write_training", full)
    with pytest.raises(DatasetError, match=f"{tmp_path}/planner cannot be written: No space left"):
        build_dataset(filled, small.config(tmp_path))
    assert hidden(tmp_path) == []


def test_progress_that_nobody_reads_is_not_taken_for_a_full_disk(database_url: str, tmp_path: Path) -> None:
    small.fill(database_url)

    def told(done: int, total: int | None, what: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        build_dataset(database_url, small.config(tmp_path), progress=told)
    assert not [path for path in (tmp_path / "planner").iterdir() if path.is_dir()]


def test_version_can_be_moved(filled: str, tmp_path: Path) -> None:
    report = build_dataset(filled, small.config(tmp_path))
    shutil.move(tmp_path / "planner" / "v1", tmp_path / "elsewhere")
    assert open_version(str(tmp_path / "elsewhere")).digest == report.version.digest
