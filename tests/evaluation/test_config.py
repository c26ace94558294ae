from __future__ import annotations

import pytest
from pydantic import ValidationError

from planner.evaluation.config import EvaluateConfig


def test_texts_of_a_command_line_and_numbers_of_yaml_are_read() -> None:
    config = EvaluateConfig.model_validate({"sample_size": "200", "model_version": 3, "baseline_version": "2"})
    assert (config.sample_size, config.model_version, config.baseline_version) == (200, "3", "2")
    assert config.min_households == 60 and config.split == "test" and not config.asks_for_training_rows
    assert EvaluateConfig(split="train").asks_for_training_rows


@pytest.mark.parametrize(
    "values",
    [
        {"sample_size": 0}, {"sample_size": "many"}, {"sample_size": 1.5}, {"sample_size": True}, {"split": "all"},
        {"model_version": "latest"}, {"model_version": 0}, {"model_name": "../x"}, {"batch_size": 0}, {"colour": 1},
        {"max_catalogue_difference": 1.5}, {"max_catalogue_difference": "a tenth"}, {"dataset": ""},
    ],
)  # fmt: skip
def test_a_wrong_value_or_an_unknown_key_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluateConfig.model_validate(values)
