"""What is printed during a training: one live line in a terminal, plain lines everywhere else and in the log file."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from thumbnet.config import LogFormat
from thumbnet.errors import UsageError

if TYPE_CHECKING:
    from rich.live import Live


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step line says. Losses, rates and the accuracy are of the steps since the last line."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole training."""
    epoch: float
    """Epochs done."""
    epochs: float
    """Epochs of the whole training."""
    loss: float
    """Loss of the last step."""
    smoothed_loss: float
    """Moving average of the loss."""
    accuracy: float
    """Share of the training images classified rightly, 0 to 1."""
    images_per_second: float
    """Images trained on per second."""
    wait_fraction: float
    """Share of the time that the model waited for input, 0 to 1."""
    seconds_per_batch: float
    """Seconds of one step."""
    learning_rate: float
    """Learning rate of the last step."""
    eta_s: float
    """Seconds left; NaN when not known."""
    label: int
    """Label of the first picture of the last batch."""
    logits: tuple[float, ...]
    """What the network said of that picture before it learnt from it, one number for each class."""


class Console:
    """Prints step lines and notes.

    In a terminal the step line is one live line that stays below the notes; that of the last step is left standing.
    In a notebook it is an output that is replaced until there is a note. Elsewhere (a file, a pipe), and in the other
    formats, every report is a plain line: no carriage returns, no colours. The log file gets plain lines always. A
    stream or log file that fails (disk full, terminal gone) is given up; the training goes on.

    Args:
        format: `default`, `tutorial` for the line of 2015, or `book` for label and logits.
        stream: where to print; if None, where `say` does.
        log_path: file that everything is appended to as plain lines, or None.
        quiet: print nothing at all; only the log file is written.
        now: clock of the tutorial's format, local time.

    Raises:
        UsageError: the log file cannot be opened.
    """

    def __init__(
        self,
        format: LogFormat = "default",  # noqa: A002 - the name of the flag
        stream: TextIO | None = None,
        log_path: Path | None = None,
        *,
        quiet: bool = False,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._format = format
        in_notebook = stream is None and is_notebook()
        self._stream: TextIO | None = None if quiet else _default_stream() if stream is None else stream
        self._now = now
        self._log: TextIO | None = None
        if log_path is not None:
            try:
                self._log = log_path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
            except OSError as error:
                raise UsageError(f"{log_path}: cannot write the log: {error.strerror}") from error
        self._live: Live | None = None
        self._output = NotebookOutput() if in_notebook and format == "default" and not quiet else None
        if format == "default" and self._output is None and _is_terminal(self._stream):
            self._live = _start_live(self._stream)

    def step(self, report: StepReport) -> None:
        """Show a step line."""
        line = self._line(report)
        self._write_log(line)
        if self._output is not None:
            self._output.show(line)
        elif self._live is None:
            self._write_stream(line)
        elif report.step >= report.steps:
            self._guard(lambda live: live.update("", refresh=True))
            self._print_above(line)
        else:
            self._guard(lambda live: live.update(format_step(report, live.console.width - 1), refresh=True))

    def _line(self, report: StepReport) -> str:
        """Return the plain line of a report."""
        if self._format == "tutorial":
            return format_tutorial(report, self._now())
        return format_book(report) if self._format == "book" else format_step(report)

    def note(self, text: str) -> None:
        """Print a line or several, above the live line."""
        self._write_log(text)
        if self._output is not None:
            self._output.leave()
        if self._live is None:
            self._write_stream(text)
        else:
            self._print_above(text)

    def remember(self, lines: Sequence[str]) -> None:
        """Write to the log file alone what was printed before it was open."""
        for line in lines:
            self._write_log(line)

    def close(self) -> None:
        """Take the live line down and close the log file."""
        self._guard(lambda live: live.stop())
        self._live = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Console:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def _print_above(self, text: str) -> None:
        """Print lines that stay, above the live line."""
        self._guard(lambda live: live.console.print(text, markup=False, highlight=False, soft_wrap=True))

    def _guard(self, action: Callable[[Live], object]) -> None:
        """Do something with the live line; give it up when its terminal is gone."""
        if self._live is not None and self._stream is not None:
            try:
                action(self._live)
            except OSError:
                with contextlib.suppress(OSError):
                    self._live.stop()
                self._stream = self._live = None

    def _write_stream(self, text: str) -> None:
        """Print a plain line."""
        if self._stream is not None:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except OSError:
                self._stream = None

    def _write_log(self, text: str) -> None:
        """Append a plain line to the log file."""
        if self._log is not None:
            try:
                self._log.write(text + "\n")
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._log.close()
                self._log = None
                self.note(f"warning: the log file is given up: {error.strerror}")


class NotebookOutput:
    """A line in the output of a notebook's cell that is replaced by the next one, without carriage returns."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        """Show a line in place of the last one, or below what was printed since."""
        from IPython.display import display

        output = {"text/plain": text}
        if self._handle is None:
            self._handle = display(output, raw=True, display_id=True)
        else:
            self._handle.update(output, raw=True)

    def leave(self) -> None:
        """Leave the last line standing: the next one is another."""
        self._handle = None


def is_notebook() -> bool:
    """Tell whether this code runs in a notebook's cell: IPython is there, and has a kernel."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None and hasattr(module, "get_ipython") else None
    return hasattr(shell, "kernel")


def say(text: str) -> None:
    """Print a line for the user: to standard error, which leaves the output to results; in a notebook as any output."""
    print(text, file=_default_stream(), flush=True)


def _default_stream() -> TextIO:
    # Notebooks show standard error as if it were an error.
    return sys.stdout if is_notebook() else sys.stderr


def format_step(report: StepReport, width: int | None = None) -> str:
    """Return the default step line; with `width`, without the least needed parts until it fits."""
    digits = len(str(report.steps))
    epochs = f"{report.epochs:.1f}".removesuffix(".0")
    parts = [
        f"step {report.step:>{digits}}/{report.steps}",
        f"epoch {report.epoch:>{len(epochs.partition('.')[0]) + 2}.1f}/{epochs}",
        f"loss {_format_loss(report.loss)}",
        f"(avg {_format_loss(report.smoothed_loss)})",
        f"acc {100 * report.accuracy:5.1f} %",
        f"{report.images_per_second:>6,.0f} img/s",
        f"wait {100 * report.wait_fraction:4.1f} %",
        f"lr {report.learning_rate:<8.3g}",
        f"left {format_duration(report.eta_s)}",
    ]
    for least_needed in (7, 6, 3, 1, 5, 4, 8):
        line = "  ".join(part for part in parts if part).replace("  (avg", " (avg")
        if width is None or len(line) <= width:
            return line
        parts[least_needed] = ""
    return "  ".join(part for part in parts if part)


def format_tutorial(report: StepReport, time: datetime) -> str:
    """Return the step line of 2015, which calls the first step 0."""
    step = 0 if report.step == 1 else report.step
    return (
        f"{time:%Y-%m-%d %H:%M:%S.%f}: step {step}, loss = {report.loss:.2f} "
        f"({report.images_per_second:.1f} examples/sec; {report.seconds_per_batch:.3f} sec/batch)"
    )


def format_book(report: StepReport) -> str:
    """Return the line of the book's trainer: `[label]: logits`."""
    return f"[{report.label}]: [{' '.join(f'{logit:.4g}' for logit in report.logits)}]"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 8s, 1m24s, 2h05m, 3d04h; `?` when it is not known."""
    if not math.isfinite(seconds):
        return "?"
    total = max(0, round(seconds))
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02}s"
    minutes = round(total / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    hours = round(total / 3600)
    return f"{hours // 24}d{hours % 24:02}h"


def _format_loss(loss: float) -> str:
    """Return a loss in five or more characters."""
    return f"{loss:.3f}" if abs(loss) < 1000 else f"{loss:.3g}"


def _is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a live line would work: a notebook's streams and dumb terminals cannot move the cursor."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _start_live(stream: TextIO | None) -> Live:
    """Start an empty live line."""
    from rich.console import Console as RichConsole
    from rich.live import Live

    # Standard output is left alone where it is a file or a pipe that waits for results. The line is refreshed by hand,
    # so that no thread wakes up beside the training.
    live = Live(
        "",
        console=RichConsole(file=stream, highlight=False, markup=False, emoji=False),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=stream is sys.stderr,
        vertical_overflow="crop",
    )
    live.start()
    return live
