"""One training on three machines, of which one is cut off for a while and another one dies for good.

The machines are network namespaces, see benchmarks/hosts.py: own addresses, names and processes, one file system.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Self

import pytest
import torch

from thumbnet.errors import PeerLostError
from thumbnet.runs.checkpoint import load_checkpoint
from thumbnet.runs.run import Run

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hosts.py"
STEPS, CHECKPOINT_EVERY, SILENCE_S = 120, 5, 10
LEARNING_RATE = 0.001
"""Small, or the rounding of another order of sums would grow tenfold every few steps: small batches are chaotic."""
PLAIN = {"OMP_NUM_THREADS": "1", "THUMBNET_KERNELS": "0"}
"""A thread, in plain PyTorch, whose sums round the least: what is compared are the steps."""
PATIENCE_S = 240
"""For starts of Python and PyTorch on a machine that is busy otherwise."""
LINK_BITS_PER_S = 150_000_000
"""So that a step takes a quarter of a second on any machine, and the training lasts until all has happened."""
FAST_BITS_PER_S = 4_000_000_000
"""When it has."""
TRAIN = (
    f"train --preset classic --data shapes --batch-size 12 --steps {STEPS} --checkpoint-every {CHECKPOINT_EVERY} "
    f"--log-every 1 --summary-every 0 --no-test --precision fp32 --threads 1 --seed 3 --lr {LEARNING_RATE} --keep 99"
).split()
RENDEZVOUS = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=20"


@pytest.fixture(scope="module")
def hosts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hosts_of_tests", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if why := module.why_not():
        pytest.skip(why)
    return module


class Training:
    """What can be seen of the training from outside: its files, and what the launchers say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launchers: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the launchers, whose hosts have ended."""
        for launcher in self.launchers.values():
            launcher.wait(timeout=30)

    def start(self, host) -> None:
        """Start torchrun on a host."""
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:3", "--nproc-per-node=1", "--max-restarts=10"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=host1:29400", "--rdzv-id=three", f"--rdzv-conf={RENDEZVOUS}"),
            *("--local-addr", host.address, "-m", "thumbnet.cli.main"),
        ]
        words = [*launcher, *TRAIN, "--timeout", f"{SILENCE_S}s", "--out", str(self.folder / "runs")]
        environment = (
            os.environ
            | PLAIN
            | {
                "GLOO_SOCKET_IFNAME": "eth0",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }
        )
        with self._output(host.name).open("w") as file:
            self.launchers[host.name] = host.start(words, stdout=file, stderr=subprocess.STDOUT, env=environment)

    def _output(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def losses_noticed(self) -> int:
        """How often a launcher has told that its replica ended because another one was lost."""
        text = "".join(path.read_text() for path in self.folder.glob("host*.txt"))
        return text.count(f"(exitcode: {PeerLostError.exit_code})")

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("runs/*/log.txt"))

    @property
    def step(self) -> int:
        """The last step there is a row of numbers for."""
        lines = [line for path in self.folder.glob("runs/*/metrics.jsonl") for line in path.read_text().splitlines()]
        try:
            return json.loads(lines[-1])["step"] if lines else 0
        except ValueError:
            return 0  # half a line: it is being written

    def resumed(self) -> list[tuple[int, int]]:
        """Each resumption: the step after which, and on how many replicas."""
        found, replicas = [], 1
        for line in self.log.splitlines():
            words = line.split()
            if line.startswith("devices:"):
                replicas = int(words[1])
            if line.startswith("resumed after step"):
                found.append((int(words[3]), replicas))
        return found

    def wait_until(self, happened: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S) -> None:
        """Wait for something to happen; fail with all that was said if it does not."""
        until = time.monotonic() + within_s
        while not happened():
            if time.monotonic() > until:
                said = "\n".join(f"--- {path.name}\n{path.read_text()}" for path in self.folder.glob("host*.txt"))
                pytest.fail(f"not in {within_s:g} s: {what} (step {self.step})\n{said}\n--- log\n{self.log}")
            time.sleep(0.05)

    def wait_for_end(self, name: str) -> int:
        """Wait until the launcher of a host has ended; returns its exit code."""
        self.wait_until(lambda: self.launchers[name].poll() is not None, f"the launcher of {name} ends")
        return self.launchers[name].returncode


def test_a_machine_is_cut_off_and_another_one_dies(hosts: ModuleType, tmp_path: Path) -> None:
    with Training(tmp_path) as training, hosts.Lan("host1", "host2", "host3") as lan, ExitStack() as programs:
        one, two, three = lan.hosts
        for host in lan.hosts:
            lan.limit(host, LINK_BITS_PER_S)
            training.start(host)
        training.wait_until(
            # With fewer, if one is late to come.
            lambda: "devices: 3 replicas" in training.log and training.step >= 2 * CHECKPOINT_EVERY,
            "the training begins",
        )
        begun = len(training.resumed())

        lan.cut(three)
        cut_at = training.step
        alone = programs.enter_context(start_undisturbed(tmp_path / "alone"))  # while nothing happens there
        training.wait_until(
            lambda: training.losses_noticed() > 0, "the cut is noticed", within_s=SILENCE_S + PATIENCE_S / 4
        )
        training.wait_until(lambda: len(training.resumed()) > begun, "the others go on")
        (step, replicas) = training.resumed()[begun]
        assert replicas == 2
        # At most one interval is lost; the step that was under way when the cable was cut may have ended.
        assert cut_at - CHECKPOINT_EVERY <= step <= cut_at + 1

        lan.heal(three)
        training.wait_until(lambda: training.resumed()[-1][1] == 3, "the third host joins again, by itself")
        rejoined = training.resumed()[-1][0]
        training.wait_until(lambda: training.step >= rejoined + CHECKPOINT_EVERY, "three go on")
        assert training.step < STEPS - CHECKPOINT_EVERY
        noticed = training.losses_noticed()

        two.kill()
        killed_at = training.step
        training.wait_until(
            lambda: training.losses_noticed() > noticed, "the death is noticed", within_s=SILENCE_S + PATIENCE_S / 4
        )
        training.wait_until(lambda: training.resumed()[-1][0] > rejoined, "the others go on")
        (step, replicas) = training.resumed()[-1]
        assert replicas == 2
        assert killed_at - CHECKPOINT_EVERY <= step <= killed_at + 1

        for host in (one, three):
            lan.limit(host, FAST_BITS_PER_S)
        assert training.wait_for_end("host1") == 0
        assert training.wait_for_end("host3") == 0
        _, error = alone.communicate(timeout=PATIENCE_S)
        assert alone.returncode == 0, error
    (run,) = [Run.open(path) for path in (tmp_path / "runs").iterdir()]
    assert run.finished
    # Every step is told once, in order, whatever was trained twice.
    assert [row["step"] for row in run.read_metrics()] == list(range(1, STEPS + 1))
    compare(run, *[Run.open(path) for path in (tmp_path / "alone").iterdir()])


def start_undisturbed(out: Path) -> subprocess.Popen[str]:
    """Start the same training on one device, without any disturbance."""
    return subprocess.Popen(
        [sys.executable, "-m", "thumbnet.cli.main", *TRAIN, "--out", str(out)],
        env=os.environ | PLAIN | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def compare(run: Run, other: Run) -> None:
    """Make sure that two runs moved the same weights and averages by the same, to the rounding of their sums.

    A step that was left out or trained twice would show: it is one part in 120 of the way.
    """
    ours, theirs, start = (
        load_checkpoint(each.checkpoints.path(step)) for each, step in ((run, STEPS), (other, STEPS), (other, 0))
    )
    for kind in ("model", "average"):
        for name, before in getattr(start, kind).items():
            way = getattr(theirs, kind)[name] - before
            off = getattr(ours, kind)[name] - getattr(theirs, kind)[name]
            share = torch.linalg.vector_norm(off) / torch.linalg.vector_norm(way)
            assert share < 1e-3, f"{kind} {name}: {share}"
