"""The types of options that several steps have, so that each of them reads and refuses the same texts.

In: what YAML or a command line gives. Out: pydantic types for the steps' configs.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, StringConstraints

NAME_PATTERN = r"[a-z0-9][a-z0-9_.-]{0,63}"


def _number(value: Any) -> Any:
    """Read a number that arrived as text: YAML 1.1 gives `1e-4` as text, a command line gives nothing else."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("a number is needed, such as 0.0001 or 1e-4") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    return value


def _whole(value: Any) -> Any:
    """Read a whole number that a command line gave as text; anything else is left to the type check."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


def _version(value: Any) -> Any:
    """Read a version number that YAML gave as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[StrictFloat, BeforeValidator(_number)]
Whole = Annotated[StrictInt, BeforeValidator(_whole)]
Minutes = Annotated[StrictInt, BeforeValidator(_whole), Field(ge=0)]
Name = Annotated[str, StringConstraints(strict=True, pattern=f"^{NAME_PATTERN}$")]
"""Name of a model, a policy or a dataset version."""
Version = Annotated[str, StringConstraints(strict=True, pattern=r"^[1-9][0-9]{0,9}$"), BeforeValidator(_version)]
"""Number of a version of a registered model, as text."""
