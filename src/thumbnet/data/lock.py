"""A lock between processes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: str, note: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends.

    Args:
        path: file of the lock, made if missing.
        waiting: what to say when another process holds it.
        note: gets that line.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
