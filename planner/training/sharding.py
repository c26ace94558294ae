"""FSDP: the frozen base's layers split over the processes; each gathers a layer while it computes with it.

In: a PEFT model that every process has loaded. Out: the same model, its layers' frozen weights in parts. Embedding,
head and adapters stay whole: the loss applies the head's matrix itself, and gradients are the adapter's alone, which
are summed once a step as without FSDP.

Every process must make the same number of passes, as each pass gathers: `idle_rows` says what one with fewer computes
for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from planner.contracts.errors import TrainingError
from planner.training.adapter import trainable
from planner.training.batches import pack_rows
from planner.training.processes import Processes
from planner.training.text import EncodedRow


def shard_layers(peft_model: PeftModel, processes: Processes) -> None:
    """Split the weights of each decoder layer over the processes, for good.

    Raises:
        TrainingError: the base's layers are not where the llama family has them, or it is in 4 bits.
    """
    causal = peft_model.get_base_model()
    body = getattr(causal, causal.base_model_prefix)
    layers = getattr(body, "layers", None)
    if layers is None or getattr(causal, "is_quantized", False):
        raise TrainingError(
            f"The base model ({causal.config.model_type}) cannot be split: FSDP needs decoder layers in `layers`, not "
            "in 4 bits. Set train.sharding to none, or take another train.model_base."
        )
    mesh = init_device_mesh(peft_model.device.type, (processes.count,))
    whole = {weight for name, weight in body.named_parameters() if not name.startswith("layers.")}
    whole.update(trainable(peft_model).values())
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(body, mesh=mesh, ignored_params=whole)  # splits nothing more: the layers need one root


def idle_rows(rows: Sequence[EncodedRow], processes: Processes, *, most_tokens: int) -> list[EncodedRow]:
    """A row for each pass that this process lacks to the most that any has with its share of the rows."""
    shares = [Processes(rank, processes.count).share(rows) for rank in range(processes.count)]
    passes = [len(pack_rows(share, most_tokens=most_tokens)) for share in shares]
    return [rows[0]] * (max(passes) - passes[processes.rank])


def out_of_memory_together(tokens: int) -> TrainingError:
    """The error where memory ends: one process alone cannot make more passes, as each gathers from all."""
    return TrainingError(
        f"The device has no memory left for passes of {tokens:,} tokens, and with train.sharding fsdp one process "
        "cannot halve them alone. Lower train.micro_batch_tokens, then run the same command again.",
        tokens=tokens,
    )
