import os
import pty
import signal
import subprocess
import sys
import threading
import time

import pytest

from thumbnet.monitor.signals import StopSignal

# The child says when it is ready, and how its waiting ended.
CHILD = """
import sys, time
from thumbnet.monitor.signals import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("asked", flush=True)
    if sys.argv[1] == "hang":
        time.sleep(60)
print("saved", flush=True)
sys.exit(128 + stop.requested)
"""


def start(mode: str, stderr: int | None = None) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, mode], stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_the_program_finish(number: int, code: int) -> None:
    with start("finish") as child:
        child.send_signal(number)
        output, _ = child.communicate(timeout=20)
    assert (output, child.returncode) == ("asked\nsaved\n", code)


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGTERM, signal.SIGINT, 130)],
)
def test_the_second_signal_exits_at_once(first: int, second: int, code: int) -> None:
    with start("hang") as child:
        child.send_signal(first)
        assert child.stdout.readline() == "asked\n"
        child.send_signal(second)
        output, _ = child.communicate(timeout=20)
    assert (output, child.returncode) == ("", code)


def test_a_launched_process_goes_on_when_its_launcher_repeats_the_signal() -> None:
    # Were it to end at once, so would this test.
    with StopSignal("raise", launched=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_may_raise_instead() -> None:
    with StopSignal("raise") as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt) as raised:
            signal.raise_signal(signal.SIGINT)
    assert raised.value.args == (130,)


def test_exiting_at_once_shows_the_cursor_again() -> None:
    master, slave = pty.openpty()
    try:
        with start("hang", stderr=slave) as child:
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "asked\n"
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=20)
        assert b"\x1b[?25h" in os.read(master, 1000)
    finally:
        os.close(master)
        os.close(slave)


def test_handlers_from_before_come_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 10
            while stop.requested is None and time.monotonic() < deadline:
                time.sleep(0.001)
            assert (stop.requested, seen) == (signal.SIGTERM, [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_leaves_signals_alone() -> None:
    found: list[object] = []
    handler = signal.getsignal(signal.SIGINT)

    def enter() -> None:
        with StopSignal() as stop:
            found.extend([stop.requested, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None, handler]
    assert signal.getsignal(signal.SIGINT) is handler
