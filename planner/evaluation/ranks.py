"""A replay's batches spread over the ranks of `accelerate launch`: one a GPU, or one a share of the cores.

In: a `Job`. Out: finished parts in its folder, as from the other workers of `shards.py`. A rank needs nothing of the
others: no collective is called, so one that has long plans keeps nobody waiting.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

from planner.contracts.errors import ReplayError
from planner.evaluation.shards import Job, plan_shard

# One machine; accelerate calls it multi_gpu, on CPUs as well. Any free port.
_LAUNCH = "--multi_gpu --num_machines 1 --main_process_port 0 --mixed_precision no --dynamo_backend no".split()


def plan_in_ranks(job: Job, num_ranks: int) -> int:
    """Plan all batches in so many ranks on this machine, each with a GPU of its own; how many rows were planned.

    Raises:
        ReplayError: a rank failed; its last line is in the message.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "job").write_bytes(pickle.dumps(job))  # from us to our own processes, as multiprocessing does
        command = [sys.executable, "-m", "accelerate.commands.launch", *_LAUNCH, "--num_processes", str(num_ranks)]
        command += ["-m", "planner.evaluation.ranks", str(folder)]
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen(command, env=_environment(num_ranks), stdout=said, stderr=said)
            try:
                code = process.wait()
            except BaseException:
                process.terminate()  # the launcher ends its ranks
                process.wait()
                raise
            said.seek(0)
            lines = [line.strip() for line in said if line.strip()]
        if code != 0:
            # A line of the launcher begins with the rank that said it.
            own = [line.partition(":")[2] if line.startswith("[rank") else line for line in lines]
            reason = next((line.strip() for line in own if line.strip().startswith("planner.")), "")
            raise ReplayError(
                f"One of the {num_ranks} ranks of the replay failed: {(reason or (lines or [''])[-1])[:300]} "
                "Finished batches are kept.",
                num_ranks=num_ranks,
            )
        return sum(int(path.read_text()) for path in folder.glob("rows-*"))


def main(folder: Path) -> None:
    """What each rank runs: its own share of the batches."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # takes this rank's GPU
    job: Job = pickle.loads((folder / "job").read_bytes())
    num_rows = plan_shard(job, state.process_index, state.num_processes)
    (folder / f"rows-{state.process_index}").write_text(str(num_rows))
    state.destroy_process_group()


def _environment(num_ranks: int) -> dict[str, str]:
    import torch

    on_gpus = torch.cuda.is_available()
    threads = {} if on_gpus else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_ranks))}
    return {
        **os.environ,
        **threads,
        "ACCELERATE_USE_CPU": str(not on_gpus).lower(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # the job's functions are imported there
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
