"""How far a long transfer is: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thumbnet.printing import silent

LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def transfer(what: str, total_bytes: int, note: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Show the progress of a transfer on stderr.

    Args:
        what: what is transferred.
        total_bytes: bytes in all.
        note: gets the lines where stderr is no terminal; with `silent` nothing is shown.

    Yields:
        A function that takes the bytes transferred since it was last called.
    """
    if note is silent or not sys.stderr.isatty():
        yield _lines(what, total_bytes, note)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.update(task, advance=count)


def _lines(what: str, total_bytes: int, note: Callable[[str], None]) -> Callable[[int], None]:
    """Return a function that takes bytes transferred and notes, every few seconds, how many there were."""
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            speed = done / (now - started) / 2**20
            note(f"{what}: {done / 2**20:.0f} of {total_bytes / 2**20:.0f} MiB, {speed:.1f} MiB/s")

    return advance
