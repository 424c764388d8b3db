import dataclasses
import errno
import io
import os
import re
import sys
import types
from datetime import datetime
from pathlib import Path

import pytest

from thumbnet.errors import UsageError
from thumbnet.monitor.console import Console, StepReport, format_duration, format_step, say

REPORT = StepReport(
    step=1200,
    steps=1960,
    epoch=12.25,
    epochs=20,
    loss=1.23412,
    smoothed_loss=1.3008,
    accuracy=0.6118,
    images_per_second=3120.4,
    wait_fraction=0.0012,
    seconds_per_batch=0.041,
    learning_rate=0.0823,
    eta_s=84,
    label=6,
    logits=(-0.00125, 2.5, 1234.5678),
)
LINE = (
    "step 1200/1960  epoch 12.2/20  loss 1.234 (avg 1.301)  acc  61.2 %   3,120 img/s  wait  0.1 %  lr 0.0823    "
    "left 1m24s"
)
WHEN = datetime(2015, 11, 4, 11, 45, 45, 927302)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("LINES", "40")
    return Terminal()


def visible(screen: str) -> list[str]:
    """What a terminal of one live line shows in the end: erased lines are dropped, control sequences removed."""
    lines: list[str] = [""]
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", screen):
        if token == "\n":
            lines.append("")
        elif token == "\x1b[2K":
            lines[-1] = ""
        elif token == "\x1b[1A":
            assert lines.pop() == ""
        elif not token.startswith("\x1b") and token != "\r":
            lines[-1] += token
    return [line.rstrip() for line in lines]


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    stream, log = io.StringIO(), tmp_path / "log.txt"
    with Console(stream=stream, log_path=log) as console:
        console.note("cifar10: from the cache [ok] :smile:")
        console.step(REPORT)
        console.step(dataclasses.replace(REPORT, step=7, epoch=0.1, accuracy=1.0, learning_rate=1.25e-5, eta_s=7260))
    expected = [
        "cifar10: from the cache [ok] :smile:",
        LINE,
        LINE.replace("1200/", "   7/")
        .replace("12.2/", " 0.1/")
        .replace(" 61.2", "100.0")
        .replace("0.0823  ", "1.25e-05")
        .replace("1m24s", "2h01m"),
    ]
    assert stream.getvalue().splitlines() == expected
    assert stream.getvalue() == log.read_text(encoding="utf-8")
    assert not re.search(r"[\r\x1b]", stream.getvalue())


def test_the_tutorials_format_is_the_line_of_2015(terminal: Terminal) -> None:
    report = dataclasses.replace(REPORT, step=0, loss=4.6761, images_per_second=1.99, seconds_per_batch=64.2211)
    with Console("tutorial", terminal, now=lambda: WHEN) as console:
        console.step(report)
    assert (
        terminal.getvalue() == "2015-11-04 11:45:45.927302: step 0, loss = 4.68 (2.0 examples/sec; 64.221 sec/batch)\n"
    )


def test_a_full_second_keeps_its_zeros() -> None:
    stream = io.StringIO()
    with Console("tutorial", stream, now=lambda: WHEN.replace(microsecond=0)) as console:
        console.step(REPORT)
    assert stream.getvalue().startswith(
        "2015-11-04 11:45:45.000000: step 1200, loss = 1.23 (3120.4 examples/sec; 0.041"
    )


def test_the_books_format_is_label_and_logits(terminal: Terminal) -> None:
    with Console("book", terminal) as console:
        console.step(REPORT)
    assert terminal.getvalue() == "[6]: [-0.00125 2.5 1235]\n"


def test_a_terminal_has_one_live_line_below_the_notes(terminal: Terminal, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    console = Console(stream=terminal, log_path=log)
    console.step(dataclasses.replace(REPORT, step=1100))
    console.note("step 1100: validation accuracy [raw] 60 %")
    console.step(REPORT)
    assert visible(terminal.getvalue()) == ["step 1100: validation accuracy [raw] 60 %", LINE]
    console.close()
    assert visible(terminal.getvalue()) == ["step 1100: validation accuracy [raw] 60 %", ""]
    assert log.read_text(encoding="utf-8").splitlines() == [
        LINE.replace("1200/", "1100/"),
        "step 1100: validation accuracy [raw] 60 %",
        LINE,
    ]


def test_the_last_steps_line_is_left_standing(terminal: Terminal) -> None:
    with Console(stream=terminal) as console:
        console.step(REPORT)
        console.step(dataclasses.replace(REPORT, step=1960))
        console.note("trained 1960 steps")
    assert visible(terminal.getvalue()) == [LINE.replace("1200/", "1960/"), "trained 1960 steps", ""]


def test_what_others_print_to_standard_error_goes_above_the_live_line(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console() as console:
        console.step(REPORT)
        print("a warning", file=sys.stderr)
        console.step(REPORT)
        assert visible(terminal.getvalue()) == ["a warning", LINE]
    assert sys.stderr is terminal


def test_standard_output_that_is_a_pipe_is_left_alone(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(stream=terminal) as console:
        console.step(REPORT)
        print("{}")
    assert capsys.readouterr().out == "{}\n"


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Console(stream=terminal) as console:
        console.step(REPORT)
    assert terminal.getvalue() == LINE + "\n"


@pytest.mark.parametrize("width", range(20, 130, 7))
def test_a_narrow_terminal_loses_the_least_needed_parts(width: int) -> None:
    line = format_step(REPORT, width)
    assert line.startswith("step 1200/1960")
    assert "loss 1.234" in line
    assert len(line) <= max(width, len("step 1200/1960  loss 1.234"))


def test_a_terminal_that_goes_away_does_not_end_the_training(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    log = tmp_path / "log.txt"
    with Console(log_path=log) as console:
        console.step(REPORT)

        def fail(text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        terminal.write = fail  # type: ignore[method-assign]
        console.step(REPORT)
        console.note("on")
    assert log.read_text(encoding="utf-8").splitlines() == [LINE, LINE, "on"]
    assert sys.stderr is terminal


def test_a_closed_pipe_does_not_end_the_training(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = tmp_path / "log.txt"
    stream = os.fdopen(writer, "w")
    with Console(stream=stream, log_path=log) as console:
        console.note("one")
        console.note("two")
    with pytest.raises(BrokenPipeError):
        stream.close()
    assert log.read_text(encoding="utf-8") == "one\ntwo\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_gives_up_the_log_and_says_so() -> None:
    stream = io.StringIO()
    with Console(stream=stream, log_path=Path("/dev/full")) as console:
        console.note("one")
        console.note("two")
    assert stream.getvalue().splitlines() == [
        f"warning: the log file is given up: {os.strerror(errno.ENOSPC)}",
        "one",
        "two",
    ]


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none/log\.txt: cannot write the log: No such file"):
        Console(stream=io.StringIO(), log_path=tmp_path / "none" / "log.txt")


def test_appends_to_the_log_of_the_session_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with Console(stream=io.StringIO(), log_path=tmp_path / "log.txt") as console:
            console.note(text)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "one\ntwo\n"


def test_numbers_that_are_not_finite_have_a_line_too() -> None:
    nan = float("nan")
    odd = dataclasses.replace(
        REPORT, loss=nan, smoothed_loss=float("inf"), accuracy=nan, images_per_second=nan, eta_s=nan
    )
    assert "loss nan (avg inf)" in format_step(odd)
    assert format_step(odd).endswith("left ?")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (8.4, "8s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (84, "1m24s"),
        (3599.6, "1h00m"),
        (7500, "2h05m"),
        (86399, "1d00h"),
        (273600, "3d04h"),
        (float("nan"), "?"),
        (float("inf"), "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


class Notebook:
    """What a notebook shows: printed lines, and outputs that may be replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        self.replaced = 0
        shell = types.SimpleNamespace(kernel=object())
        module = types.ModuleType("IPython")
        module.get_ipython = lambda: shell  # type: ignore[attr-defined]
        inner = types.ModuleType("IPython.display")
        inner.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", inner)
        monkeypatch.setattr(sys, "stdout", self)

    def write(self, text: str) -> None:
        assert "\r" not in text
        self.shown += text.splitlines()

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def display(self, output: dict[str, str], *, raw: bool, display_id: bool) -> types.SimpleNamespace:
        assert raw
        assert display_id
        place = len(self.shown)
        self.shown.append(output["text/plain"])

        def update(output: dict[str, str], *, raw: bool) -> None:
            assert raw
            self.shown[place] = output["text/plain"]
            self.replaced += 1

        return types.SimpleNamespace(update=update)


def test_in_a_notebook_one_output_is_replaced_until_there_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = Notebook(monkeypatch)
    with Console(log_path=tmp_path / "log.txt") as console:
        console.note("run x")
        for step in (1, 20, 40):
            console.step(dataclasses.replace(REPORT, step=step))
        console.note("step 40: validation accuracy")
        for step in (60, 80):
            console.step(dataclasses.replace(REPORT, step=step))
    say("done")
    lines = notebook.shown
    assert [lines[0], lines[2], lines[4]] == ["run x", "step 40: validation accuracy", "done"]
    assert [lines[1], lines[3]] == [format_step(dataclasses.replace(REPORT, step=step)) for step in (40, 80)]
    assert notebook.replaced == 3
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 7
    assert capsys.readouterr() == ("", "")


def test_quiet_leaves_the_log_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(log_path=tmp_path / "log.txt", quiet=True) as console:
        console.step(REPORT)
        console.note("a note")
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "log.txt").read_text().splitlines() == [format_step(REPORT), "a note"]


def test_names_that_are_not_utf8_are_written_as_they_can_be(tmp_path):
    with Console(stream=io.StringIO(), log_path=tmp_path / "log.txt") as console:
        console.note("run: caf\udce9")
    assert (tmp_path / "log.txt").read_text() == "run: caf\\udce9\n"
