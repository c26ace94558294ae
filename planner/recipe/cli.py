"""Commands beside the MLproject entry points: `python -m planner show-config`.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import sys

import yaml

from planner.contracts.errors import PlannerError
from planner.recipe.config import ResolvedConfig, load_config


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m planner", description="Look at the recipe.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show-config", help="print every value of the recipe with the file it came from")
    show.add_argument("--profile", default="local")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="as a parameter, e.g. train.lr=1e-3")
    parsed = parser.parse_args(arguments)
    try:
        print(describe(load_config(parsed.profile, dict(_pair(text) for text in parsed.overrides))))
    except PlannerError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def describe(config: ResolvedConfig) -> str:
    """Every value, one `key: value  # source` a line, in the order of the recipe."""
    lines = [f"# profile {config.profile}"]
    for key, value in config.values().items():
        shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).splitlines()[0]
        lines.append(f"{f'{key}: {shown}':<60}  # {config.sources[key]}")
    return "\n".join(lines)


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value
