"""What the step scripts share: options, the check of the environment, and one line instead of a traceback.

Only the standard library is imported before the environment is known to be right.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn


def parse(options: Sequence[str], *, description: str | None) -> argparse.Namespace:
    """Options of a step; empty texts mean "from recipe and profile"."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--profile", default="local")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for option in options:
        parser.add_argument(f"--{option}", default="")
    return parser.parse_args()


def prepare() -> None:
    """Refuse to work in an environment that is not the pinned one; keep libraries quiet and off the network."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning take the cores from the others: several times slower on a shared machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from planner.recipe.packages import check_packages
    except ModuleNotFoundError as error:
        sys.exit(f"The package {error.name!r} is missing. Run `python3.11 start.py setup` and use .venv/bin/mlflow.")
    check_packages()
    from planner.recipe.parents import remember_parents

    remember_parents()  # now: importing the rest takes seconds, in which `mlflow run` may be killed


@contextlib.contextmanager
def guarded(arguments: argparse.Namespace) -> Iterator[None]:
    """Print the one line of a known error and exit with its code; `--debug` adds the traceback."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        _fail(error, debug=arguments.debug or bool(os.environ.get("PLANNER_DEBUG")))


def run_step(step: str, options: Sequence[str], *, description: str | None) -> None:
    """Run one step of the recipe in its MLflow run and print its table."""
    arguments = parse(options, description=description)
    with guarded(arguments):
        prepare()
        from planner.recipe.runner import run_single

        run_single(step, arguments.profile, {f"{step}.{name}": getattr(arguments, name) for name in options})


def _fail(error: BaseException, *, debug: bool) -> NoReturn:
    from planner.contracts.errors import PlannerError

    if debug:
        traceback.print_exc()
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    if type(error).__name__ == "Terminated":
        print("Stopped by a signal. Run the same command again to go on.", file=sys.stderr)
        sys.exit(143)
    kind = type(error).__name__
    hint = "" if isinstance(error, PlannerError) else " Run with PLANNER_DEBUG=1 for the traceback."
    text = " ".join(str(error).split())
    print(f"{kind}: {text}{hint}", file=sys.stderr)
    sys.exit(error.exit_code if isinstance(error, PlannerError) else 1)
