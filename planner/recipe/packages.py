"""The installed packages against the pins of `pyproject.toml`; imports nothing but the standard library."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from planner.contracts.errors import EnvironmentMismatchError

PROJECT = Path(__file__).resolve().parents[2]


def check_packages(project: Path = PROJECT) -> None:
    """Compare the installed packages with the pins of `pyproject.toml`.

    MLflow caches an environment by its file's text and goes on with one whose installation was killed, so a run
    checks for itself.

    Raises:
        EnvironmentMismatchError: names the packages that differ and how to get them right.
    """
    wrong = []
    for pin in pinned_packages(project):
        name, _, wanted = pin.partition("==")
        bare = re.sub(r"\[.*\]", "", name)
        try:
            found = importlib.metadata.version(bare)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found.partition("+")[0] != wanted:
            wrong.append(f"{bare} is {found}, not {wanted}")
    if wrong:
        raise EnvironmentMismatchError(
            f"The Python environment is not the pinned one: {'; '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}. "
            "Run `python3.11 start.py setup` and use .venv, or delete MLflow's cached environment and run again.",
            wrong=tuple(wrong),
        )


def pinned_packages(project: Path = PROJECT) -> list[str]:
    """The pins of `pyproject.toml`, as `name==version`."""
    with (project / "pyproject.toml").open("rb") as file:
        pins = tomllib.load(file)["project"]["dependencies"]
    return [str(pin) for pin in pins]
