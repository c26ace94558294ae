"""Run step scripts in forked processes, so that importing torch, transformers and mlflow is paid once for all of them.

Started with the sandbox as working folder. In: a JSON line a call on stdin (`module` or `path`, `arguments`,
`environment`, `out`, `err`). Out: a JSON line with the exit code on stdout. The script runs as `__main__` in a process
of its own with its own environment, just as `python -m steps.train` would.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import traceback
from typing import Any


def serve() -> None:
    sys.path[0] = os.getcwd()
    import planner.recipe.build_dataset
    import planner.recipe.driver
    import planner.recipe.evaluate
    import planner.recipe.notebook
    import planner.recipe.promote
    import planner.recipe.train

    assert planner.recipe.train.__file__.startswith(os.getcwd()), "the copy in the sandbox is what is tested"
    assert threading.active_count() == 1, "a fork would lose the other threads"
    print("ready", flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(call)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"code": code}), flush=True)


def _become(call: dict[str, Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(call[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv = [call.get("module") or call["path"], *call["arguments"]]
    code: object = 0
    try:
        if "module" in call:
            runpy.run_module(call["module"], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(call["path"], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    serve()
