"""The processes that started this one, remembered before anything slow is imported, so that their death is noticed.

In: nothing. Out: whether the `mlflow run` above us still lives. SIGTERM and kill -9 of `mlflow run` reach it alone, and
its step would go on for nobody.
"""

from __future__ import annotations

import os

import psutil

LAUNCHER = "accelerate.commands.launch"  # stands between a training's processes and what started them
_SHELLS = frozenset({"bash", "sh", "dash", "zsh", "cmd.exe"})
_remembered: list[psutil.Process] = []


def remember_parents() -> None:
    """Note the process that started us, and the one above the shells in between; the first call counts."""
    if _remembered:
        return
    for parent in psutil.Process().parents():
        _remembered.append(parent)
        if process_name(parent) not in _SHELLS and LAUNCHER not in _command(parent):
            return


def parents_are_gone() -> bool:
    """Whether one of them has ended, or had ended before they were noted: then init stands in its place."""
    remember_parents()
    if not _remembered or os.getppid() != _remembered[0].pid:
        return True
    top = _remembered[-1]
    if top.pid == 1 and not any(word in part for part in _command(top)[:2] for word in ("python", "mlflow")):
        return True
    return not all(_lives(parent) for parent in _remembered)


def process_name(process: psutil.Process) -> str:
    """Name of a process, empty once it is gone."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        # One that has ended stays listed until its own parent asks for it.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
