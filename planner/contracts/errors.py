"""Every error that bad input can cause: one line that says what happened, where, and what to do next.

The command line prints the message alone and exits with `exit_code`; `--debug` adds the traceback.
"""

from __future__ import annotations


class PlannerError(Exception):
    """Bad input or a broken surrounding; carries its facts as attributes.

    Args:
        message: one line: what happened, where, what to do next. Never holds a secret.
        facts: the values that the message speaks of; each becomes an attribute.
    """

    exit_code = 1

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)


class ConfigError(PlannerError):
    """A profile, key or value of the configuration is wrong."""


class EnvironmentMismatchError(PlannerError):
    """The installed packages are not the pinned ones."""


class ContractError(PlannerError):
    """A request, plan or row breaks the data contract; names the field."""


class CatalogueError(ContractError):
    """The recipe catalogue cannot be used: duplicate titles, no active recipe, …"""


class DatabaseError(PlannerError):
    """The database cannot be reached, read or written."""


class EmbeddedServerError(DatabaseError):
    """The embedded PostgreSQL server cannot be started."""


class DatasetError(PlannerError):
    """A dataset version cannot be built, found or trusted."""


class DatasetCheckError(DatasetError):
    """A quality check of a build failed; nothing was published."""


class BaseModelError(PlannerError):
    """A base model is unknown, cannot be fetched, or is not what its hash says."""


class TrainingError(PlannerError):
    """Training cannot start or go on."""


class ModelError(PlannerError):
    """A registered model version is missing, incomplete or changed since it was registered."""


class ReplayError(PlannerError):
    """An offline replay cannot be run as asked."""


class PromotionError(PlannerError):
    """A version may not be promoted; says why."""


class TrackingError(PlannerError):
    """The MLflow store or registry cannot be reached or used."""


def shown(value: object) -> str:
    """A value for a message: its text, cut to 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
