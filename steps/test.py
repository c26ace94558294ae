"""Entry point `test`: run the test suite, by default everything but the tests that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

from steps.command import guarded, parse, prepare

if __name__ == "__main__":
    arguments = parse(("markers",), description=__doc__)
    with guarded(arguments):
        prepare()
    # The suite has stores and databases of its own: nothing of this run may leak into it.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_") and k != "PLANNER_DATABASE_URL"}
    command = [sys.executable, "-m", "pytest", "-m", arguments.markers or "not gpu"]
    sys.exit(subprocess.run(command, env=clean, check=False).returncode)
