"""Stopping on request: the first SIGINT or SIGTERM asks, a second one exits at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Literal

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\n"

_Handler = Callable[[int, FrameType | None], object] | int | None


class StopSignal:
    """While entered, turns SIGINT and SIGTERM into a request, at which the training looks after each step or batch.

    A second signal ends the process at once with 128 + its number, as shells report it (130 or 143): nothing is saved,
    flushed or unwound, since whatever the program was doing may be what hangs. Where the process is not ours, as in a
    notebook, it raises KeyboardInterrupt instead. Leaving restores the former handlers.

    A launcher passes its own signal on to its replicas. Where that signal went to all of them in the first place, as
    systemd and SLURM send it, it arrives twice, which is no sign of impatience: in a launched process a repeat of the
    first signal does nothing. The launcher itself ends what has not ended after half a minute.

    Python lets only the main thread handle signals: entered in another thread, this does nothing.

    Attributes:
        requested: number of the first signal, or None while there was none.
    """

    Second = Literal["exit", "raise"]
    """What a second signal does."""

    def __init__(self, second: Second = "exit", *, launched: bool = False) -> None:
        self.requested: int | None = None
        self._second, self._launched = second, launched
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> StopSignal:
        """Take over both signals."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give both signals back."""
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be set from it.
            if handler is not None:
                signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; exit on the second."""
        if self.requested is None:
            self.requested = number
            return
        if self._launched and number == self.requested:
            return
        if self._second == "raise":
            raise KeyboardInterrupt(128 + number)
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            # A live status line hides the cursor, and no clean-up will run to show it again.
            os.write(sys.__stderr__.fileno(), _SHOW_CURSOR)
        os._exit(128 + number)
