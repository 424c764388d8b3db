"""What all peers do alike: arguments, records, windows of time, memory, start-up. Standard library and NumPy only.

A peer is a script that builds the tutorial's network and input with one framework and prints JSON lines:

    {"measure": "start", "seconds": 5.1}            from the start of the process to the end of the first training step
    {"measure": "whole", "images_per_second": 600}  training from the record files
    {"measure": "memory", "mib": 900}               after that
    {"measure": "step", "images_per_second": 700}   the training step on one batch over and over
    {"measure": "input", "images_per_second": 9000} batches made and thrown away
    {"measure": "versions", "python": "3.11.7"}
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 128
CROP = 24
SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
TRAINING_IMAGES = 50_000
POOL = 20_000
"""Examples in the shuffling pool."""
BRIGHTNESS = 63.0
CONTRAST = (0.2, 1.8)
LEARNING_RATE, DROP_STEPS, DROP_FACTOR = 0.1, 136_718, 0.1
"""The staircase: 350 epochs a stair."""
AVERAGE_DECAY = 0.9999
WEIGHT_DECAY = 0.004
"""Of local3 and local4: c / 2 * ||w||^2 in the loss."""
WARM_UP_STEPS, WARM_UP_BATCHES = 5, 20
LEAST_CALLS = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a peer is asked to do."""

    data: Path
    """Folder of the six record files."""
    seconds: float
    """Length of each window."""
    measures: tuple[str, ...]
    """Of whole, step, input; start and memory come with whole."""
    started: float
    """`time.monotonic()` of whoever started this process, right before."""
    precision: str

    @property
    def files(self) -> list[Path]:
        """The files of the training images, in order."""
        return [self.data / f"data_batch_{number}.bin" for number in range(1, 6)]

    @property
    def cores(self) -> int:
        """Cores that this process may run on."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_task() -> Task:
    """Parse a peer's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--measures", default="whole,step,input")
    parser.add_argument("--started", type=float, default=time.monotonic())
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    return Task(
        data=args.data,
        seconds=args.seconds,
        measures=tuple(args.measures.split(",")),
        started=args.started,
        precision=args.precision,
    )


def say(measure: str, **values: Any) -> None:
    """Print one line of the result."""
    print(json.dumps({"measure": measure} | values), flush=True)


def say_started(task: Task) -> None:
    """Tell the time from the start of the process to now, when the first step is done."""
    say("start", seconds=time.monotonic() - task.started)


def say_versions(**versions: str) -> None:
    """Tell what is measured."""
    say("versions", python=platform.python_version(), **versions)


def say_memory() -> None:
    """Tell the memory of this process at most, and what its worker processes have for themselves."""
    say("memory", mib=peak_mib(Path("/proc/self")) + sum(private_mib(folder) for folder in children()))


def images_per_second(call: Callable[[], object], seconds: float, *, images: int = BATCH, warm_up: int = 0) -> float:
    """Call until the time is over, at least three times, and return the speed; the warm-up calls do not count."""
    for _ in range(warm_up):
        call()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or calls < LEAST_CALLS:
        call()
        calls += 1
    return calls * images / elapsed


def say_speeds(
    task: Task,
    train: Callable[[Any, Any], Any],
    batches: Iterator[tuple[Any, Any]],
    random_batch: Callable[[], tuple[Any, Any]],
) -> None:
    """Measure what was asked for of a peer whose training step takes images and labels and returns the loss."""
    if "whole" in task.measures:
        float(train(*next(batches)))  # waits for the value
        say_started(task)
        speed = images_per_second(lambda: train(*next(batches)), task.seconds, warm_up=WARM_UP_STEPS)
        say("whole", images_per_second=speed)
        say_memory()
    if "step" in task.measures:
        batch = random_batch()
        speed = images_per_second(lambda: train(*batch), task.seconds, warm_up=WARM_UP_STEPS)
        say("step", images_per_second=speed)
    if "input" in task.measures:
        speed = images_per_second(lambda: next(batches), task.seconds, warm_up=WARM_UP_BATCHES)
        say("input", images_per_second=speed)


def read_records(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of record files, uint8 [n, 3, 32, 32], and their labels, int64 [n]."""
    records = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, RECORD_BYTES) for path in files])
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0].astype(np.int64)


def peak_mib(folder: Path) -> float:
    """Return the largest resident memory of a process so far, in MiB, from its folder under /proc."""
    return _kib(folder / "status", {"VmHWM"}) / 1024


def private_mib(folder: Path) -> float:
    """Return the memory of a process that it shares with no other, in MiB."""
    return _kib(folder / "smaps_rollup", {"Private_Clean", "Private_Dirty"}) / 1024


def children() -> list[Path]:
    """Return the folders under /proc of this process's living children."""
    own, found = str(os.getpid()), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the command's name, which may hold spaces: state, then parent.
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        if parent == own:
            found.append(stat.parent)
    return found


def _kib(path: Path, fields: set[str]) -> int:
    """Return the sum of fields that are in kB, 0 where the file cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.partition(":")[0] in fields)
