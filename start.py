"""The two commands of the README, with nothing but Python 3.11: make the environment, then run the recipe or the tests.

python3.11 start.py            set everything up and run the whole recipe (`mlflow run .`)
python3.11 start.py test       set everything up and run the tests
python3.11 start.py setup      only make .venv
python3.11 start.py mlflow …   any mlflow command inside .venv, for example `start.py mlflow ui`
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
ENVIRONMENT = Path(os.environ.get("PLANNER_VENV") or PROJECT / ".venv")
BINARIES = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
CONSTRAINTS = PROJECT / "constraints.txt"


def set_up(extra: str | None = None) -> None:
    """Create the environment with the pinned packages, unless it is there already, whole and for the same pins.

    With `extra`, add the packages of that extra to the environment that is there.
    """
    stamp = ENVIRONMENT / ("planner-pins" if extra is None else f"planner-pins-{extra}")
    wanted = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes() + CONSTRAINTS.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    what = "some minutes" if extra is None else f"the extra {extra}"
    print(f"Setting up {ENVIRONMENT} ({what}, once) …", file=sys.stderr, flush=True)
    stamp.unlink(missing_ok=True)
    if not (BINARIES / "python").exists() and not (BINARIES / "python.exe").exists():
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        venv.create(ENVIRONMENT, with_pip=True, symlinks=os.name != "nt")
    import tomllib  # Python 3.11 has it; an older one must live to read the message of `main`

    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    pins = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    install = [BINARIES / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *pins, "--constraint", CONSTRAINTS], check=True)
    # Written last: an installation that was killed is done again and never taken for whole.
    stamp.write_text(wanted)


def main(arguments: list[str]) -> int:
    """Set up, then run what was asked for inside the environment."""
    if sys.version_info[:2] != (3, 11):
        print(f"Python 3.11 is needed, this is {sys.version.split()[0]}. Run `python3.11 start.py`.", file=sys.stderr)
        return 1
    command, rest = (arguments[0], arguments[1:]) if arguments else ("run", [])
    known = {"run", "test", "setup", "mlflow"}
    if command not in known:
        print(__doc__, file=sys.stderr)
        return 0 if command in {"-h", "--help"} else 2
    try:
        set_up()
        if command == "test" and shutil.which("java"):
            set_up("spark")  # Spark needs a Java; where there is one, its tests run as well
    except subprocess.CalledProcessError as error:
        print(
            f"The packages could not be installed (pip exited with {error.returncode}); its message is above. "
            "Check the package registry and run the same command again.",
            file=sys.stderr,
        )
        return 1
    environment = {**os.environ, "PATH": f"{BINARIES}{os.pathsep}{os.environ.get('PATH', '')}"}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve the others on a shared machine
    calls = {
        "run": [BINARIES / "mlflow", "run", ".", "--env-manager", "local", *rest],
        "test": [BINARIES / "python", "-m", "pytest", *(rest or ["-m", "not gpu"])],
        "mlflow": [BINARIES / "mlflow", *rest],
        "setup": None,
    }
    call = calls[command]
    return 0 if call is None else subprocess.run(call, cwd=PROJECT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
