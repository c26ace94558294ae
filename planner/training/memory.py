"""Where the memory of a training run goes, found before it starts, and how many tokens a forward pass may hold for it.

In: a base's configuration, the options and a budget. Out: a `MemoryPlan`. The activations are no formula: one forward
and backward pass of the base with its adapter runs at its real shape on PyTorch's meta device, where tensors have no
bytes, and the most that lives at once is counted.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from planner.contracts.errors import TrainingError
from planner.training.adapter import adapted, trainable
from planner.training.config import TrainConfig
from planner.training.fused_modules import fused
from planner.training.loss import CHUNK

GIB = 2**30
MOST_TOKENS = 4096  # of a forward pass; matrices are large enough by then, and more only costs memory
ENOUGH_TOKENS = 2048  # with room for fewer, activations are recomputed
SPARE = 0.08  # of the budget: what the allocator cannot use of what it holds
CONTEXT = {"cuda": GIB}  # the CUDA context with its kernels
_COUNTED = "planner_counted"
_NUM_TOKENS = 512  # of the counted pass; all that grows, grows with the tokens


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process, at the moment of its peak.

    `adapter` holds weights and gradients in fp32, `optimizer` Adam's two moments; `budget` is None where there is no
    limit. `micro_batch_tokens` is the most tokens of a forward pass, a longer single row apart.
    """

    budget: int | None
    weights: int
    adapter: int
    optimizer: int
    logits: int
    context: int
    bytes_per_token: int
    micro_batch_tokens: int
    gradient_checkpointing: bool

    @property
    def activations(self) -> int:
        """Activations and their gradients in a full forward pass."""
        return self.bytes_per_token * self.micro_batch_tokens

    @property
    def total(self) -> int:
        """Everything together."""
        return self.weights + self.adapter + self.optimizer + self.logits + self.context + self.activations

    def __str__(self) -> str:
        parts = ("weights", "adapter", "optimizer", "activations", "logits", "context")
        sizes = ", ".join(f"{part} {_size(getattr(self, part))}" for part in parts if getattr(self, part))
        how = "recomputed" if self.gradient_checkpointing else "kept"
        limit = "" if self.budget is None else f" of {_size(self.budget)}"
        return (
            f"Memory: {_size(self.total)}{limit}: {sizes}. Forward passes of {self.micro_batch_tokens:,} tokens, "
            f"activations {how}, {self.bytes_per_token / 1024:,.0f} KiB a token."
        )


def plan_for(model: PreTrainedModel, config: TrainConfig, *, longest: int, num_processes: int = 1) -> MemoryPlan:
    """Plan for a loaded base on its device; `longest` is the longest row's tokens. Errors: as `plan_memory`."""
    parts = num_processes if config.sharding == "fsdp" else 1
    return plan_memory(
        model.config,
        config,
        dtype=model.dtype,
        weights=weight_bytes(model, parts=parts),
        budget=memory_budget(model.device, config.memory_gib),
        device=model.device.type,
        longest=longest,
    )


def plan_memory(
    base: PretrainedConfig,
    config: TrainConfig,
    *,
    dtype: torch.dtype,
    weights: int,
    budget: int | None,
    device: str = "cpu",
    longest: int = 1,
) -> MemoryPlan:
    """Choose the tokens of a forward pass, and whether activations are kept or recomputed, for a budget.

    Activations are recomputed where the options say so, or where a pass could not hold `ENOUGH_TOKENS` otherwise.

    Args:
        base: the base's configuration.
        config: the options; `micro_batch_tokens` is a bound, or None for what the budget allows.
        dtype: of the base's computation.
        weights: bytes of the base.
        budget: bytes of the device that the process may use; None for no limit.
        device: type of the device.
        longest: tokens of the longest row.
    Raises:
        TrainingError: the budget has no room for the longest row.
    """
    tokens, wanted = config.micro_batch_tokens or MOST_TOKENS, config.gradient_checkpointing
    for recompute in (False, True) if wanted is None else (wanted,):
        num_trainable, per_token = _count(base, config, dtype, recompute=recompute, on_cpu=device == "cpu")
        plan = MemoryPlan(
            budget=budget,
            weights=weights,
            adapter=2 * 4 * num_trainable,
            optimizer=2 * 4 * num_trainable,
            logits=CHUNK * base.get_text_config().vocab_size * (4 + dtype.itemsize),
            context=CONTEXT.get(device, 0),
            bytes_per_token=per_token,
            micro_batch_tokens=0,
            gradient_checkpointing=recompute,
        )
        room = tokens if budget is None else int((1 - SPARE) * budget - plan.total) // per_token
        enough = min(tokens, ENOUGH_TOKENS) if wanted is None and not recompute else 1
        if budget is None or room >= max(longest, enough):
            return MemoryPlan(**{**vars(plan), "micro_batch_tokens": min(tokens, room)})
    raise TrainingError(
        f"A row of {longest:,} tokens does not fit into {_size(budget or 0)} of memory: it needs "
        f"{_size(plan.total + longest * per_token)} and {SPARE:.0%} spare (the base's weights {_size(weights)}). "
        "Set train.quantize_base (4-bit weights), lower train.max_tokens, or take a larger device.",
        plan=plan,
    )


def memory_budget(device: torch.device, memory_gib: float | None) -> int | None:
    """Bytes that a run may use: `memory_gib`, else all of a GPU, else no limit; holds PyTorch to it on a GPU."""
    budget = None if memory_gib is None else int(memory_gib * GIB)
    if device.type != "cuda":
        return budget
    whole = torch.cuda.get_device_properties(device).total_memory
    budget = min(whole, budget or whole)
    torch.cuda.set_per_process_memory_fraction(budget / whole, device)
    return budget


def weight_bytes(model: torch.nn.Module, *, parts: int = 1) -> int:
    """Bytes of a model's weights as they are stored, with what 4-bit ones are read by.

    `parts` processes split its layers and gather two at a time.
    """
    whole = sum(map(_stored_bytes, model.parameters()))
    layers = getattr(getattr(model, getattr(model, "base_model_prefix", ""), None), "layers", ())
    if parts == 1 or not layers:
        return whole
    sizes = [weight_bytes(layer) for layer in layers]
    return whole - sum(sizes) + -(-sum(sizes) // parts) + 2 * max(sizes)


def _stored_bytes(weight: torch.Tensor) -> int:
    state = getattr(weight, "quant_state", None)  # bitsandbytes': scales of the weight, and scales of those
    tensors = [weight] if state is None else [weight, *state.as_dict().values()]
    return sum(part.numel() * part.element_size() for part in tensors if isinstance(part, torch.Tensor))


@contextmanager
def activations_recomputed(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Keep each layer's input alone within the block and compute the rest again in the backward pass, if wanted."""
    if not wanted:
        yield
        return
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()  # only reentrant checkpoints need a gradient at the input
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def smaller(tokens: int, pack_lengths: list[tuple[int, ...]], reason: str) -> int:
    """Half the tokens of the largest forward pass, after it did not fit.

    Args:
        tokens: the bound so far.
        pack_lengths: of each forward pass, the lengths of its rows.
        reason: what the device said.
    Raises:
        TrainingError: each pass holds a single row already.
    """
    if all(len(rows) == 1 for rows in pack_lengths):
        longest = max(sum(rows) for rows in pack_lengths)
        raise TrainingError(
            f"The device has no memory left for one row of {longest:,} tokens ({reason}). Set "
            "train.gradient_checkpointing or train.quantize_base, lower train.max_tokens, or free the device.",
            longest=longest,
        )
    return min(tokens, max(sum(rows) for rows in pack_lengths)) // 2


def _count(
    base: PretrainedConfig, config: TrainConfig, dtype: torch.dtype, *, recompute: bool, on_cpu: bool
) -> tuple[int, int]:
    """Weights of the adapter, and bytes of activations and their gradients a token, at the real shape."""
    shape = copy.deepcopy(base)
    if hasattr(shape, "quantization_config"):
        del shape.quantization_config
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        AttentionInterface.register(_COUNTED, _attend_without_bytes)
        model.set_attn_implementation(_COUNTED)
        with (
            adapted(model, config) as peft_model,
            fused(peft_model) if on_cpu else nullcontext(),
            activations_recomputed(model, recompute),
        ):
            num_trainable = sum(weight.numel() for weight in trainable(peft_model).values())
            return num_trainable, -(-_peak_of_a_pass(peft_model.train()) // _NUM_TOKENS)


def _peak_of_a_pass(peft_model: PeftModel) -> int:
    """Most bytes that live at once in forward and backward."""
    causal = peft_model.get_base_model()
    body = getattr(causal, causal.base_model_prefix)
    ids_1T = torch.zeros(1, _NUM_TOKENS, dtype=torch.long)
    counted = _LiveBytes(peft_model)
    with counted:
        hidden = body(input_ids=ids_1T, position_ids=ids_1T, use_cache=False).last_hidden_state
        torch.autograd.backward(hidden, torch.empty_like(hidden))
    return counted.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are alive, a model's own weights apart, and keeps the most there were."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self.sizes = {weight.untyped_storage()._cdata: 0 for weight in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


class _Attention(torch.autograd.Function):
    """What flash attention keeps for its backward pass, without its work."""

    @staticmethod
    def forward(ctx: Any, query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, value_BKTD: torch.Tensor) -> torch.Tensor:
        out_BTHD = torch.empty_like(query_BHTD.transpose(1, 2))
        total_BHT = torch.empty(query_BHTD.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query_BHTD, key_BKTD, value_BKTD, out_BTHD, total_BHT)
        return out_BTHD

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(states) for states in ctx.saved_tensors[:3])


def _attend_without_bytes(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    return _Attention.apply(query, key, value), None  # type: ignore[no-untyped-call]


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.0f} MiB"
