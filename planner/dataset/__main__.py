"""Commands for dataset versions: `python -m planner.dataset list | show | verify | diff`.

Data goes to stdout, everything else to stderr. Exit code 1: an error, or a finding of `verify`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from planner.contracts.errors import PlannerError
from planner.dataset.diff import Changes, DatasetDiff, diff_versions
from planner.dataset.listing import list_versions
from planner.dataset.output import reader_may_leave
from planner.dataset.verify import verify_version
from planner.dataset.versions import SUMMARY, open_version

_LEAST_SHIFT = 0.001  # shares move by less from one day to the next
_MOST_LABELS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    code: int = 0
    try:
        with reader_may_leave():
            code = parsed.run(parsed)
        return code
    except PlannerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m planner.dataset", description="Look at dataset versions.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, places in (
        ("list", _list, {"root": "folder or s3:// address that holds planner/<version>/"}),
        ("show", _show, {"uri": "folder or s3:// address of a version"}),
        ("verify", _verify, {"uri": "folder or s3:// address of a version"}),
        ("diff", _diff, {"before": "a version", "after": "another one"}),
    ):
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        for place, description in places.items():
            command.add_argument(place, help=description)
    return parser


def _list(options: argparse.Namespace) -> int:
    """List the versions of a datasets folder, unfinished ones too."""
    found = list_versions(options.root)
    rows = [
        (
            entry.name,
            "" if entry.num_rows is None else f"{entry.num_rows:,}",
            entry.digest or "",
            entry.window or "",
            entry.created_at or "",
            entry.problem or "whole",
        )
        for entry in found
    ]
    _print_table(("version", "rows", "digest", "window (end exclusive)", "created", "state"), rows)
    return 0


def _show(options: argparse.Namespace) -> int:
    """Verify the hashes of a version and print its summary."""
    version = open_version(options.uri)
    _print(f"{version.uri}\ndigest {version.digest}, built {version.manifest['created_at']}, hashes verified\n")
    _print((version.training_path.parent / SUMMARY).read_text(encoding="utf-8"))
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Check every hash, the contract and leaks; exit code 1 on a finding."""
    found = verify_version(options.uri)
    _print_table(("check", "result", "detail"), [(line.name, line.result, line.detail) for line in found])
    findings = sum(line.result == "FINDING" for line in found)
    _print(f"\n{options.uri}: {findings} findings in {len(found)} checks")
    return 1 if findings else 0


def _diff(options: argparse.Namespace) -> int:
    """Compare two versions: rows, recipes, parameters, distributions."""
    before, after = open_version(options.before), open_version(options.after)
    for label, version in (("A", before), ("B", after)):
        _print(f"{label}  {version.uri}  {version.num_rows:,} rows, digest {version.digest}")
    for line in _diff_lines(diff_versions(before, after)):
        _print(line)
    return 0


def _diff_lines(diff: DatasetDiff) -> Iterable[str]:
    for name, (old, new) in diff.parameters.items():
        yield f"parameter {name}: {old} -> {new}"
    yield from _change_lines("rows", diff.rows)
    if diff.changed_parts:
        yield "  changed in: " + ", ".join(f"{part} {count:,}" for part, count in diff.changed_parts.items())
    yield from _change_lines("recipes", diff.recipes)
    yield "shares of A -> B (distance: half the sum of all shifts)"
    for name, shifts in diff.shifts.items():
        yield f"  {name}: distance {diff.distances[name]:.4f}"
        moved = [shift for shift in shifts if abs(shift.after - shift.before) >= _LEAST_SHIFT]
        for shift in moved[:_MOST_LABELS]:
            yield f"    {shift.label[:40]:<40} {shift.before:7.2%} -> {shift.after:7.2%}"
        if len(moved) > _MOST_LABELS:
            yield f"    and {len(moved) - _MOST_LABELS} more that moved by {_LEAST_SHIFT:.1%} or more"


def _change_lines(what: str, changes: Changes) -> Iterable[str]:
    kinds = {"added": changes.added, "removed": changes.removed, "changed": changes.changed, "the same": changes.same}
    yield f"{what}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    for kind, samples in changes.samples.items():
        if samples:
            more = ", …" if kinds[kind] > len(samples) else ""
            yield f"  {kind}: {', '.join(samples)}{more}"


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head) - 1)]
    for row in (head, *rows):
        _print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))


def _print(text: str) -> None:
    """Names and labels come from data: a terminal must not obey them."""
    print("".join(character if character.isprintable() or character == "\n" else "�" for character in text))


if __name__ == "__main__":
    sys.exit(main())
