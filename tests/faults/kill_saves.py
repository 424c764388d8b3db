"""Saves checkpoints in processes that are killed before one call to the file system after another.

python kill_saves.py FOLDER: for every k, FOLDER/new/k holds what the save of a new step leaves when it is killed before
its k-th call, and FOLDER/same/k the save of a step that is there already; a killed write has written half. Prints a
line of JSON for each kind of save: the calls before which it was killed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thumbnet.runs.checkpoint import Checkpoint
from thumbnet.runs.store import CheckpointStore

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


def checkpoint(step: int, take: int) -> Checkpoint:
    weights = {"w": torch.full((50,), float(take)), "b": torch.full((3,), float(take))}
    return Checkpoint(step=step, model=weights, average=weights, state=weights, info={"take": take})


def arm(kill_at: int, report: int) -> None:
    """Replace the calls so that the `kill_at`-th one, counted from 0, kills this process instead."""
    count = 0

    def armed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == kill_at:
                write(report, name.encode())
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*args, **kwargs)

        return call

    write = os.write
    for name in CALLS:
        setattr(os, name, armed(name, getattr(os, name)))


def kill_each_save(scenario: str, root: Path) -> None:
    calls: list[str] = []
    while True:
        store = CheckpointStore(root / scenario / str(len(calls)), keep=1)
        store.save(checkpoint(10, take=1), metric=0.1)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            arm(len(calls), writer)
            store.save(checkpoint(20 if scenario == "new" else 10, take=2), metric=0.2)
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(reader) as lines:
            called = lines.read()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            print(json.dumps(calls), flush=True)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        calls.append(called)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for scenario in ("new", "same"):
        kill_each_save(scenario, Path(sys.argv[1]))
