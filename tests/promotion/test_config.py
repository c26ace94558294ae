from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from planner.promotion.config import PromoteConfig


def test_the_defaults_promote_the_candidate_and_make_no_variant() -> None:
    config = PromoteConfig()
    assert (config.allocation, config.experiment, config.model_version) == (0, None, None)
    assert config.config_defaults == {"temperature": 0.0, "max_tokens": 512}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"allocation": 0.1001, "experiment": "weekly"}, "allocation"),
        ({"allocation": -0.01}, "allocation"),
        ({"allocation": float("nan"), "experiment": "weekly"}, "allocation"),
        ({"allocation": 0.00005, "experiment": "weekly"}, "four decimals"),
        ({"allocation": 0.1}, "experiment"),
        ({"allocation": "a tenth", "experiment": "weekly"}, "allocation"),
        ({"model_name": "Planner Model"}, "model_name"),
        ({"model_name": "a' OR name LIKE '%"}, "model_name"),
        ({"model_version": "latest"}, "model_version"),
        ({"model_version": "0"}, "model_version"),
        ({"model_version": True}, "model_version"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"rollout": True}, "rollout"),
    ],
)
def test_a_wrong_value_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        PromoteConfig(**changes)


@pytest.mark.parametrize("allocation", [0.0001, 0.05, 0.1])
def test_shares_up_to_a_tenth_are_taken(allocation: float) -> None:
    assert PromoteConfig(allocation=allocation, experiment="weekly").allocation == allocation
