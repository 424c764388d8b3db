"""The two-machine quickstart of docs/machines.md, its command executed on two machines of those names."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "--data shapes --steps 3 --batch-size 8 --checkpoint-every 2 --summary-every 0 --no-test --threads 1"


def quickstart() -> str:
    """Return the first block of the document, one command."""
    lines = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8").splitlines()
    block = []
    for line in lines:
        if line.startswith("    "):
            block.append(line[4:])
        elif block:
            break
    return "\n".join(block)


def test_two_machines_train_as_the_quickstart_says(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("hosts_of_quickstart", ROOT / "benchmarks" / "hosts.py")
    hosts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hosts)
    if why := hosts.why_not():
        pytest.skip(why)
    command = quickstart()
    assert command.startswith("torchrun ")
    command = f"{command.replace('/shared', str(tmp_path))} {TINY}"
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "PET_RDZV_CONF": "last_call_timeout=200",  # a machine under load may start one much later than the other
    }
    with hosts.Lan("alpha", "beta") as lan:
        machines = [
            host.start(["bash", "-c", command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for host in lan.hosts
        ]
        said = [machine.communicate(timeout=240)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert (result["preset"], result["steps"], result["replicas"]) == ("classic", 3, 2)
