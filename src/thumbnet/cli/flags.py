"""Pieces that several commands' flags share; imports nothing heavy, so that --help answers at once."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from thumbnet.errors import UsageError, close_match, did_you_mean
from thumbnet.files import expand_home, write_error

WEIGHTS_IN_WORDS = {"average": "averaged weights", "raw": "raw weights"}
"""What `--weights` chooses between, as people are told of it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError`, accepts 2015's underscores, and suggests the flag that was meant."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    usual_part: str | None = None
    """The subcommand that is meant where none is named."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as usual, with the subcommand that is meant put in where flags, or nothing, stand in its place."""
        named = args and (not args[0].startswith("-") or args[0] in ("-h", "--help"))
        if self.usual_part and args is not None and not named:
            args = [self.usual_part, *args]
        return super().parse_known_args(args, namespace)

    def flags(self) -> list[str]:
        """Return every long flag this parser knows."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse a word that is none of an argument's choices, with the closest of them."""
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"unknown '{value}'{hint}")

    def reject_unknown(self, arguments: list[str]) -> None:
        """Raise `UsageError` for arguments no flag took, with the closest flag."""
        if not arguments:
            return
        name = arguments[0].split("=")[0]
        hint = close_match(name, self.flags()) or f" (see `{self.prog} --help`)"
        raise UsageError(f"{self.prog}: unknown argument '{arguments[0]}'{hint}")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where data is kept and whether the network may be used."""
    add_data_dir_flag(parser)
    parser.add_argument("--offline", action="store_true", help="never touch the network")


def add_data_dir_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where data is kept."""
    parser.add_argument(
        "--data-dir",
        "--data_dir",
        type=Path,
        metavar="DIR",
        help="where data sets are kept (THUMBNET_DATA_DIR, or else the user's cache folder)",
    )


def add_out_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says where runs are kept."""
    parser.add_argument(
        "--out", "--train_dir", type=user_path, default=Path("runs"), metavar="DIR", help="folder of the runs (runs/)"
    )


def user_path(text: str) -> Path:
    """Parse a path; of `--out=~/runs` the shell leaves the `~` to the program."""
    return expand_home(Path(text))


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose one checkpoint of a run, and one kind of its weights."""
    parser.add_argument(
        "--checkpoint", type=checkpoint, default="latest", metavar="latest|best|STEP", help="which one (latest)"
    )
    parser.add_argument(
        "--weights", choices=tuple(WEIGHTS_IN_WORDS), help="which weights (averaged ones where the run has them)"
    )


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that overrule what the machine decides."""
    parser.add_argument("--threads", type=whole_number, metavar="N", help="processor threads (every core)")


def add_use_fp16_flag(group: argparse._ArgumentGroup) -> None:
    """Add the tutorial's flag for half precision; `half_precision` says which that is here."""
    group.add_argument("--use_fp16", type=boolean, nargs="?", const=True, help="half precision: bf16, or fp16 on a GPU")


def half_precision() -> Literal["bf16", "fp16"]:
    """Return the name of the arithmetic in 16 bits that this machine's device is made for."""
    from thumbnet import engine

    return "bf16" if engine.device().type == "cpu" else "fp16"


def number_above_0(text: str) -> float:
    """Parse a number above 0; argparse turns the error into a usage error."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, found '{text}'")
    return value


def whole_number(text: str) -> int:
    """Parse a whole number of 1 or more; argparse turns the error into a usage error."""
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return value


def duration(text: str) -> float:
    """Parse a duration such as 90s, 10m, 1.5h or plain seconds, into seconds above 0."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = 0.0
    if not (math.isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not a duration such as 90s, 10m or 1.5h")
    return seconds


def checkpoint(text: str) -> Literal["latest", "best"] | int:
    """Parse `latest`, `best` or a step."""
    words: dict[str, Literal["latest", "best"]] = {"latest": "latest", "best": "best"}
    if text in words:
        return words[text]
    digits = text.replace("_", "").replace(",", "")
    if digits.isascii() and digits.isdigit():
        return int(digits)
    raise argparse.ArgumentTypeError(f"'{text}' is neither latest nor best, and no step such as 1000")


def boolean(text: str) -> bool:
    """Parse true/false, yes/no, 1/0 (the tutorial's `--run_once False` meant True)."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return words[text.lower()]


def setting(text: str) -> tuple[str, object]:
    """Parse KEY=VALUE, the value as TOML, or as Python has it for True and False, else as plain text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE, such as optimizer.learning_rate=0.05")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, {"True": True, "False": False}.get(value, value)


def make_writable(path: Path, flag: str = "--out") -> None:
    """Make sure that a result can be written, to the file that a flag names, before it takes time to measure it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot write this file: {error.strerror or error}") from error


def tell_result(result: dict[str, Any], lines: Sequence[str], *, as_json: bool, out: Path | None) -> None:
    """Print a measurement, as lines or as one JSON object, then write that object to a file if one is given."""
    print(json.dumps(result) if as_json else "\n".join(lines))
    if out is not None:
        try:
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise write_error(out, error) from error


def note(text: str) -> None:
    """Print a line for the person at the terminal: progress goes to stderr, results to stdout."""
    print(text, file=sys.stderr, flush=True)
