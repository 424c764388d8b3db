"""Runs found again: by name or path, the newest, or the one that a job began."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from thumbnet.errors import CheckpointError, UsageError, close_match
from thumbnet.files import expand_home_in
from thumbnet.runs.run import RUN_FILE, Run, created_at, read_entry

Which = Literal["latest", "best"] | int
"""The newest checkpoint, the best by validation, or that of a step."""

_LISTED_RUNS = 8


def find_run(out: Path, name_or_path: str | None) -> Run:
    """Return a run by its name in `out`, its path, or the path of one of its checkpoints; None is the newest in `out`.

    The path of a folder of runs means the newest in that one. Newest is by the time of creation in `run.json`, whatever
    files were touched since.

    Raises:
        UsageError: there is no such run; lists what there is.
        CheckpointError: the run is damaged.
    """
    return find_checkpoint(out, name_or_path)[0]


def find_checkpoint(out: Path, name_or_path: str | None) -> tuple[Run, int | None]:
    """Return a run as `find_run` does, and the step when a single checkpoint was named.

    Raises:
        UsageError: there is no such run; lists what there is.
        CheckpointError: the run is damaged.
    """
    if name_or_path is None:
        return Run.open(_by_age(out, _insist_names(out))[-1]), None
    name_or_path = expand_home_in(name_or_path)
    path = Path(name_or_path)
    for candidate in (out / path, path):
        if _is_run(candidate):
            return Run.open(candidate), None
    if os.path.isdir(name_or_path):  # noqa: PTH112 - see `_is_run`
        checkpoint = path.resolve()
        step = re.fullmatch(r"step-(\d+)", checkpoint.name)
        if step and _is_run(checkpoint.parent.parent):
            return Run.open(checkpoint.parent.parent), int(step[1])
        if checkpoint.name == "checkpoints" and _is_run(checkpoint.parent):
            return Run.open(checkpoint.parent), None
        if names := _run_names(path):
            return Run.open(_by_age(path, names)[-1]), None
    raise UsageError(f"there is no run '{name_or_path}' in {out}{_alternatives(name_or_path, _run_names(out))}")


def choose_checkpoint(out: Path, name_or_path: str | None, asked: Which) -> tuple[Run, Which]:
    """Return a run as `find_run` does, and which of its checkpoints is meant: that asked for, or that which was named.

    Raises:
        UsageError: there is no such run, or a single checkpoint was named and another is asked for.
        CheckpointError: the run is damaged.
    """
    run, step = find_checkpoint(out, name_or_path)
    if step is None:
        return run, asked
    if asked != "latest":
        raise UsageError(f"{name_or_path} is one checkpoint: name its run, {run.path}, to choose another")
    return run, step


def find_job(out: Path, job: str) -> Run | None:
    """Return the newest run in `out` that a job began, by what `distributed.place.job_of` calls it; None without.

    Raises:
        UsageError: `out` cannot be read.
        CheckpointError: the run is damaged.
    """
    names = [name for name in _run_names(out) if read_entry(out / name, "job") == job]
    return Run.open(_by_age(out, names)[-1]) if names else None


def find_begun(out: Path, note: Callable[[str], None]) -> Run:
    """Return the newest run in `out` that has a checkpoint to go on from.

    A run has none as long as it fetches data, and for ever where it was killed before its first.

    Args:
        out: folder of the runs.
        note: gets a line where newer runs are passed over.

    Raises:
        UsageError: there is no run.
        CheckpointError: none has a checkpoint, or a run is damaged.
    """
    paths = _by_age(out, _insist_names(out))
    for number, path in enumerate(reversed(paths)):
        run = Run.open(path)
        if run.checkpoints.is_begun():
            if number:
                more = f" and {number - 1} more" if number > 1 else ""
                note(f"passed over {paths[-1]}{more}, without a checkpoint to go on from: going on with {path}")
            return run
    raise CheckpointError(
        f"{out}: no run here has a checkpoint to go on from: wait for the first, or, if nothing trains, start a new "
        "run with `thumbnet train`"
    )


def _insist_names(out: Path) -> list[str]:
    """Return the names of the runs in a folder, one or more."""
    names = _run_names(out)
    if not names:
        raise UsageError(f"{out}: there is no run here: start one with `thumbnet train`, or give --out")
    return names


def _by_age(out: Path, names: list[str]) -> list[Path]:
    """Return the folders of runs, the newest last."""
    return [out / name for name in sorted(names, key=lambda name: (created_at(out / name), name))]


def _run_names(out: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted; what cannot be read, such as another user's, is none of them.

    Raises:
        UsageError: the folder cannot be read.
    """
    if not os.path.isdir(out):  # noqa: PTH112 - see `_is_run`
        return []
    try:
        return sorted(entry.name for entry in out.iterdir() if _is_run(entry))
    except OSError as error:
        raise UsageError(f"{out}: cannot look for runs here: {error.strerror or error}") from error


def _is_run(folder: Path) -> bool:
    # The methods of a Path raise where a name is too long or a folder is closed (before Python 3.14).
    file = folder / RUN_FILE
    return os.path.isfile(file) and os.access(file, os.R_OK)  # noqa: PTH113


def _alternatives(name: str, names: list[str]) -> str:
    """Return the run whose name is close, or else the last few by name."""
    if not names:
        return " - there are no runs yet: start one with `thumbnet train`"
    more = f" and {len(names) - _LISTED_RUNS} more" if len(names) > _LISTED_RUNS else ""
    return close_match(name, names) or f" - there are: {', '.join(names[-_LISTED_RUNS:])}{more}"
