"""The command `thumbnet`: finds the subcommand, and turns errors into exit codes."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet import __version__
from thumbnet.cli.flags import Parser
from thumbnet.errors import ThumbnetError, UsageError, did_you_mean
from thumbnet.files import is_disk_full

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMMANDS = ("train", "eval", "predict", "export", "serve", "new", "data", "info", "doctor", "bench")
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


def build_parser() -> Parser:
    """Build the parser of all commands; each module `thumbnet.cli.COMMAND` adds its own."""
    parser = Parser(
        prog="thumbnet",
        description="Train a classifier of thumbnail-sized pictures from scratch, in minutes, on the machine at hand.",
        epilog="`thumbnet train` alone trains on CIFAR-10; `thumbnet COMMAND --help` tells the rest.",
    )
    parser.add_argument("--version", action="version", version=f"thumbnet {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"thumbnet.cli.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage, 3 data, 4 a replica was lost, 130 Ctrl-C, 143 SIGTERM.
    """
    _prepare_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        with _sigterm_unwinds():
            if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
                raise UsageError(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], COMMANDS)}")
            parsed, unknown = build_parser().parse_known_args([word for word in arguments if word != "--debug"])
            if unknown:
                parsed.parser.reject_unknown(unknown)
            parsed.words = arguments
            code: int = importlib.import_module(f"thumbnet.cli.{parsed.command}").run(parsed)
            sys.stdout.flush()
    except ThumbnetError as error:
        if debug:
            traceback.print_exc()
        print(f"thumbnet: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        # SIGTERM comes as a KeyboardInterrupt that carries its exit code.
        code = interrupt.args[0] if interrupt.args else EXIT_INTERRUPTED
        if os.environ.get("RANK", "0") == "0":  # of several replicas, one tells
            print("thumbnet: interrupted", file=sys.stderr)
    except BrokenPipeError:
        # The reader of our output has gone (`thumbnet info | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
        return 1
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"thumbnet: error: cannot write: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _prepare_streams() -> None:
    """Put streams that lead nowhere in place of those closed from the start (`2>&-`); print names that are no text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that half-made things are cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt(EXIT_TERMINATED)

    previous = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
