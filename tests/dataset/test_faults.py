"""200 builds killed on disk, 200 on S3, and 300 damages: nobody can take what is left for a version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_no_kill_leaves_half_a_version_and_no_damage_is_unnoticed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    for where in ("on disk", "on S3"):
        assert f"{where}: builds killed 200, half-written versions seen 0" in done.stdout
    assert "unnoticed 0" in done.stdout
