"""Decoding on one NVIDIA GPU: `pytest -m gpu -s tests/decoding`."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.menus import menu, requests_for
from planner.contracts.request import Household, Request
from planner.decoding.decoder import Decoder
from planner.decoding.packed import PackedModel, _attend
from planner.decoding.sampling import Sampling
from planner.evaluation.verify import violations
from planner.training.memory import memory_budget
from tests.decoding.llama3 import llama3_tokenizer
from tests.gpu import NEEDS_GPU, gpu, random_llama_3_8b
from tests.tiny import tiny_requests

pytestmark = NEEDS_GPU


@pytest.fixture
def device():
    with gpu() as device:
        yield device


@pytest.fixture(scope="module")
def on_gpu(base):
    return copy.deepcopy(base.model).to("cuda")  # in fp32, as on the CPU; `load_base` takes bf16 on a GPU


@pytest.mark.parametrize("max_rows", [1, 8])
@pytest.mark.parametrize("how", [{"decide": "token"}, {"decide": "dish"}, {"decide": "dish", "beam": 3}])
def test_plans_on_a_gpu_are_those_of_a_cpu(base, on_gpu, catalogue, how, max_rows):
    requests = tiny_requests(12, 5, catalogue=catalogue)
    expected, found = (
        Decoder(model, base.tokenizer, catalogue, max_rows=max_rows, **how).plan(requests)
        for model in (base.model, on_gpu)
    )
    assert [result.plan for result in found] == [result.plan for result in expected]
    assert [result.reason for result in found] == [result.reason for result in expected]


def test_drawn_plans_on_a_gpu_are_those_of_a_cpu(base, on_gpu, catalogue):
    requests = tiny_requests(12, 6, catalogue=catalogue)
    expected, found = (
        Decoder(model, base.tokenizer, catalogue).plan(requests, sampling=Sampling(0.8, 0.9, seed=1))
        for model in (base.model, on_gpu)
    )
    assert [result.plan for result in found] == [result.plan for result in expected]


@pytest.mark.parametrize("kernel", [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
def test_a_tree_is_attended_alike_by_both_kernels_that_know_masks(kernel):
    generator = torch.Generator().manual_seed(0)
    heads, groups, new, total, size = 8, 4, 5, 24, 64
    query, keys, values = (
        torch.randn(count, tokens, size, generator=generator)
        for count, tokens in ((heads, new), (heads // groups, total), (heads // groups, total))
    )
    mask = torch.rand(new, total, generator=generator) < 0.5
    mask[:, 0] = True
    states = (query, keys, values)
    options = {"mask": mask.repeat(groups, 1), "groups": groups, "scaling": 0.125}
    expected = _attend(*states, **options)
    options["mask"] = options["mask"].to("cuda")
    with sdpa_kernel(kernel):
        found = _attend(*(part.to("cuda", torch.bfloat16) for part in states), **options)
    torch.testing.assert_close(found.float().cpu(), expected, atol=0.03, rtol=0.03)


def test_eight_billion_parameters_in_bf16_write_plans_that_break_nothing(device, tmp_path):
    tokenizer, catalogue = llama3_tokenizer(tmp_path), menu(500)
    memory_budget(device, 24)
    model = random_llama_3_8b(device)
    torch.cuda.reset_peak_memory_stats(device)
    print(f"\n{torch.cuda.get_device_name()}")
    packed = PackedModel(model)
    for rows in (1, 8):
        times = ", ".join(f"{new} {pass_ms(packed, rows, new):.1f}" for new in (1, 16, 64, 256, 512))
        print(f"ms a pass of {rows} rows by new tokens of each: {times}")
    for rows, count, decide in ((1, 4, "token"), (8, 16, "token"), (1, 4, "dish"), (8, 16, "dish")):
        requests = requests_for(catalogue, count)
        for turn in ("first", "again"):  # a decoder remembers plans, so each time has its own
            decoder = Decoder(model, tokenizer, catalogue, max_rows=rows, decide=decide)
            decoder.plan([Request(Household("", 2))])  # the tokens that all prompts share
            before = decoder.packed.num_calls, decoder.packed.num_tokens
            started = time.perf_counter()
            results = decoder.plan(requests)
            seconds = time.perf_counter() - started
            calls, tokens = decoder.packed.num_calls - before[0], decoder.packed.num_tokens - before[1]
            print(
                f"{rows} rows, decide {decide}, {turn}: {count / seconds:.2f} plans/s, {1e3 * seconds / calls:.0f}"
                f" ms a call; a plan has {sum(len(r.plan.meals) for r in results) / count:.1f} meals, "
                f"{calls / count:.1f} calls, {tokens / count:.0f} tokens"
            )
        assert all(result.feasible and result.plan.meals for result in results)
        for request, result in zip(requests, results, strict=True):
            assert violations(result.plan, request, catalogue) == ()
    print(f"peak {torch.cuda.max_memory_reserved(device) / 2**30:.2f} GiB")


def pass_ms(packed, rows, new, *, past=200, repeats=5):
    """Milliseconds of a pass of `rows` rows with `new` tokens each behind `past`, the fastest of some."""
    caches = [packed.new_row(past + new) for _ in range(rows)]
    packed.forward([(cache, range(7, 7 + past)) for cache in caches])
    times = []
    for _ in range(repeats + 1):  # the first one chooses kernels
        torch.cuda.synchronize()
        started = time.perf_counter()
        packed.forward([(cache, range(7, 7 + new)) for cache in caches])
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
        for cache in caches:
            cache.keep(past, [])
    return min(times[1:])
