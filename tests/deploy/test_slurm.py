"""deploy/slurm.sbatch: its directives by sbatch's rules, and its commands run with stand-ins for SLURM's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm.sbatch"
WHOLE = r"[1-9]\d*"
SIGNAL = r"(?:[RB]{1,2}:)?(?:SIG)?(?:HUP|INT|QUIT|TERM|USR1|USR2|CONT|URG|\d+)(?:@\d{1,5})?"
# Options of sbatch that a job of this kind may use, and what their values may be; None takes no value.
DIRECTIVES = {
    "job-name": r"\S+",
    "nodes": rf"{WHOLE}(?:-{WHOLE})?",
    "ntasks-per-node": WHOLE,
    "cpus-per-task": WHOLE,
    "gpus-per-node": rf"(?:\w+:)?{WHOLE}",
    "time": r"(?:\d+-)?\d{1,2}(?::\d{2}){0,2}|\d+",
    "signal": SIGNAL,
    "requeue": None,
    "no-kill": None,
    "open-mode": "append|truncate",
    "output": r"[^\s%]*(?:%[%AaJjNnstux][^\s%]*)*",
}
SRUN_OPTIONS = {"ntasks-per-node": WHOLE, "cpus-per-task": WHOLE, "no-kill": None, "kill-on-bad-exit": "[01]"}

# Starts the command once for each machine, as srun does with a task on each, and says what it was asked for.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> "$ASKED"; shift; done
echo "$1" >> "$ASKED"
code=0
for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do "$@" & done
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
[[ "$1 $2" == "show hostnames" ]] || exit 1
tr , '\\n' <<< "$3"
"""
TINY = "--preset classic --data shapes --steps 3 --batch-size 8 --checkpoint-every 2 --summary-every 0 --no-test"


def directives(text: str) -> list[str]:
    """Return the directives that sbatch reads: those before the first line that is not a comment."""
    found = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            found.append(line.removeprefix("#SBATCH ").strip())
    return found


def complaints(options: list[str], known: dict[str, str | None]) -> list[str]:
    """Return the options that the command would refuse."""
    found = []
    for option in options:
        match = re.fullmatch(r"--([a-z-]+)(?:=(\S+))?", option)
        if match is None or match[1] not in known:
            found.append(f"unknown: {option}")
            continue
        pattern, value = known[match[1]], match[2]
        fits = value is None if pattern is None else value is not None and re.fullmatch(pattern, value)
        if not fits:
            found.append(f"value: {option}")
    return found


def test_the_directives_are_those_of_sbatch() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/bash\n")
    options = directives(text)
    assert complaints(options, DIRECTIVES) == []
    assert len({option.partition("=")[0] for option in options}) == len(options)
    # None is lost behind the first command, and those for GPUs are right once they are uncommented.
    assert len(options) == text.count("\n#SBATCH ")
    for_gpus = [line.removeprefix("##SBATCH ") for line in text.splitlines() if line.startswith("##SBATCH ")]
    assert for_gpus
    assert complaints(for_gpus, DIRECTIVES) == []


@pytest.mark.parametrize(
    "option",
    [
        "--node=2",
        "--nodes=two",
        "--nodes=0",
        "--nodes",
        "--requeue=yes",
        "--time=4h",
        "--signal=STOP!",
        "--output=%q.log",
    ],
)
def test_what_sbatch_refuses_is_found(option: str) -> None:
    assert len(complaints([option], DIRECTIVES)) == 1


def test_directives_behind_a_command_are_not_read() -> None:
    assert directives("#!/bin/bash\n#SBATCH --nodes=2\n\n# x\n#SBATCH --requeue\nset -e\n#SBATCH --time=1\n") == [
        "--nodes=2",
        "--requeue",
    ]


def test_the_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a job, with stand-ins for SLURM's commands."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    return os.environ | {
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "ASKED": str(tmp_path / "asked"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_CPUS_PER_TASK": "1",
        "THUMBNET_SHARED": str(tmp_path / "shared folder"),
        "OMP_NUM_THREADS": "1",
        "PET_RDZV_CONF": "last_call_timeout=200",  # a machine under load may start one task much later than the other
    }


def run_script(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_script_trains(slurm: dict[str, str], tmp_path: Path) -> None:
    done = run_script(slurm, *TINY.split(), "--threads", "1")
    assert done.returncode == 0, done.stderr
    *options, command = (tmp_path / "asked").read_text().splitlines()
    assert complaints(options, SRUN_OPTIONS) == []
    assert command == "torchrun"
    (run,) = (tmp_path / "shared folder" / "runs").iterdir()
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert (result["preset"], result["steps"], result["replicas"]) == ("classic", 3, 2)


def test_a_wrong_flag_ends_the_job_with_a_failure(slurm: dict[str, str]) -> None:
    done = run_script(slurm | {"SLURM_JOB_NUM_NODES": "1"}, "--presett", "classic")
    assert done.returncode != 0
    assert "--presett" in done.stderr


def test_without_slurm_the_script_says_what_is_missing(slurm: dict[str, str]) -> None:
    environment = {name: value for name, value in slurm.items() if not name.startswith("SLURM_")}
    done = run_script(environment)
    assert done.returncode != 0
    assert "SLURM_JOB_NODELIST" in done.stderr
