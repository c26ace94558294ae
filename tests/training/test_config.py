from __future__ import annotations

import pytest
from pydantic import ValidationError

from planner.training.config import TrainConfig


def test_learning_rate_given_as_text_is_taken_as_that_number():
    assert TrainConfig(lr="1e-04").lr == 1e-4
    assert TrainConfig(lr=" 0.002 ").lr == 0.002
    assert TrainConfig(epochs="3").epochs == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", "fast"),
        ("lr", "1e-4 or so"),
        ("lr", 0),
        ("lr", 1),
        ("lr", True),
        ("lr", "nan"),
        ("lr", None),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "1.5"),
        ("epochs", "three"),
        ("epochs", True),
        ("batch_size", 0),
        ("lora_r", 0),
        ("lora_dropout", 1),
        ("warmup_share", 1),
        ("max_overlong_share", 1.1),
        ("max_grad_norm", 0),
        ("max_examples", 0),
        ("patience", 0),
        ("target_modules", ()),
        ("model_name", "../planner"),
        ("embed_base", "yes"),
        ("learning_rate", 1e-3),
    ],
)
def test_a_wrong_value_is_refused_by_name(field, value):
    with pytest.raises(ValidationError) as error:
        TrainConfig(**{field: value})
    assert error.value.errors()[0]["loc"][0] == field


def test_error_for_a_text_that_is_no_number_says_what_is_needed():
    with pytest.raises(ValidationError, match=r"a number is needed, such as 0\.0001 or 1e-4"):
        TrainConfig(lr="fast")


def test_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        TrainConfig().lr = 0.1


def test_lists_from_yaml_become_target_modules():
    assert TrainConfig(target_modules=["q_proj"]).target_modules == ("q_proj",)


def test_beam_over_tokens_is_refused_with_what_to_do():
    assert TrainConfig(beam="3").beam == 3
    with pytest.raises(ValidationError, match="a beam of 3 is one over dishes: set decide to dish, or beam to 1"):
        TrainConfig(beam=3, decide="token")
