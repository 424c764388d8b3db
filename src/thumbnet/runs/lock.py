"""The lock of a run: one process trains it at a time, and the kernel lets go of it when that process dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from thumbnet.errors import CheckpointError, UsageError
from thumbnet.files import remedy

LOCK_FILE = ".lock"
_TRIES, _PAUSE_S = 10, 0.05


@contextlib.contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Hold the run in a folder for training.

    Raises:
        CheckpointError: another process trains it, or the file system has no locks.
        UsageError: the folder cannot be written to.
    """
    try:
        descriptor = os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _cannot_lock(run, error) from error
    try:
        _acquire(descriptor, run)
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise _cannot_lock(run, error) from error
        yield
    finally:
        os.close(descriptor)


def is_held(run: Path) -> bool:
    """Return whether a process holds the run in a folder."""
    try:
        descriptor = os.open(run / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _acquire(descriptor: int, run: Path) -> None:
    """Take the lock, or raise `CheckpointError` that tells who has it."""
    for attempt in range(_TRIES):  # `is_held` of another process holds it for an instant
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt + 1 < _TRIES:
                time.sleep(_PAUSE_S)
        except OSError as error:
            raise CheckpointError(f"{run}: this file system has no locks ({error}): use --out on another") from error
    owner = os.pread(descriptor, 4096, 0).decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        values = json.loads(owner)
        owner = f"process {values['pid']} on {values['host']}"
    raise CheckpointError(f"{run}: {owner} is training this run: wait until it ends, or stop it first")


def _cannot_lock(run: Path, error: OSError) -> UsageError:
    return UsageError(f"{run}: cannot lock the run: {error}\nTo go on: {remedy(error)}")
