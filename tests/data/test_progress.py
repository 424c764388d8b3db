import io
import sys

import pytest

from thumbnet.data import progress
from thumbnet.data.progress import transfer
from thumbnet.printing import silent


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    clock, notes = Clock(), []
    monkeypatch.setattr(progress, "time", clock)
    with transfer("file", 40 * 2**20, notes.append) as advance:
        for _ in range(40):
            clock.now += 0.5
            advance(2**20)
    assert notes == ["file: 20 of 40 MiB, 2.0 MiB/s", "file: 40 of 40 MiB, 2.0 MiB/s"]


def test_a_quick_transfer_says_nothing():
    notes: list[str] = []
    with transfer("file", 10, notes.append) as advance:
        advance(10)
    assert notes == []


def test_in_a_terminal_there_is_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        with transfer("file", 10, silent) as advance:
            advance(10)
        assert sys.stderr.getvalue() == ""
    screen, notes = Terminal(), []
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with transfer("file", 10, notes.append) as advance:
        advance(10)
    assert "file" in screen.getvalue()
    assert "10/10 bytes" in screen.getvalue()
    assert screen.getvalue().rstrip("\n").endswith("\x1b[2K")
    assert notes == []
