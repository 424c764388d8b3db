"""What replicas settle before they train: the same command, one run, the same pictures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thumbnet import __version__
from thumbnet.config import LogFormat, recipe_from_dict, recipe_to_dict
from thumbnet.data.dataset import Splits
from thumbnet.distributed.place import job_of
from thumbnet.distributed.replicas import PREPARATION_S, Replicas
from thumbnet.errors import UsageError
from thumbnet.monitor.console import Console
from thumbnet.runs.facts import facts_of
from thumbnet.runs.find import find_job
from thumbnet.runs.run import Run


def insist_same_command(replicas: Replicas, asked: Any) -> None:
    """Make sure that all replicas were asked for the same training.

    Args:
        replicas: this one and its peers.
        asked: what this one was asked for.

    Raises:
        UsageError: another was asked for something else.
    """
    replicas.insist_same(
        "command",
        _digest(json.dumps([__version__, asked], sort_keys=True, default=str)),
        "has another recipe, or another version of thumbnet, than replica 0: start all with the same command",
    )


def insist_same_data(replicas: Replicas, splits: Splits) -> None:
    """Make sure that all replicas, which may be on machines of their own, have found the same pictures.

    Raises:
        UsageError: one has others.
    """
    replicas.insist_same(
        "data",
        _digest(repr(facts_of(splits))),
        "has other pictures than replica 0: give all machines the same data",
        wait_s=PREPARATION_S,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def announce_run(replicas: Replicas, run: Run, *, resume: bool, look_at_test: bool) -> None:
    """Tell the other replicas, as replica 0, which run they train, and whether they evaluate it on the test set.

    Raises:
        UsageError: there are more replicas than images in a batch.
    """
    batch_size = run.recipe.input.batch_size
    if replicas.count > batch_size:
        raise UsageError(
            f"{replicas.count} replicas, and --batch-size {batch_size} has no image for each: "
            "use fewer replicas or a larger batch"
        )
    threads = run.threads if resume and (run.recipe.train.grain or run.replicas == replicas.count) else None
    told = {
        "path": str(run.path),
        "recipe": recipe_to_dict(run.recipe),
        "resume": resume,
        "threads": threads,
        "data_dir": None if run.data_dir is None else str(run.data_dir),
        "look_at_test": look_at_test,
    }
    replicas.announce("run", json.dumps(told))


def hear_of_run(replicas: Replicas) -> tuple[Run, bool, int | None, Path | None, bool]:
    """Return, on another replica than 0, what `announce_run` tells.

    The run's folder may be on another machine, and is not touched.

    Returns:
        The run, whether it is resumed, its threads, where its data was kept, and whether to look at the test set.
    """
    told = json.loads(replicas.announce("run", ""))
    run = Run(Path(told["path"]), recipe_from_dict(told["recipe"]), created="")
    data_dir = Path(told["data_dir"]) if told["data_dir"] else None
    return run, told["resume"], told["threads"], data_dir, told["look_at_test"]


def run_of_job(out: Path, wait_s: float, note: Callable[[str], None]) -> Run | None:
    """Return the run that this very job began before it was restarted, as torchrun does when a replica dies.

    Args:
        out: folder of the runs.
        wait_s: how long to wait for a process that still has the run: a replica that was cut off from the others.
        note: gets a line for the user.

    Raises:
        SystemExit: that run has finished, and nothing is left to do.
    """
    job = job_of(os.environ)
    found = find_job(out, job) if job else None
    if found is None:
        return None
    if found.finished:
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            return None  # the same id again, for another training
        note(f"{found.path}: this run had finished before the restart")
        raise SystemExit(0)
    deadline = time.monotonic() + wait_s
    while (busy := found.is_training()) and time.monotonic() < deadline:
        time.sleep(0.5)
    if not busy:
        with found.lock():  # which puts back what a killed save left
            empty = found.checkpoints.is_empty()
        if empty:
            shutil.rmtree(found.path, ignore_errors=True)  # it holds nothing to go on with
            return None
    note(f"this job was restarted and goes on with its run {found.path}, as that run's own recipe says")
    return found


@contextlib.contextmanager
def folder_of(run: Run, log_format: LogFormat, replicas: Replicas, *, quiet: bool) -> Iterator[Console]:
    """Hold the run's folder and print, as replica 0; the others do neither."""
    if replicas.rank:
        with Console(quiet=True) as console:
            yield console
        return
    with run.lock(), Console(log_format, log_path=run.path / "log.txt", quiet=quiet) as console:
        yield console
