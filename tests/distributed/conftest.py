"""Replicas as real processes on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 300  # of a test that waits; a machine under load is slow


class Nursery:
    """Starts processes, and ends those that are left."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"},
        )
        self.alive: set[int] = set()

    def ask(self, order: dict[str, object]) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Group:
    """Replicas that were started together."""

    def __init__(self, nursery: Nursery, folder: Path, orders: list[dict[str, object]]) -> None:
        self._nursery = nursery
        self.folder = folder
        self.pids: list[int] = []
        for rank, order in enumerate(orders):
            pid = nursery.ask({**order, "out": str(folder / f"{rank}.out"), "err": str(folder / f"{rank}.err")})
            assert pid is not None
            nursery.alive.add(pid)
            self.pids.append(pid)

    def end(self) -> list[int]:
        """Wait for all to end; return their exit codes."""
        codes: dict[int, int] = {}
        deadline = time.monotonic() + TIMEOUT_S
        while len(codes) < len(self.pids):
            assert time.monotonic() < deadline, (codes, self.errors())
            for pid in self.pids:
                if pid not in codes and (code := self._nursery.ask({"poll": pid})) is not None:
                    codes[pid] = code
                    self._nursery.alive.discard(pid)
            time.sleep(0.02)
        return [codes[pid] for pid in self.pids]

    def errors(self) -> list[str]:
        """Return what each printed on standard error."""
        return [(self.folder / f"{rank}.err").read_text() for rank in range(len(self.pids))]

    def outputs(self) -> list[str]:
        """Return what each printed on standard output."""
        return [(self.folder / f"{rank}.out").read_text() for rank in range(len(self.pids))]

    def wait_for_step(self, run: Path, step: int) -> None:
        """Wait until the run's metrics tell of a step; fail when a replica ends before."""
        self.wait_until(lambda: last_step(run) >= step)

    def wait_for_error(self, rank: int) -> None:
        """Wait until a replica tells of an error."""
        wait_until(lambda: "thumbnet: error" in self.errors()[rank], lambda: True)

    def wait_for(self, text: str) -> None:
        """Wait until the first tells something on standard error."""
        self.wait_until(lambda: text in self.errors()[0])

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is the case; fail when a replica ends before."""
        wait_until(reached, self._all_run)

    def _all_run(self) -> bool:
        ended = {pid: code for pid in self.pids if (code := self._nursery.ask({"poll": pid})) is not None}
        self._nursery.alive -= ended.keys()
        assert not ended, (ended, self.errors())
        return True


def wait_until(reached: Callable[[], bool], still_possible: Callable[[], bool]) -> None:
    """Wait until something is the case."""
    deadline = time.monotonic() + TIMEOUT_S
    while not reached():
        assert still_possible()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(run: Path) -> int:
    """Return the last step that the metrics of a run tell of, 0 for none."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="package")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


Start = Callable[..., Group]


@pytest.fixture(scope="package")
def start(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Return what starts replicas: of a command, or of a script; `only` some of them, `plain` outside a group."""

    def start_replicas(
        count: int,
        words: list[str] | list[list[str]],
        *,
        script: Path | None = None,
        only: range | None = None,
        plain: bool = False,
        **variables: str,
    ) -> Group:
        place = {} if plain else {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        each = words if words and isinstance(words[0], list) else [words] * count
        orders: list[dict[str, object]] = [
            {"words": each[rank], "env": (place | {"RANK": str(rank)} if place else {}) | variables}
            | ({"script": str(script)} if script else {})
            for rank in only or range(count)
        ]
        return Group(nursery, tmp_path_factory.mktemp("replicas"), orders)

    return start_replicas
