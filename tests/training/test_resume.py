from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# 14 rows in batches of 3: 5 steps an epoch, 15 in all; checkpoints at 0, 2, 4, 5, 6, 8, 10, 12, 14, 15.
MOMENTS = {
    "": None,
    "step:1": 0,
    "step:4": 2,
    "step:5": 4,
    "step:11": 10,
    "step:15": 14,
    "epoch:2": 4,
    "sync:1": None,
    "sync:5": 0,
    "sync:8": 0,
    "sync:18": 4,
    "replace:2": None,
    "replace:3": 0,
    "replace:4": 0,
    "step:3,step:1,sync:6,step:7": 10,
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(base_folder, tmp_path_factory):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_runs", base_folder, tmp_path_factory.mktemp("runs"), *MOMENTS],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("moments", [moments for moments in MOMENTS if moments])
def test_killed_run_goes_on_and_ends_with_the_same_bytes(results, moments):
    whole, resumed = results[""], results[moments]
    assert resumed["adapter"] == whole["adapter"]
    assert resumed["losses"] == whole["losses"]
    assert resumed["worst"] == whole["worst"]
    assert resumed["num_steps"] == whole["num_steps"] == 15


@pytest.mark.parametrize("moments", list(MOMENTS))
def test_killed_run_goes_on_from_the_newest_whole_checkpoint(results, moments):
    assert results[moments]["resumed_from_step"] == MOMENTS[moments]


@pytest.mark.parametrize("moments", list(MOMENTS))
def test_no_litter_is_left_of_a_kill(results, moments):
    # The newest two, and the best epoch's of each (epoch 3 ends at step 15, epoch 2 at 10).
    assert results[moments]["best_epoch"] == 3
    assert results[moments]["left"] == ["step-000010", "step-000014", "step-000015"]
