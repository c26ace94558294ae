"""The options of the train step: every value that decides what is learned, checked before any work.

In: the `train` section of `recipe.yaml`. Out: a frozen `TrainConfig`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_serializer, model_validator

from planner.contracts.options import Minutes, Name, Number, Whole


class DayLimits(BaseModel):
    """Minutes by weekday; a day without a limit is left out when it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    monday: Minutes | None = None
    """Most minutes of a dish on this day; 0 leaves the day free, null sets no limit."""
    tuesday: Minutes | None = None
    """As Monday."""
    wednesday: Minutes | None = None
    """As Monday."""
    thursday: Minutes | None = None
    """As Monday."""
    friday: Minutes | None = None
    """As Monday."""
    saturday: Minutes | None = None
    """As Monday."""
    sunday: Minutes | None = None
    """As Monday."""

    @model_serializer
    def by_day(self) -> dict[str, int]:
        """The days that have a limit."""
        return {day: minutes for day, minutes in self if minutes is not None}


class TrainConfig(BaseModel):
    """What the train step does; defaults are those of the local profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: StrictStr | None = None
    """Folder or `s3://` URI of a dataset version; null takes the version that this run built."""
    model_base: StrictStr = Field("smollm2-135m", min_length=1)
    """Name of the base model, or a hub name, or a local folder."""
    model_name: Name = "planner_model"
    """Registered model that the result becomes a version of."""
    epochs: Whole = Field(3, ge=1, le=1000)
    """Passes over the training rows; the best one by validation loss is kept."""
    lr: Number = Field(1e-3, gt=0, lt=1)
    """Peak learning rate of AdamW. A text that is a number (`1e-04`) is taken as that number."""
    batch_size: Whole = Field(8, ge=1)
    """Rows per optimizer step. They are split over several forward passes by `micro_batch_tokens`."""
    micro_batch_tokens: Whole | None = Field(896, ge=1)
    """Most tokens in one forward pass; memory grows with it, the loss is the same. One row alone may exceed it. Null
    takes what the memory allows, 4,096 at most."""
    gradient_checkpointing: StrictBool | None = None
    """Compute activations again in the backward pass instead of keeping them: a tenth of the memory, a third more time.
    Null does so where the memory has no room for passes of 2,048 tokens otherwise."""
    memory_gib: Number | None = Field(None, gt=0)
    """Most memory in GiB that the run may plan with, and on a GPU use; null means all of a GPU, no limit on a CPU."""
    quantize_base: StrictBool = False
    """Hold the frozen base in 4 bits (QLoRA): a third of its memory. Needs an NVIDIA GPU and the extra `qlora`."""
    loss: Literal["catalogue", "text"] = "catalogue"
    """`catalogue`: the loss of a token is among those that may stand there, as the decoder chooses; `text`: among the
    whole vocabulary, for a model that others decode freely."""
    decide: Literal["dish", "token"] = "dish"
    """What the registered version decides at a time: the likeliest dish as a whole, or the likeliest token (greedy)."""
    beam: Whole = Field(1, ge=1, le=64)
    """Plans that the registered version follows at a time with `decide: dish`; 1 follows the likeliest."""
    repeats: StrictBool = False
    """Whether a dish may stand twice in a plan of the registered version."""
    max_prep_time_by_day: DayLimits = DayLimits()
    """Minutes that a dish of the registered version may take on a weekday, beside the household's own limit; a dish of
    unknown prep time is out on such a day. No request can carry it, so it is one rule for all households."""
    lora_r: Whole = Field(16, ge=1, le=1024)
    """Rank of the adapter."""
    lora_alpha: Number = Field(32, gt=0)
    """Scale of the adapter; what it adds is multiplied by `lora_alpha / lora_r`."""
    lora_dropout: Number = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is dropped in training, never in validation."""
    target_modules: tuple[StrictStr, ...] = Field(("q_proj", "v_proj"), min_length=1)
    """Linear modules of the base that get an adapter."""
    max_examples: Whole | None = Field(None, ge=1)
    """Most training rows, chosen by a stable hash of the event id; null takes all."""
    max_validation_examples: Whole | None = Field(64, ge=1)
    """Most validation rows, chosen likewise; they are scored before the first epoch and after each."""
    max_tokens: Whole = Field(1024, ge=2)
    """Longest row, prompt and target together. A longer one is left out whole and counted, never cut."""
    max_overlong_share: Number = Field(0.01, ge=0, le=1)
    """Share of rows that may be longer than `max_tokens`; more than that fails the step before it trains."""
    warmup_share: Number = Field(0.05, ge=0, lt=1)
    """Share of the optimizer steps in which the learning rate rises to `lr`; it then falls to 0 along a cosine."""
    weight_decay: Number = Field(0.0, ge=0)
    """AdamW's weight decay, on the adapter's weights alone."""
    max_grad_norm: Number = Field(1.0, gt=0)
    """Longest gradient (L2 norm over the whole adapter); a longer one is scaled down to it."""
    patience: Whole | None = Field(None, ge=1)
    """Stop after so many epochs in a row without a better validation loss; null never stops early."""
    checkpoints: StrictStr | None = None
    """Folder of the runs and their checkpoints, or an `s3://bucket/prefix` that gets copies of them, so that another
    machine can go on; null takes `training/` in the working folder."""
    checkpoint_every: Whole = Field(25, ge=1)
    """Optimizer steps between two checkpoints; each epoch ends with one as well."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU where there is one, cuda fails without."""
    seed: Whole = Field(0, ge=0, lt=2**63)
    """Decides the adapter's first weights, the rows chosen, their order and the dropout."""
    num_processes: Whole = Field(1, ge=1)
    """Processes that share each step's rows, started by `accelerate launch`: one a GPU. The result is the same but for
    rounding."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp`: several processes split the base's layers among themselves and gather one at a time; `none`: each holds
    all of them. The result is the same."""
    num_threads: Whole | None = Field(None, ge=1)
    """CPU threads while training; null leaves what PyTorch has chosen."""
    embed_base: StrictBool = False
    """Store the base's weights inside the registered model, so that serving needs no download."""

    @model_validator(mode="after")
    def _check_beam(self) -> Self:
        if self.beam > 1 and self.decide != "dish":
            raise ValueError(f"a beam of {self.beam} is one over dishes: set decide to dish, or beam to 1")
        return self
