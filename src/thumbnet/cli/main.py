"""The command `thumbnet`: finds the subcommand, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import TYPE_CHECKING

from thumbnet import __version__
from thumbnet.cli.flags import Parser
from thumbnet.errors import ThumbnetError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = ("train", "eval", "predict", "data", "info", "doctor", "bench")
EXIT_INTERRUPTED = 130


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
        The exit code: 0 done, 1 failed, 2 usage, 3 data, 130 Ctrl-C, 143 SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed, unknown = build_parser().parse_known_args(arguments)
        if unknown:
            parsed.parser.reject_unknown(unknown)
        code: int = importlib.import_module(f"thumbnet.cli.{parsed.command}").run(parsed)
    except ThumbnetError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"thumbnet: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("thumbnet: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`thumbnet info | head`): nobody is left to tell.
        sys.stderr.close()
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
