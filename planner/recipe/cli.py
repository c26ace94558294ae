"""Commands beside the MLproject entry points: `python -m planner show-config`, `export`, `requests`, `verify`.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from planner.contracts.errors import PlannerError
from planner.dataset.output import reader_may_leave
from planner.recipe.config import ResolvedConfig, load_config

# What each command takes beside overrides, and what it is for.
COMMANDS = {
    "show-config": ("", "print every value of the recipe with the file it came from"),
    "export": ("folder", "write a version's merged weights, adapter and handles for another engine, e.g. vLLM"),
    "requests": ("file", "write what an outside planner is asked: one JSON line a row of dataset and split"),
    "verify": ("file", "verify an outside planner's answers, .jsonl or .parquet; exit 1 if anything is wrong"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m planner", description="Look at the recipe.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (path, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--profile", default="local")
        if path:
            command.add_argument(path, type=Path)
        command.add_argument("overrides", nargs="*", type=_pair, metavar="name=value", help="e.g. train.lr=1e-3")
    parsed = parser.parse_args(arguments)
    try:
        config = load_config(parsed.profile, dict(parsed.overrides))
        lines, good = _run(parsed, config)
        with reader_may_leave():
            print("\n".join(lines))
        return 0 if good else 1
    except PlannerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


def _run(parsed: argparse.Namespace, config: ResolvedConfig) -> tuple[list[str], bool]:
    """What to print, and whether all is well."""
    if parsed.command == "show-config":
        return describe(config).splitlines(), True
    from planner.recipe import outside

    if parsed.command == "export":
        return outside.export(config, parsed.folder), True
    if parsed.command == "requests":
        return outside.requests(config, parsed.file), True
    report, lines = outside.verify(config, parsed.file)
    return lines, report.clean


def describe(config: ResolvedConfig) -> str:
    """Every value, one `key: value  # source` a line, in the order of the recipe."""
    lines = [f"# profile {config.profile}"]
    for key, value in config.values().items():
        shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).splitlines()[0]
        lines.append(f"{f'{key}: {shown}':<60}  # {config.sources[key]}")
    return "\n".join(lines)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} sets nothing: write name=value, such as train.lr=1e-3")
    return name, value
