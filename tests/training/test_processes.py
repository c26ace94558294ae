"""Several processes by `accelerate launch`, on the CPU with gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from planner.contracts.errors import TrainingError
from planner.training.adapter import adapted
from planner.training.processes import Processes
from planner.training.sharding import idle_rows, shard_layers
from planner.training.text import EncodedRow

PROJECT = Path(__file__).resolve().parents[2]


def test_shares_hold_every_row_once_and_come_back_in_order():
    for count in (1, 2, 3):
        for rows in ([], [1], list(range(7))):
            shares = [Processes(rank, count).share(rows) for rank in range(count)]
            assert sorted(row for share in shares for row in share) == rows
    assert Processes(1, 2).share([5]) == []


def test_one_process_alone_leaves_sums_as_they_are():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    alone = Processes()
    assert alone.is_first and alone.sum_step([weight], 3.5) == 3.5
    assert weight.grad.tolist() == [1.0, 2.0]
    assert alone.gather([4, 5]) == [4, 5]
    assert alone.from_first(lambda: "read") == "read"


def test_processes_with_fewer_passes_make_up_for_them():
    rows = [EncodedRow(str(i), tuple(range(n)), (1,)) for i, n in enumerate((90, 40, 90, 40, 5))]
    most = {rank: idle_rows(rows, Processes(rank, 2), most_tokens=100) for rank in (0, 1)}
    assert most == {0: [], 1: [rows[0]]}
    assert idle_rows(rows[:1], Processes(1, 2), most_tokens=100) == [rows[0]]
    assert idle_rows(rows, Processes(), most_tokens=100) == []


def test_base_in_four_bits_is_not_split(model, config):
    with adapted(model, config) as peft_model:
        model.is_quantized = True
        with pytest.raises(TrainingError, match="llama.* cannot be split.*4 bits.*train.sharding to none"):
            shard_layers(peft_model, Processes(0, 2))


def launch(count, base, work, moment="-", sharding="none"):
    work.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    if count == 1:
        command = [sys.executable]
    command += ["-m", "tests.training.shared_run", str(base), str(work), moment, sharding]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def results(work):
    return [json.loads(path.read_text()) for path in sorted(work.glob("result-*.json"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(base_folder, folder):
    done = launch(2, base_folder, folder / "two")
    assert done.returncode == 0, done.stderr[-4000:]
    return results(folder / "two")


@pytest.fixture(scope="module")
def one(base_folder, folder):
    done = launch(1, base_folder, folder / "one")
    assert done.returncode == 0, done.stderr[-4000:]
    return results(folder / "one")[0]


@pytest.fixture(scope="module")
def split(base_folder, folder):
    work = folder / "split"
    died = launch(2, base_folder, work, "1:3", "fsdp")
    assert died.returncode != 0 and results(work) == []
    done = launch(2, base_folder, work, "-", "fsdp")
    assert done.returncode == 0, done.stderr[-4000:]
    return results(work)


@pytest.mark.slow
def test_layers_that_are_split_over_the_processes_learn_the_same_after_a_kill_too(one, split):
    first, second = split
    assert first["resumed_from_step"] == 2
    assert first["held"] + second["held"] == one["held"]
    assert 0.4 < first["held"] / one["held"] < 0.6
    assert max(abs(a - b) for a, b in zip(one["losses"][2:], first["losses"], strict=True)) < 1e-4
    assert max(abs(a - b) for a, b in zip(one["validation"], first["validation"], strict=True)) < 1e-4
    assert (first["targets"], first["worst"]) == (one["targets"], one["worst"])
    alone, shared = (load_file(Path(found["adapter"]) / "adapter_model.safetensors") for found in (one, first))
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(one, two):
    first = two[0]
    assert (one["num_processes"], first["num_processes"]) == (1, 2)
    assert len(first["losses"]) == len(one["losses"]) == 8
    for name in ("losses", "validation", "train"):
        pairs = [(a, b) for a, b in zip(one[name], first[name], strict=True) if a is not None]
        assert max(abs(a - b) for a, b in pairs) < 1e-4, name
    assert (first["targets"], first["worst"]) == (one["targets"], one["worst"])
    names = ("adapter_model.safetensors",)
    for name in names:
        alone, shared = (load_file(Path(found["adapter"]) / name) for found in (one, first))
        for key, weight in alone.items():
            torch.testing.assert_close(shared[key], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_first_process_alone_reports(two):
    first, second = two
    assert first["told"] == [0, 1, 2]
    assert (second["told"], second["losses"]) == ([], [])
    assert second["validation"] == first["validation"]


@pytest.mark.slow
def test_a_process_that_dies_ends_all_and_the_next_start_goes_on(base_folder, folder, two):
    work = folder / "killed"
    died = launch(2, base_folder, work, "1:3")
    assert died.returncode != 0
    assert f"exitcode: {-signal.SIGKILL}" in died.stderr.replace(" ", "").replace("exitcode:", "exitcode: ")
    assert results(work) == []
    left = [p for p in psutil.process_iter(["cmdline"]) if str(work) in (p.info["cmdline"] or [])]
    assert left == []
    again = launch(2, base_folder, work)
    assert again.returncode == 0, again.stderr[-4000:]
    first = results(work)[0]
    assert first["resumed_from_step"] == 2
    assert first["validation"] == two[0]["validation"]
