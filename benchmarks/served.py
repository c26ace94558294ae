"""What serving adds to a plan: CPU seconds of `mlflow models serve` against the decoder's own, on the same requests.

In: a base model's name or folder, and optionally an adapter (else one that changes nothing). Out: CPU seconds a plan of
both, in turn, and their ratio; the first request only warms up. The server's CPU time is that of all its processes.

Run: `python -m benchmarks.served smollm2-135m --requests 8` (about a minute on a quiet machine)
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow
import psutil
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.menus import menu, requests_for
from planner.decoding.base import load_base, resolve_base
from planner.decoding.package import Lineage, LoraParts, load_package, write_package
from planner.decoding.served import log_arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--recipes", type=int, default=500)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        package, catalogue = _packaged(Path(folder), options), menu(options.recipes)
        arguments = log_arguments(package, catalogue)
        arguments.pop("input_example")  # it would be planned at once
        mlflow.pyfunc.save_model(Path(folder) / "model", **arguments)
        requests = requests_for(catalogue, options.requests + 1)
        own, served = _alternating(load_package(package, device="cpu"), Path(folder) / "model", requests, options)
    ratios = sorted(b / a for a, b in zip(own, served, strict=True))
    print(
        f"decoder {sum(own) / len(own):.3f} CPU s a plan, served {sum(served) / len(served):.3f}: "
        f"{sum(served) / sum(own):.3f} x in sum, {ratios[len(ratios) // 2]:.3f} x in the median of {len(own)} requests"
    )


def _packaged(folder: Path, options: argparse.Namespace) -> Path:
    files = resolve_base(options.base)
    base, adapter = load_base(files, device="cpu"), options.adapter or folder / "adapter"
    if options.adapter is None:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        get_peft_model(base.model, config).save_pretrained(adapter)
    lineage = Lineage("none", "none", ("train",))
    write_package(
        folder / "package", LoraParts(files, base.tokenizer, adapter), menu(options.recipes), lineage, embed_base=True
    )
    return folder / "package"


def _alternating(planner, model: Path, requests, options) -> tuple[list[float], list[float]]:
    """CPU seconds of each request but the first, planned here and over HTTP in turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary = str(Path(sys.executable).parent / "mlflow")
    command = [binary, "models", "serve", "-m", str(model), "--env-manager", "local", "-p", str(port), "-w", "1"]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "PATH": f"{Path(binary).parent}:{os.environ['PATH']}",
        "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": "600",
    }
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", server)
        own, served = [], []
        for request in requests:
            started = time.process_time()
            answer = planner.plan([request])[0].to_dict()
            own.append(time.process_time() - started)
            before = _cpu_seconds(server.pid)
            assert _post(port, request) == answer, "the served plan is another one"
            served.append(_cpu_seconds(server.pid) - before)
        return own[1:], served[1:]
    finally:
        children = psutil.Process(server.pid).children(recursive=True)
        for process in (*children, psutil.Process(server.pid)):
            process.terminate()
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, "the server does not start"
            time.sleep(0.2)


def _post(port: int, request) -> dict:
    body = json.dumps({"inputs": request.to_dict()}).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, headers)
    with urllib.request.urlopen(asked, timeout=600) as response:
        return json.load(response)["predictions"][0]


def _cpu_seconds(pid: int) -> float:
    parent = psutil.Process(pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()
